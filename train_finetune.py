"""Train a slide captioner from command-line flags: python train_finetune.py --embeddings_dir D --labels_file L."""

from finetune.cli import Parser, add_common_flags, add_train_flags, config_from_flags
from finetune.errors import run_script


def main() -> int:
    parser = Parser(description=__doc__)
    add_train_flags(parser)
    add_common_flags(parser)
    args = parser.parse_args()
    config = config_from_flags(args)
    from finetune.run import train  # torch: only once the arguments are good

    return train(config, args.resume)


if __name__ == "__main__":
    run_script(main)
