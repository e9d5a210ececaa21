"""Train a slide captioner from command-line flags: python train_finetune.py --embeddings_dir D --labels_file L."""

from finetune.common.errors import run_script
from finetune.config.flags import Parser, add_common_flags, add_train_flags, config_from_flags


def main() -> int:
    parser = Parser(description=__doc__)
    add_train_flags(parser)
    add_common_flags(parser)
    args = parser.parse_args()
    config = config_from_flags(args)
    from finetune.training.run import train  # torch: only once the arguments are good

    return train(config, args.resume)


if __name__ == "__main__":
    run_script(main)
