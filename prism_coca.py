"""The command `prism-coca` that `pip install .` brings: it runs a script, or a module of finetune."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import pkgutil
import re
import sys
from pathlib import Path

import finetune
from finetune.common.errors import UserError, run_script, say

_SCRIPTS = {"train": "train_finetune", "train-config": "train_with_config", "caption": "inference"}


def modules() -> dict[str, str]:
    """{command: the module whose `main` it runs}: the three scripts, and what `python -m finetune.NAME` runs."""
    tools: dict[str, str] = {}
    for module in pkgutil.iter_modules(finetune.__path__):
        name = f"finetune.{module.name}"
        if module.ispkg:  # a room that can be run, such as templates
            name += ".__main__"
        if not module.name.startswith("_") and importlib.util.find_spec(name):
            tools[module.name.replace("_", "-")] = name
    return _SCRIPTS | tools


def main() -> int:
    """The command line of `prism-coca`; what follows the command is that of the script."""
    known = modules()
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        _list(known)
        return 0
    command = sys.argv[1]
    if command not in known:
        raise UserError("prism-coca", f"no command {command!r}", f"give one of {', '.join(known)}")
    sys.argv = [f"prism-coca {command}", *sys.argv[2:]]
    sys.path.append(os.getcwd())  # for training.loss=my_losses:focal, as beside the scripts; last: it hides no library
    return importlib.import_module(known[command]).main()


def _list(known: dict[str, str]) -> None:
    say("usage: prism-coca COMMAND ...   (prism-coca COMMAND --help: its options)", "")
    for command, module in known.items():
        say(f"  {command:14}{_summary(module)}")


def _summary(module: str) -> str:
    """What a module's docstring says first; read without running it, as some import torch."""
    spec = importlib.util.find_spec(module)
    text = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) if spec and spec.origin else None
    first = (text or " ").splitlines()[0].partition(": python ")[0]
    return re.split(r"[;:] ", first)[0]


def console() -> None:
    """What the installed command calls."""
    run_script(main)


if __name__ == "__main__":
    console()
