"""SIGINT and SIGTERM while captions are written: what is there is whole, and the job ends at once."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

from ..common.signal_handlers import SignalHandlers


class Interrupted(KeyboardInterrupt):
    """The process got a signal. exit_code: 128 + its number."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.name, self.exit_code = signal.Signals(number).name, 128 + number


class StopSignals(SignalHandlers):
    """Context manager in which SIGINT and SIGTERM raise `Interrupted`; a second one ends the process.

    Nothing needs to be saved then, as records are written when they are made: a scheduler may kill soon after.
    """

    def __init__(self) -> None:
        super().__init__(self._note)
        self._received: int | None = None
        self._is_writing = False

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Work that a signal must not tear: `Interrupted` is raised after it."""
        self._is_writing = True
        try:
            yield
        finally:
            self._is_writing = False
        if self._received is not None:
            raise Interrupted(self._received)

    def _note(self, number: int, _: object) -> None:
        if self._received is not None:
            os._exit(128 + number)
        self._received = number
        if not self._is_writing:
            raise Interrupted(number)
