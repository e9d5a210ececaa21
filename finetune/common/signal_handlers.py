"""SIGINT and SIGTERM, which training and inference answer each in its own way."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any, Self


class SignalHandlers:
    """Context manager in which SIGINT and SIGTERM call `handle`; the handlers of before come back after it.

    Args:
        handle: Called with the number of the signal and the current stack frame.
    """

    def __init__(self, handle: Callable[[int, Any], None]) -> None:
        self._handle = handle
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python does not allow handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
