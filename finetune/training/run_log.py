"""The output of a running training: lines and progress bars on the terminal; training.log; metrics.jsonl, events.jsonl
and the report in the run folder; experiment trackers. Only the report contains label texts and captions."""

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
from ..common.log import logger, notice
from ..common.progress import Progress, clock_text, progress
from ..common.run_folder import EVENTS, METRICS, REPORT
from ..common.score_table import LAST_EPOCH, VALIDATION, label
from ..common.visible import json_text, visible
from .epoch_times import EpochTimes
from .state import TrainState
from .trackers import Tracker

_TELLING = f"{VALIDATION}rouge_l"  # on the terminal where no score is monitored, if captions are scored


class RunLog:
    """Progress bars and, after each epoch, a line on the terminal, one in training.log with all losses and the usual
    scores, a record in metrics.jsonl and a new report.

    metrics.jsonl holds what a resumed run reproduces bit for bit; times, rates and warnings go to events.jsonl.
    """

    def __init__(self, folder: Path | None, trackers: Sequence[Tracker] = (), quiet: Iterable[str] = (),
                 write_report: Callable[[Path], object] | None = None, monitor: str = "val_loss") -> None:
        """
        Args:
            folder: Of the run; None on a rank that writes nothing.
            trackers: Also receive the record of each epoch.
            quiet: Scores left out of the line of training.log.
            write_report: Writes the report from the files in the run folder.
            monitor: The score that selects the best epoch, or `last`.
        """
        self.folder, self.trackers, self._quiet = folder, trackers, frozenset(quiet)
        self.path = folder / METRICS if folder else None
        self._write_report, self._monitor = write_report, monitor
        self._events = _EventFile(folder / EVENTS if folder else None)
        self._times = EpochTimes()
        self._num_slides, self._epochs, self._to_come, self._steps = 0.0, 0, 0, 0

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
        self._num_slides, self._epochs, self._steps = 0.0, epochs, total
        self._to_come = epochs - state.epoch
        self._times.begin(whole=state.batches_done == 0)
        return progress(None, f"epoch {state.epoch + 1}/{epochs}", total, "step", initial=state.batches_done)

    def step(self, bar: Progress, report: dict[str, float]) -> None:
        """Move the progress bar on by a step."""
        self._num_slides += report["num_slides"]
        bar.set_postfix_str(f"loss={report['loss']:.3f}, lr={report['lr']:.2e}", refresh=False)
        bar.update()
        if (seconds := self._times.step()) is not None:
            epoch = self._steps * seconds
            notice("an epoch of %d steps takes about %s, the %d to come %s, and validation (%.3g s a step, measured on "
                   "the first)", self._steps, clock_text(epoch), self._to_come, clock_text(self._to_come * epoch),
                   seconds, indent=2)

    def epoch(self, state: TrainState, scores: dict[str, float], lr: float, is_best: bool) -> None:
        """Log a finished epoch everywhere, and note the new length of metrics.jsonl in `state`."""
        record: dict[str, Any] = {"epoch": state.epoch, "step": state.step, "lr": lr, **scores, "best": is_best}
        if state.skipped:
            record["skipped_steps"] = state.skipped
        rate = self._num_slides / max(self._times.training_seconds, 1e-9)
        seconds = self._times.end()
        is_marked = is_best and self._monitor != LAST_EPOCH
        self._show(state.epoch, scores, seconds, is_marked)
        self._log_line(state.epoch, scores, f"lr {lr:.2e}  {rate:.1f} slides/s{'  best' if is_marked else ''}")
        if self.path is None:
            return
        state.metrics_bytes = _append_durably(self.path, record)
        self._events.append("epoch", epoch=state.epoch, seconds=seconds, slides_per_second=rate, **_peak_memory())
        self._for_each_tracker(lambda tracker: tracker.log(record | {"slides_per_second": rate}, state.epoch))
        self._update_report()

    def _show(self, epoch: int, scores: dict[str, float], seconds: float, is_marked: bool) -> None:
        """The short line of an epoch for the terminal."""
        number = f"epoch {epoch:>{len(str(self._epochs))}}/{self._epochs}"
        names = dict.fromkeys(("loss", "val_loss", _TELLING if self._monitor == LAST_EPOCH else self._monitor))
        values = [f"{_short_label(name)} {scores[name]:.3f}" for name in names if name in scores]
        left = self._times.left(self._epochs - epoch)
        times = [clock_text(seconds)]
        if left:
            times.append(f"{clock_text(left)} left")
        mark = ["best"] if is_marked else []
        notice("%s", "  ".join([number, *values, *times, *mark]), style="green" if is_marked else "", indent=2)

    def _log_line(self, epoch: int, scores: dict[str, float], rest: str) -> None:
        shown = [f"{name} {value:.4f}" for name, value in scores.items() if name not in self._quiet]
        logger.info("epoch %d  %s  %s", epoch, "  ".join(shown), rest)

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


def _short_label(name: str) -> str:
    """Of a score of metrics.jsonl: `val` is the validation loss."""
    of_validation = name.removeprefix(VALIDATION)
    if of_validation == name:
        return label(name)
    return "val" if of_validation == "loss" else f"val {label(of_validation)}"


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
