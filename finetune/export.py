"""Write a checkpoint as a folder to share: python -m finetune.export --checkpoint best_model.pth --output FOLDER

Safetensors, config.json and a model card, as repositories of the Hugging Face hub have them. It opens with inference.py
and Captioner.load; it is no model of the package transformers, whose AutoModel does not know it.
"""

from .common.errors import run_script, say
from .common.files import expand
from .config.flags import Parser, add_debug_flag


def main() -> int:
    """The command line of `python -m finetune.export`."""
    parser = Parser(prog="python -m finetune.export", description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="best_model.pth or any other .pth of a run, or its folder")
    parser.add_argument("--output", required=True, metavar="FOLDER",
                        help="new folder; inference.py --checkpoint FOLDER opens it")
    add_debug_flag(parser)
    args = parser.parse_args()
    checkpoint, folder = expand(args.checkpoint), expand(args.output)
    from .checkpoints.hf_folder import write_folder  # torch: only once the arguments are good

    write_folder(checkpoint, folder)
    say(f"written: {folder}")
    return 0


if __name__ == "__main__":
    run_script(main)
