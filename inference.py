"""Caption and score slides: python inference.py --checkpoint best_model.pth --embeddings_file F.h5 --text T ..."""

from finetune.common.errors import run_script
from finetune.config.flags import Parser
from finetune.inference.options import InferenceOptions, add_inference_flags


def main() -> int:
    parser = Parser(description=__doc__)
    add_inference_flags(parser)
    options = InferenceOptions.from_flags(parser.parse_args())
    # torch and tqdm: only once the arguments are good
    from finetune.common.log import log_to_console

    log_to_console()
    if options.mode == "serve":
        from finetune.inference.serve import run_server as run
    elif options.mode == "explain":
        from finetune.inference.explain import run_explain as run
    else:
        from finetune.inference.run import run_inference as run
    return run(options)


if __name__ == "__main__":
    run_script(main)
