"""SIGINT and SIGTERM during training: answered after the current step, or at once where nothing would be lost."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

from ..checkpoints.format import LAST
from ..common.distributed import World
from ..common.log import logger
from ..common.signal_handlers import SignalHandlers


class StopRequested(BaseException):
    """Ends what is `interruptible`. Like KeyboardInterrupt no Exception, which code on the way might catch."""


class StopSignals(SignalHandlers):
    """SIGINT and SIGTERM request a stop after the current step; a second one ends the process at once (except under
    torchrun, where the terminal and torchrun may both send the signal, and torchrun kills after 30 s anyway).

    Attributes:
        received: The number of the signal that this process got, or None.
    """

    def __init__(self, world: World) -> None:
        super().__init__(self._note)
        self.world = world
        self.received: int | None = None
        self._ends_at_once = False

    def any_received(self) -> bool:
        """Whether a process of the run got a signal; the same on all ranks, which call this together."""
        return self.world.any(self.received is not None)

    def raise_if_any(self) -> None:
        """Raise StopRequested on all ranks, which call this together, if a process of the run got a signal."""
        if self.any_received():
            raise StopRequested

    @contextlib.contextmanager
    def interruptible(self, *, together: bool = False) -> Iterator[None]:
        """A block that a signal ends at once, by StopRequested: what it has done by then is kept or can be done again.

        Args:
            together: The ranks meet in collectives in the block. Then none may leave it alone, and they ask
                `raise_if_any` in between.
        """
        if together:
            self.raise_if_any()
        elif self.received is not None:
            raise StopRequested
        self._ends_at_once = not together or self.world.size == 1
        try:
            yield
        finally:
            self._ends_at_once = False

    def _note(self, number: int, _: object) -> None:
        if self.received is not None and self.world.size == 1:
            os._exit(128 + number)
        self.received = number
        name = signal.Signals(number).name
        if self._ends_at_once:
            logger.warning("%s: stopping here, where all that was trained is saved", name)
            raise StopRequested
        logger.warning("%s: finishing the step, then saving to %s", name, LAST)
