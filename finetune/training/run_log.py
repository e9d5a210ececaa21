"""The output of a running training: console lines and progress bars; metrics.jsonl, events.jsonl and the report in the
run folder; experiment trackers. Only the report contains label texts and captions."""

from __future__ import annotations

import contextlib
import logging.handlers
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from ..common.log import logger
from ..common.progress import Progress, progress
from ..common.run_folder import EVENTS, METRICS, REPORT
from ..common.visible import json_text, visible
from .state import TrainState
from .trackers import Tracker


class RunLog:
    """Progress bars and, after each epoch, a console line, a record in metrics.jsonl and a new report.

    metrics.jsonl holds what a resumed run reproduces bit for bit; times, rates and warnings go to events.jsonl.
    """

    def __init__(self, folder: Path | None, trackers: Sequence[Tracker] = (), quiet: Iterable[str] = (),
                 write_report: Callable[[Path], object] | None = None, marks_best: bool = True) -> None:
        """
        Args:
            folder: Of the run; None on a rank that writes nothing.
            trackers: Also receive the record of each epoch.
            quiet: Scores left out of the console line.
            write_report: Writes the report from the files in the run folder.
            marks_best: Whether the console line says that an epoch is the best so far.
        """
        self.folder, self.trackers, self._quiet = folder, trackers, frozenset(quiet)
        self.path = folder / METRICS if folder else None
        self._write_report, self._marks_best = write_report, marks_best
        self._events = _EventFile(folder / EVENTS if folder else None)
        self._start_clock()

    def start(self, earlier: Iterable[logging.LogRecord], about: dict[str, str]) -> None:
        """Start recording warnings in events.jsonl.

        Args:
            earlier: Log records from before the run folder was open.
            about: Data, model and versions, for the report.
        """
        self._events.append("start", about=about)
        for record in earlier:
            if record.levelno >= self._events.level:
                self._events.emit(record)
        logger.addHandler(self._events)

    def finish(self, status: str) -> None:
        """Note how the run ended, write the last report and close the trackers."""
        if self.path is None:
            return
        self._events.append("end", status=status)
        self._update_report()
        logger.removeHandler(self._events)
        self._for_each_tracker(lambda tracker: tracker.close())

    def truncate(self, length: int) -> None:
        """Drop the lines of metrics.jsonl after the first `length` bytes: a resumed run writes them again."""
        size = self.path.stat().st_size if self.path.exists() else 0
        if size < length:  # truncating would pad it with zero bytes
            logger.warning("%s has lost %d bytes of its first %d: was it edited?", self.path,
                           length - size, length)
        elif size > length:
            os.truncate(self.path, length)

    def epoch_bar(self, state: TrainState, total: int, epochs: int) -> Progress:
        """The progress bar of the running epoch, and the start of its clock. total: steps of the epoch."""
        self._start_clock()
        return progress(None, f"epoch {state.epoch + 1}/{epochs}", total, "step", initial=state.batches_done)

    def step(self, bar: Progress, report: dict[str, float]) -> None:
        """Move the progress bar on by a step."""
        self._num_slides += report["num_slides"]
        self._training_seconds = time.monotonic() - self._epoch_start
        bar.set_postfix_str(f"loss={report['loss']:.3f}, lr={report['lr']:.2e}", refresh=False)
        bar.update()

    def epoch(self, state: TrainState, scores: dict[str, float], lr: float, is_best: bool) -> None:
        """Log a finished epoch everywhere, and note the new length of metrics.jsonl in `state`."""
        record: dict[str, Any] = {"epoch": state.epoch, "step": state.step, "lr": lr, **scores, "best": is_best}
        if state.skipped:
            record["skipped_steps"] = state.skipped
        seconds = time.monotonic() - self._epoch_start
        rate = self._num_slides / max(self._training_seconds, 1e-9)  # validation does not count
        mark = "  best" if is_best and self._marks_best else ""
        self._log_line(state.epoch, scores, f"lr {lr:.2e}  {rate:.1f} slides/s{mark}")
        if self.path is None:
            return
        state.metrics_bytes = _append_durably(self.path, record)
        self._events.append("epoch", epoch=state.epoch, seconds=seconds, slides_per_second=rate, **_peak_memory())
        self._for_each_tracker(lambda tracker: tracker.log(record | {"slides_per_second": rate}, state.epoch))
        self._update_report()

    def _log_line(self, epoch: int, scores: dict[str, float], rest: str) -> None:
        shown = [f"{name} {value:.4f}" for name, value in scores.items() if name not in self._quiet]
        logger.info("epoch %d  %s  %s", epoch, "  ".join(shown), rest)

    def _start_clock(self) -> None:
        self._epoch_start = time.monotonic()
        self._training_seconds = 0.0  # from the start of the epoch to the end of its last step
        self._num_slides = 0.0

    def _for_each_tracker(self, call: Callable[[Tracker], None]) -> None:
        """A tracker that fails must not end the run: it is dropped with one warning."""
        for tracker in list(self.trackers):
            try:
                call(tracker)
            except Exception as error:
                self.trackers = [other for other in self.trackers if other is not tracker]
                logger.warning("training.report_to: %s failed, its curves end here (%s: %s)",
                               type(tracker).__name__.strip("_"), type(error).__name__, error)

    def _update_report(self) -> None:
        """A report that cannot be written must not end the run."""
        if self._write_report is None:
            return
        try:
            self._write_report(self.folder)
        except Exception as error:
            logger.warning("%s could not be written (%s: %s)", REPORT, type(error).__name__, error)


class _EventFile(logging.Handler):
    """events.jsonl: starts, ends and warnings of a run, and of each epoch what a resumed run does not repeat.

    It is only read by the report, so an event that cannot be written is dropped.
    """

    def __init__(self, path: Path | None) -> None:
        super().__init__(logging.WARNING)
        self.path = path

    def emit(self, record: logging.LogRecord) -> None:
        self.append("warning", text=visible(record.getMessage()))

    def append(self, kind: str, **values: Any) -> None:
        line = json_text({"kind": kind, "time": time.strftime("%Y-%m-%d %H:%M:%S"), **values})
        with contextlib.suppress(OSError), open(self.path, "ab") as file:
            if kind == "start" and file.tell() > 0:
                file.write(b"\n")  # ends a line that a killed run left incomplete
            file.write(line.encode() + b"\n")


def _append_durably(path: Path, record: dict[str, Any]) -> int:
    """Append a line of JSON, wait until it is on the disk, and return the new length of the file in bytes."""
    try:
        with open(path, "ab") as file:
            file.write(json_text(record).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
            return file.tell()
    except OSError as error:
        raise UserError(path, f"cannot be written ({error.strerror})",
                        "free some space, then --resume auto; the last checkpoint is good") from None


def _peak_memory() -> dict[str, float]:
    """Peak memory so far in GB: of this process, where the system knows it, and on the GPU."""
    peaks = {}
    with contextlib.suppress(ImportError):  # Windows has no resource
        import resource

        unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kB elsewhere
        peaks["memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        peaks["gpu_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return peaks
