"""SIGINT and SIGTERM during training: remembered, and acted on at the next step."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

from ..checkpoints.format import LAST
from ..common.distributed import World
from ..common.log import logger


class StopSignals:
    """SIGINT and SIGTERM ask for a stop after the running step; the second one ends the process at once (under torchrun
    it does not: there the same signal may come from the terminal and from torchrun, which kills after 30 s anyway)."""

    def __init__(self, world: World) -> None:
        self.world = world

    def __enter__(self) -> StopSignals:
        self.received: int | None = None
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():  # elsewhere Python does not allow handlers
            self._before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        if self.received is not None and self.world.size == 1:
            os._exit(128 + number)
        self.received = number
        logger.warning("%s: finishing the step, then saving to %s", signal.Signals(number).name, LAST)
