"""Command-line flags shared by the scripts. Flags are a skin over config keys: no defaults, no logic of their own."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence

from ..common.errors import UserError
from .schema import Config, GenerationOptions, apply_overrides

TRAIN_FLAGS = {  # the flags users know -> the config key each one sets
    "--embeddings_dir": "data.embeddings_dir",
    "--labels_file": "data.labels_file",
    "--output_dir": "training.output_dir",
    "--batch_size": "training.batch_size",
    "--epochs": "training.epochs",
    "--lr": "training.learning_rate",
    "--max_seq_len": "data.max_seq_len",
    "--val_split": "data.val_split",
    "--save_every": "training.save_every",
    "--prism": "prism.weights",
}

_CAPTION_ONLY = ("text", "labels_file", "findings", "prompts", "classes_file", "abstain_below", "split", "output")
_TAKEN_BY = {"port": ("serve",), "explain": ("explain",), "thumbnail": ("explain",), "thumbnail_scale": ("explain",),
             "nearest": ("serve", "caption"), **dict.fromkeys(_CAPTION_ONLY, ("caption",))}


class Parser(argparse.ArgumentParser):
    """argparse whose mistakes are a `UserError` (one line), and which takes `--batch-size` for `--batch_size`."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: None = None) -> argparse.Namespace:  # type: ignore[override]
        args = sys.argv[1:] if args is None else args
        return super().parse_args([_underscored(a) for a in args], namespace)

    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(self.prog, message, f"see python {self.prog} --help")


def add_common_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="section.key=value",
                        help="set any config key, for example --set training.seed=1 model.dim=256")
    parser.add_argument("--resume", metavar="PATH|auto",
                        help="go on from this checkpoint; auto: from last_model.pth in the run folder if there is one")
    add_debug_flag(parser)


def add_debug_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def add_train_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of train_finetune.py, with the help and default of the config key behind each."""
    config = Config()
    for flag, key in TRAIN_FLAGS.items():
        section, name = key.split(".")
        values = getattr(config, section)
        default = getattr(values, name)
        text = type(values).__dataclass_fields__[name].metadata["help"]
        parser.add_argument(flag, metavar=name.upper(), required=default == "",
                            help=text.replace("%", "%%") + (f" (default {default})" if default != "" else ""))


def config_from_flags(args: argparse.Namespace) -> Config:
    """defaults < flags < --set."""
    config = Config()
    for flag, key in TRAIN_FLAGS.items():
        value = getattr(args, flag[2:])
        if value is not None:
            config.set(key, value, flag)
    return apply_overrides(config, args.set)


def add_inference_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of inference.py: what to caption, where the answers go, and how to decode (GenerationOptions)."""
    writer = parser.add_mutually_exclusive_group(required=True)
    writer.add_argument("--checkpoint", help="best_model.pth or any other .pth of a run, or a folder that "
                        "python -m finetune.export wrote")
    writer.add_argument("--prism_only", action="store_true", help="nothing trained: what Prism itself says, in English")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--embeddings_file", help="H5 tile embeddings of one slide")
    source.add_argument("--embeddings_dir", help="folder of H5 files: caption them all")
    source.add_argument("--serve", action="store_true", help="open a page on this machine to try the model")
    parser.add_argument("--port", metavar="N", help="of the page (default 7860)")
    parser.add_argument("--explain", metavar="DIR", help="of one slide, write there which tiles each word comes from")
    parser.add_argument("--thumbnail", metavar="FILE", help="with --explain: a PNG or JPEG of the whole slide")
    parser.add_argument("--thumbnail_scale", metavar="F", help="pixels of the slide at full size per pixel of the "
                        "thumbnail (default: as if the tiles reached to its far edge)")
    parser.add_argument("--text", nargs="+", action="extend", default=[],
                        help="texts to score: cosine similarity, and of several texts the probability of each")
    parser.add_argument("--labels_file", help="JSON {id: text}: caption only these slides, and score the captions")
    parser.add_argument("--findings", nargs="+", action="extend", default=[], metavar="NAME",
                        help="score findings too: breast, gastric, colorectal, or YAML files of your own")
    parser.add_argument("--prompts", metavar="FILE", help="YAML or JSON {class: [prompt, ...]}: classify zero-shot")
    parser.add_argument("--classes_file", metavar="FILE", help="JSON {id: class}: score the classification")
    parser.add_argument("--nearest", type=_number(int, 0, 1000), default=0, metavar="K",
                        help="show the texts of the K training slides that lie nearest (needs nearest.pt of the run)")
    parser.add_argument("--abstain_below", type=_number(float, 0, 1), default=0.0, metavar="P",
                        help="give no caption whose confidence is below P (default 0: always give one)")
    parser.add_argument("--split", choices=("all", "val", "test"), default="all",
                        help="val, test: only the slides of this side when the checkpoint was trained")
    parser.add_argument("--output", metavar="FILE", help="write a record per slide: .jsonl, .json or .csv")
    parser.add_argument("--prism", metavar="WEIGHTS", help="where Prism's weights are, if moved since training; "
                        "with --prism_only paige-ai/Prism if not given")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    for field in dataclasses.fields(GenerationOptions):
        switch = {"nargs": "?", "const": "true"} if isinstance(field.default, bool) else {}
        parser.add_argument(f"--{field.name}", metavar=field.name.upper(), **switch,
                            help=f"{field.metadata['help']} (default {field.default})".replace("%", "%%"))
    add_debug_flag(parser)


def refuse_unused(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Raises UserError for a flag of inference.py that would be ignored."""
    mode = "serve" if args.serve else "explain" if args.explain is not None else "caption"
    for name, modes in _TAKEN_BY.items():
        if mode not in modes and getattr(args, name) != parser.get_default(name):
            why = f"without --{modes[0]}" if mode == "caption" else f"with --{mode}"
            raise UserError(f"--{name}", f"does nothing {why}", "leave it out")


def _number(kind: type, low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not from {low} to {high}")
        return value
    parse.__name__ = "number"  # argparse names it in its message
    return parse


def options_from_flags(args: argparse.Namespace) -> GenerationOptions:
    options = GenerationOptions()
    for field in dataclasses.fields(options):
        if (value := getattr(args, field.name)) is not None:
            options.set(field.name, value)
    return options.check()


def _underscored(arg: str) -> str:
    if not arg.startswith("--"):
        return arg
    name, equals, value = arg.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value
