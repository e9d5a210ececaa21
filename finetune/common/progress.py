"""The progress of long work: what, how far, rate, remaining time. A bar on a terminal, else a line in the log."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

from .log import logger, notice
from .terminal import is_terminal

_SECONDS = 50  # between two lines: one a minute at least, even if the machine is late
_SCALED_FROM = 100_000  # larger totals are shown as 1.2M


def progress(items: Iterable | None, name: str, total: int, unit: str, initial: int = 0) -> Progress:
    """The progress over `items`, or one updated by hand if None.

    A bar on terminals, but not in CI (some CI systems emulate a terminal); else lines in the log. Neither is shown by
    quiet processes of a run.
    """
    is_quiet = logger.level >= logging.CRITICAL
    if is_quiet or is_terminal(sys.stderr):
        return tqdm(items, name, total, unit=unit, leave=False, disable=is_quiet, initial=initial,
                    unit_scale=total >= _SCALED_FROM)
    return LoggedProgress(items, name, total, unit, initial)


class LoggedProgress:
    """Progress as log lines, one every `_SECONDS`, with the methods of tqdm that we use.

    A thread of its own writes them, as the next step may take hours. Work that is done sooner leaves no line.
    """

    def __init__(self, items: Iterable | None, name: str, total: int, unit: str, initial: int = 0) -> None:
        self._items = () if items is None else items
        self._name, self._total, self._unit = name, total, unit
        self._initial = self._done = initial
        self._postfix = ""
        self._start = time.perf_counter()
        self._finished = threading.Event()

    def __enter__(self) -> LoggedProgress:
        threading.Thread(target=self._write_lines, name="progress", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._finished.set()

    def __iter__(self) -> Iterator[Any]:
        with self:
            for item in self._items:
                yield item
                self.update()

    def update(self, count: int = 1) -> None:
        """Count further units of work as done."""
        self._done += count

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        """Show a text at the end of the line."""
        self._postfix = text

    def line(self) -> str:
        """Such as `encoding slides: 1.20M of 4.80M tiles (25 %), 85.3k tiles/s, 0:42 left, 21.0 slides/s`."""
        seconds = max(time.perf_counter() - self._start, 1e-9)
        parts = [f"{self._name}: {_number(self._done)} of {_number(self._total)} {self._unit}s "
                 f"({self._done / max(self._total, 1):.0%})"]
        rate = (self._done - self._initial) / seconds
        if rate:
            left = max(self._total - self._done, 0) / rate
            parts += [_describe_rate(rate, self._unit), f"{tqdm.format_interval(left)} left"]
        else:
            parts.append(f"after {tqdm.format_interval(seconds)}")
        return ", ".join([*parts, self._postfix] if self._postfix else parts)

    def _write_lines(self) -> None:
        while not self._finished.wait(_SECONDS):
            notice("%s", self.line(), indent=2)


Progress = tqdm | LoggedProgress


def clock_text(seconds: float) -> str:
    """Such as 0:07, 12:30 or 3:05:00."""
    return tqdm.format_interval(round(seconds)).removeprefix("0")


def _number(number: float) -> str:
    return tqdm.format_sizeof(number) if number >= _SCALED_FROM else f"{number:g}"


def _describe_rate(rate: float, unit: str) -> str:
    """Units a second, or seconds a unit if that is more."""
    if rate < 1:
        return f"{1 / rate:.1f} s/{unit}"
    return f"{_number(rate)} {unit}s/s" if rate >= _SCALED_FROM else f"{rate:.1f} {unit}s/s"
