"""What a run says: console and logs/training.log, progress bars, and in the run folder metrics.jsonl, events.jsonl and
report.html. Lines and files other than the report never hold a label text or a caption."""

from __future__ import annotations

import contextlib
import json
import logging.handlers
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..common.errors import UserError, printable
from ..common.log import logger
from ..common.progress import progress
from ..common.run_folder import EVENTS, METRICS, NAME
from ..pages.run_report import write_report
from .state import TrainState
from .trackers import Tracker


class _Events(logging.Handler):
    """events.jsonl: starts, warnings, and of each epoch what a resumed run does not repeat. A convenience, too."""

    def __init__(self, path: Path | None) -> None:
        super().__init__(logging.WARNING)
        self.path = path

    def emit(self, record: logging.LogRecord) -> None:
        self.note("warning", text=printable(record.getMessage()))

    def note(self, kind: str, **values: Any) -> None:
        line = json.dumps({"kind": kind, "time": time.strftime("%Y-%m-%d %H:%M:%S"), **values})
        with contextlib.suppress(OSError), open(self.path, "ab") as file:
            file.write(b"\n" * (kind == "start" and file.tell() > 0) + line.encode() + b"\n")  # after a cut line


class RunLog:
    """Progress bars; per epoch a line on the console, one in metrics.jsonl, a new report.html, and what trackers get.

    metrics.jsonl holds what a resumed run repeats bit for bit; times, rates and warnings go to events.jsonl.
    """

    def __init__(self, folder: Path | None, trackers: Sequence[Tracker] = (), quiet: Iterable[str] = ()) -> None:
        """folder: of the run; None where nothing is to be written. quiet: scores for which a line of the log has no
        room; the files and trackers have them all."""
        self.folder, self.trackers, self._quiet = folder, trackers, frozenset(quiet)
        self.path = folder / METRICS if folder else None
        self._started, self._trained, self._slides = time.monotonic(), 0.0, 0.0
        self._events = _Events(folder / EVENTS if folder else None)

    def start(self, earlier: Iterable[logging.LogRecord], about: dict[str, str]) -> None:
        """From here on warnings are kept for the report, with the `earlier` ones. about: what is trained on what."""
        self._events.note("start", about=about)
        for record in earlier:
            if record.levelno >= self._events.level:
                self._events.emit(record)
        logger.addHandler(self._events)

    def finish(self, status: str) -> None:
        if self.path is None:
            return
        self._events.note("end", status=status)
        self._report()
        logger.removeHandler(self._events)
        self._track(lambda tracker: tracker.close())

    def truncate(self, length: int) -> None:
        """Drop the lines after the state that was resumed: they will be written again."""
        size = self.path.stat().st_size if self.path.exists() else 0
        if size < length:  # truncating would fill it up with zero bytes
            logger.warning("%s has lost %d bytes of its first %d: it was changed by somebody else", self.path,
                           length - size, length)
        elif size > length:
            os.truncate(self.path, length)

    def bar(self, items: Iterable, total: int, name: str) -> tqdm:
        return progress(items, name, total, "batch")

    def epoch_bar(self, state: TrainState, total: int, epochs: int) -> tqdm:
        self._started, self._trained, self._slides = time.monotonic(), 0.0, 0.0
        return progress(None, f"epoch {state.epoch + 1}/{epochs}", total, "step", initial=state.batches_done)

    def step(self, bar: tqdm, report: dict[str, float]) -> None:
        self._slides, self._trained = self._slides + report["slides"], time.monotonic() - self._started
        bar.set_postfix(loss=f"{report['loss']:.3f}", lr=f"{report['lr']:.2e}", refresh=False)
        bar.update()

    def epoch(self, state: TrainState, scores: dict[str, float], lr: float, is_best: bool) -> None:
        """Log a finished epoch, append it to metrics.jsonl, note the new length of that file in `state`, report."""
        record: dict[str, Any] = {"epoch": state.epoch, "step": state.step, "lr": lr, **scores, "best": is_best}
        if state.skipped:
            record["skipped_steps"] = state.skipped
        seconds = time.monotonic() - self._started
        values = "  ".join(f"{name} {value:.4f}" for name, value in scores.items() if name not in self._quiet)
        rate = self._slides / max(self._trained, 1e-9)  # of training: validation is not its work
        logger.info("epoch %d  %s  lr %.2e  %.1f slides/s%s", state.epoch, values, lr, rate,
                    "  best" if is_best else "")
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
        self._events.note("epoch", epoch=state.epoch, seconds=seconds, slides_per_second=rate, **_peak_memory())
        self._track(lambda tracker: tracker.log(record | {"slides_per_second": rate}, state.epoch))
        self._report()

    def _track(self, tell: Callable[[Tracker], None]) -> None:
        """Curves elsewhere are no reason to lose a run: a tracker that fails is said once and left out from then on."""
        for tracker in list(self.trackers):
            try:
                tell(tracker)
            except Exception as error:
                self.trackers = [t for t in self.trackers if t is not tracker]
                logger.warning("training.report_to: %s failed, its curves end here (%s: %s)",
                               type(tracker).__name__.strip("_"), type(error).__name__, error)

    def _report(self) -> None:
        """A picture of the run is never a reason to lose it."""
        try:
            write_report(self.folder)
        except Exception as error:
            logger.warning("%s could not be written (%s: %s)", NAME, type(error).__name__, error)


def _peak_memory() -> dict[str, float]:
    """Most memory so far in GB: of this process, where the system tells, and on the GPU."""
    found = {}
    with contextlib.suppress(ImportError):  # Windows has no resource
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found["memory_gb"] = peak * (1 if sys.platform == "darwin" else 1024) / 1e9  # bytes there, kB elsewhere
    if (torch := sys.modules.get("torch")) and torch.cuda.is_available():
        found["gpu_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return found
