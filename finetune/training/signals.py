"""SIGINT and SIGTERM during training: recorded, and handled after the current step."""

from __future__ import annotations

import os
import signal

from ..checkpoints.format import LAST
from ..common.distributed import World
from ..common.log import logger
from ..common.signal_handlers import SignalHandlers


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

    def any_received(self) -> bool:
        """Whether a process of the run got a signal; the same on all ranks, which call this together."""
        return self.world.any(self.received is not None)

    def _note(self, number: int, _: object) -> None:
        if self.received is not None and self.world.size == 1:
            os._exit(128 + number)
        self.received = number
        logger.warning("%s: finishing the step, then saving to %s", signal.Signals(number).name, LAST)
