"""Train a slide captioner from a YAML file: python train_with_config.py --config config.yaml."""

from finetune.common.errors import run_script
from finetune.config.flags import Parser, add_common_flags
from finetune.config.schema import Config, apply_overrides
from finetune.config.yaml_file import load_yaml


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--config", default="config.yaml", help="YAML file; config.yaml lists all keys")
    parser.add_argument("--check", action="store_true", help="check all data without training")
    add_common_flags(parser)
    args = parser.parse_args()
    config = apply_overrides(load_yaml(args.config, Config()), args.set)
    from finetune.training.run import check, train  # torch: only once the arguments are good

    return check(config) if args.check else train(config, args.resume)


if __name__ == "__main__":
    run_script(main)
