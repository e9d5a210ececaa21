"""Look at the environment before a run: python -m finetune.doctor --config config.yaml

Python, torch, the GPU and its driver, memory, disk, optional packages, Prism's weights, the tokenizer and, with
--config, labels and features: for each what was found and what to do. Trains nothing, writes nothing, downloads no
weights.
"""

from .common.errors import run_script
from .config.flags import Parser, add_debug_flag


def main() -> int:
    """The command line of `python -m finetune.doctor`; 2 if training would not start."""
    parser = Parser(prog="python -m finetune.doctor", description=__doc__)
    parser.add_argument("--config", help="YAML file of the run to come; without it no data is looked at")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="section.key=value",
                        help="as of the training scripts")
    parser.add_argument("--prism", metavar="WEIGHTS", help="as of the training scripts: prism.weights")
    add_debug_flag(parser)
    args = parser.parse_args()
    from .checkup.run import run_checks

    return run_checks(args.config, args.set, args.prism)


if __name__ == "__main__":
    run_script(main)
