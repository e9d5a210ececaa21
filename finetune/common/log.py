"""Logging to the console, above a progress bar if there is one, and to training.log.

The console has notices and warnings: what a person at the terminal wants to see. The file has all lines, with times.
"""

from __future__ import annotations

import contextlib
import logging.handlers
import sys
from pathlib import Path

from .errors import UserError
from .terminal import styled, width_of, wrapped
from .visible import visible

logger = logging.getLogger("prism_coca")
NOTICE = (logging.INFO + logging.WARNING) // 2  # a level of its own, between details and warnings
_STYLES = {logging.WARNING: "yellow"}  # of the name of a level, else red


def notice(message: str, *values: object, style: str = "", indent: int = 0) -> None:
    """Log a line that the console shows.

    Args:
        message: As in `logging`, with `values` for its placeholders.
        style: bold, red, green or yellow on a terminal.
        indent: Spaces before the rest of a line that is too long for the terminal.
    """
    logger.log(NOTICE, message, *values, extra={"style": style, "indent": indent})


class _Printable(logging.Formatter):
    """One printable line per record, even with control characters in file names or ids."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


class _ForTerminal(_Printable):
    """As wide as the terminal, in colour where it has colours; only warnings say what level they are."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno < logging.WARNING:
            text = wrapped(text, width_of(sys.stderr), getattr(record, "indent", 0))
            return styled(text, getattr(record, "style", ""), sys.stderr)
        text = wrapped(f"{record.levelname} {text}", width_of(sys.stderr), indent=2)
        level = styled(record.levelname, _STYLES.get(record.levelno, "red"), sys.stderr)
        return level + text.removeprefix(record.levelname)


class _TqdmHandler(logging.Handler):
    """Writes above a running progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm  # not for --help

        with contextlib.suppress(OSError, ValueError):  # a closed terminal is no reason to lose a run
            tqdm.write(self.format(record), file=sys.stderr)


class _FileHandler(logging.FileHandler):
    """Ignores a full disk: the checkpoint that cannot be saved reports it."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


def log_to_console(quiet: bool = False, details: bool = False) -> logging.handlers.MemoryHandler:
    """Send notices and warnings to stderr, and keep all lines in memory for `log_to_file`.

    Args:
        quiet: Neither lines nor progress bars, for all ranks but the first.
        details: Send all lines to stderr: where no file has them.

    Returns:
        The handler that keeps the lines.
    """
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    memory = logging.handlers.MemoryHandler(100_000, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
    console = _TqdmHandler()
    console.setFormatter(_ForTerminal())
    console.setLevel(logging.INFO if details else NOTICE)
    logging.addLevelName(NOTICE, "NOTICE")
    logger.setLevel(logging.CRITICAL if quiet else logging.INFO)
    logger.propagate = False
    logger.addHandler(console)
    logger.addHandler(memory)
    return memory


def log_to_file(memory: logging.handlers.MemoryHandler, folder: Path) -> list[logging.LogRecord]:
    """Append the kept and all further lines to `folder`/training.log. Returns the kept records. Raises UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _FileHandler(folder / "training.log", encoding="utf-8")
    except OSError as error:
        raise UserError(folder, f"cannot be written ({error.strerror})", "set training.log_dir") from None
    file.setFormatter(_Printable("%(asctime)s %(levelname)s %(message)s"))
    memory.setTarget(file)
    earlier = list(memory.buffer)
    memory.flush()
    logger.removeHandler(memory)
    logger.addHandler(file)
    return earlier
