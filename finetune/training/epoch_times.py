"""How long an epoch takes: an estimate from the first steps, then the epochs that were measured."""

from __future__ import annotations

import time

_STEPS = 10  # measured before the estimate; the step before them allocates memory, compiles and fills caches
_SECONDS = 60.0  # of slow steps fewer are enough


class EpochTimes:
    """The clock of the epochs of this process. A step costs one comparison and the reading of the clock."""

    def __init__(self) -> None:
        self._per_epoch: list[float] = []  # seconds of each whole epoch, its validation included
        self._num_steps = 0  # of the first epoch, until the estimate is given
        self._has_estimate = False
        self._is_whole = False
        self.begin(whole=False)

    def begin(self, *, whole: bool) -> None:
        """An epoch begins. whole: not in its middle, where an interrupted run goes on."""
        self._start = self._last = self._first = time.monotonic()
        self._is_whole = whole

    def step(self) -> float | None:
        """A step is done. Returns seconds per step, once in a run: when enough of them are measured."""
        self._last = time.monotonic()
        if self._has_estimate:
            return None
        self._num_steps += 1
        if self._num_steps == 1:
            self._first = self._last
            return None
        measured, seconds = self._num_steps - 1, self._last - self._first
        if measured < _STEPS and seconds < _SECONDS:
            return None
        self._has_estimate = True
        return seconds / measured

    @property
    def training_seconds(self) -> float:
        """From the start of the epoch to the end of its last step: validation does not count."""
        return self._last - self._start

    def end(self) -> float:
        """An epoch is done, with its validation. Returns its seconds."""
        seconds = time.monotonic() - self._start
        if self._is_whole:
            self._per_epoch.append(seconds)
        self._has_estimate = True  # the line of the epoch says it from here on
        return seconds

    def left(self, epochs: int) -> float | None:
        """Seconds that so many further epochs will take; None before a whole one was measured."""
        if not self._per_epoch:
            return None
        return epochs * sum(self._per_epoch) / len(self._per_epoch)
