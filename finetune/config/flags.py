"""Command-line flags of the scripts. Flags only set config keys; defaults and checks are those of the schema."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from ..common.errors import UserError
from .schema import Config, apply_overrides

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


class Parser(argparse.ArgumentParser):
    """argparse whose errors are a `UserError` (one line), and which accepts `--batch-size` for `--batch_size`."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: None = None) -> argparse.Namespace:  # type: ignore[override]
        """As argparse, after replacing dashes in flag names by underscores."""
        args = sys.argv[1:] if args is None else args
        return super().parse_args([_underscored(a) for a in args], namespace)

    def error(self, message: str) -> None:  # type: ignore[override]
        """Raises UserError in place of exiting."""
        raise UserError(self.prog, message, f"see python {self.prog} --help")


def add_common_flags(parser: argparse.ArgumentParser) -> None:
    """--set, --resume and --debug of the two training scripts."""
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="section.key=value",
                        help="set any config key, for example --set training.seed=1 model.dim=256")
    parser.add_argument("--resume", metavar="PATH|auto",
                        help="resume from this checkpoint; auto: from last_model.pth in the run folder if it exists")
    add_debug_flag(parser)


def add_debug_flag(parser: argparse.ArgumentParser) -> None:
    """--debug, which `errors.run_script` reads from the command line."""
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def help_of(field: dataclasses.Field) -> str:
    """The help line of a field made by `values.setting`, with its default if it has one worth showing."""
    text = field.metadata["help"]
    if field.default not in ("", (), None) and field.default is not False:
        text += f" (default {field.default})"
    return text.replace("%", "%%")  # argparse formats it


def add_train_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of train_finetune.py, with the help and default of the config key behind each."""
    config = Config()
    for flag, key in TRAIN_FLAGS.items():
        section, name = key.split(".")
        field = type(getattr(config, section)).__dataclass_fields__[name]
        parser.add_argument(flag, metavar=name.upper(), required=field.default == "", help=help_of(field))


def config_from_flags(args: argparse.Namespace) -> Config:
    """The config of train_finetune.py: defaults < flags < --set. Raises UserError."""
    config = Config()
    for flag, key in TRAIN_FLAGS.items():
        value: Any = getattr(args, flag[2:])
        if value is not None:
            config.set(key, value, flag)
    return apply_overrides(config, args.set)


def _underscored(arg: str) -> str:
    if not arg.startswith("--"):
        return arg
    name, equals, value = arg.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value
