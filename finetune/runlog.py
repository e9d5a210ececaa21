"""What a run says: console and logs/training.log, progress bars, metrics.jsonl. Never a label text or a caption."""

from __future__ import annotations

import contextlib
import json
import logging
import logging.handlers
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from .errors import UserError, printable

if TYPE_CHECKING:
    from .loop import TrainState

logger = logging.getLogger("prism_coca")


class _Printable(logging.Formatter):
    """One line per record, whatever a file name or an id holds."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _TqdmHandler(logging.Handler):
    """Writes above a running progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody listens any more: no reason to lose a run
            tqdm.write(self.format(record), file=sys.stderr)


class _FileHandler(logging.FileHandler):
    """training.log is a convenience: a full disk is told once, by the checkpoint that cannot be saved."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


def log_to_console(quiet: bool = False) -> logging.handlers.MemoryHandler:
    """Send log lines to stderr, and keep them until `log_to_file` knows the file. quiet: neither lines nor bars, for
    all processes of a run but the first."""
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    console, memory = _TqdmHandler(), logging.handlers.MemoryHandler(100_000, flushLevel=logging.CRITICAL + 1,
                                                                     flushOnClose=False)
    console.setFormatter(_Printable("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    logger.setLevel(logging.CRITICAL if quiet else logging.INFO)
    logger.propagate = False
    logger.addHandler(console)
    logger.addHandler(memory)
    return memory


def log_to_file(memory: logging.handlers.MemoryHandler, folder: Path) -> None:
    """Append the kept and all further lines to `folder`/training.log."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _FileHandler(folder / "training.log", encoding="utf-8")
    except OSError as error:
        raise UserError(folder, f"cannot be written ({error.strerror})", "set training.log_dir") from None
    file.setFormatter(_Printable("%(asctime)s %(levelname)s %(message)s"))
    memory.setTarget(file)
    memory.flush()
    logger.removeHandler(memory)
    logger.addHandler(file)


def progress(*args: Any, **options: Any) -> tqdm:
    """A progress bar, unless stderr is no terminal or this process is quiet."""
    return tqdm(*args, **options, disable=None if logger.isEnabledFor(logging.INFO) else True)


class RunLog:
    """Progress bars, one console line and one metrics.jsonl line per epoch.

    metrics.jsonl holds what a resumed run repeats bit for bit; times and rates go to the log only.
    """

    def __init__(self, folder: Path | None, quiet: Iterable[str] = ()) -> None:
        """folder: of the run; None where nothing is to be written. quiet: scores for which a line of the log has no
        room; metrics.jsonl has them all."""
        self.path, self._quiet = folder / "metrics.jsonl" if folder else None, frozenset(quiet)
        self._started, self._slides = time.monotonic(), 0.0

    def truncate(self, length: int) -> None:
        """Drop the lines after the state that was resumed: they will be written again."""
        size = self.path.stat().st_size if self.path.exists() else 0
        if size < length:  # truncating would fill it up with zero bytes
            logger.warning("%s has lost %d bytes of its first %d: it was changed by somebody else", self.path,
                           length - size, length)
        elif size > length:
            os.truncate(self.path, length)

    def bar(self, items: Iterable, total: int, name: str) -> tqdm:
        return progress(items, name, total, leave=False, unit="batch")

    def epoch_bar(self, state: TrainState, total: int, epochs: int) -> tqdm:
        self._started, self._slides = time.monotonic(), 0.0
        return progress(desc=f"epoch {state.epoch + 1}/{epochs}", total=total, initial=state.batches_done, leave=False,
                        unit="step")

    def step(self, bar: tqdm, report: dict[str, float]) -> None:
        self._slides += report["slides"]
        bar.set_postfix(loss=f"{report['loss']:.3f}", lr=f"{report['lr']:.2e}", refresh=False)
        bar.update()

    def epoch(self, state: TrainState, scores: dict[str, float], lr: float, is_best: bool) -> None:
        """Log a finished epoch, append it to metrics.jsonl and note the new length of that file in `state`."""
        record: dict[str, Any] = {"epoch": state.epoch, "step": state.step, "lr": lr, **scores, "best": is_best}
        if state.skipped:
            record["skipped_steps"] = state.skipped
        seconds = time.monotonic() - self._started
        values = "  ".join(f"{name} {value:.4f}" for name, value in scores.items() if name not in self._quiet)
        logger.info("epoch %d  %s  lr %.2e  %.1f slides/s%s", state.epoch, values, lr,
                    self._slides / max(seconds, 1e-9), "  best" if is_best else "")
        if self.path is None:
            return
        try:
            with open(self.path, "ab") as file:
                file.write(json.dumps(record).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
                state.metrics_bytes = file.tell()
        except OSError as error:
            raise UserError(self.path, f"cannot be written ({error.strerror})",
                            "free some space, then --resume auto; the last checkpoint is good") from None
