"""Command-line flags of the scripts. Flags only set config keys; defaults and checks are those of the schema."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
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
_OF_YAML_SCRIPT = ("--config", "--check")  # flags that the other training script has
_UNKNOWN = re.compile(r"(?:^|(?<=\s))(--\w+)(?:=| +(?!--)|(?= |$))(\S*)")  # a flag and its value, if it has one
_SIMILAR = 0.7  # of two names of flags: --beams and --num_beams are, --lr and --help are not


class Parser(argparse.ArgumentParser):
    """argparse whose errors are a `UserError` (one line), and which accepts `--batch-size` for `--batch_size`."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: None = None) -> argparse.Namespace:  # type: ignore[override]
        """As argparse, after replacing dashes in flag names by underscores."""
        self._given = [_underscored(a) for a in (sys.argv[1:] if args is None else args)]
        return super().parse_args(self._given, namespace)

    def error(self, message: str) -> None:  # type: ignore[override]
        """Raises UserError in place of exiting, with the flags that unknown ones may stand for."""
        command = self.prog if " " in self.prog else f"python {self.prog}"  # a script; else python -m, or prism-coca
        see_help = f"see {command} --help"
        hints = filter(None, [self._meant_by(flag, value) for flag, value in self._unknown(message)])
        hint = ", ".join(dict.fromkeys(hints))
        raise UserError(self.prog, message, f"{hint} ({see_help})" if hint else see_help)

    def _unknown(self, message: str) -> list[tuple[str, str]]:
        """[(flag, value)] that argparse does not know; it names none where a required one lacks."""
        kind, _, words = message.partition("unrecognized arguments: ")
        if not kind:
            return _UNKNOWN.findall(words)
        given = [arg.partition("=")[0] for arg in self._given]
        return [(flag, "") for flag in _OF_YAML_SCRIPT if flag in given and "required" in kind]

    def _meant_by(self, flag: str, value: str) -> str | None:
        """What to write in place of an unknown flag: another one, or --set with the config key of that name."""
        flags = [name for name in self._option_string_actions if name.startswith("--")]
        keys = _keys_by_flag() if "--set" in flags else {}
        if flag in _OF_YAML_SCRIPT and keys and flag not in flags:
            return f"{flag} is a flag of train_with_config.py"
        near = difflib.get_close_matches(flag, [*flags, *keys], n=1, cutoff=_SIMILAR)
        if not near:
            return None
        if near[0] in flags:
            return f"did you mean {near[0]}?"
        return _setting_of(keys[near[0]], flags) + (value or "VALUE")


def _setting_of(key: str, flags: Sequence[str]) -> str:
    """What sets a config key on a command line that has these flags, up to its value."""
    for flag, of in TRAIN_FLAGS.items():
        if of == key and flag in flags:
            return f"write {flag} "
    return f"write --set {key}="


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


def _keys_by_flag() -> dict[str, str]:
    """{flag that people may try: `section.key`}: the names of all config keys, and the flags of train_finetune.py."""
    config = Config()
    keys = {f"--{name}": f"{section.name}.{name}" for section in dataclasses.fields(config)
            for name in type(getattr(config, section.name)).__dataclass_fields__}
    return keys | TRAIN_FLAGS


def _underscored(arg: str) -> str:
    if not arg.startswith("--"):
        return arg
    name, equals, value = arg.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value
