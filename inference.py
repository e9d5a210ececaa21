"""Caption and score slides: python inference.py --checkpoint best_model.pth --embeddings_file F.h5 --text T ..."""

from finetune.common.errors import run_script
from finetune.config.flags import Parser, add_inference_flags, options_from_flags, refuse_unused


def main() -> int:
    parser = Parser(description=__doc__)
    add_inference_flags(parser)
    args = parser.parse_args()
    refuse_unused(parser, args)
    options = options_from_flags(args)
    # torch: only once the arguments are good
    if args.serve:
        from finetune.inference.serve import run_server as run
    elif args.explain is not None:
        from finetune.inference.explain import run_explain as run
    else:
        from finetune.inference.run import run_inference as run
    return run(args, options)


if __name__ == "__main__":
    run_script(main)
