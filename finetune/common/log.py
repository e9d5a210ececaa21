"""Logging to the console, above a progress bar if there is one, and to training.log."""

from __future__ import annotations

import contextlib
import logging.handlers
import sys
from pathlib import Path

from .errors import UserError
from .visible import visible

logger = logging.getLogger("prism_coca")


class _Printable(logging.Formatter):
    """One printable line per record, even with control characters in file names or ids."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


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


def log_to_console(quiet: bool = False) -> logging.handlers.MemoryHandler:
    """Send log lines to stderr, and keep them in memory for `log_to_file`.

    Args:
        quiet: Neither lines nor progress bars, for all ranks but the first.

    Returns:
        The handler that keeps the lines.
    """
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    memory = logging.handlers.MemoryHandler(100_000, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
    console = _TqdmHandler()
    console.setFormatter(_Printable("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
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
