"""Files that a browser sends to the page, within a fixed budget of space and time over all requests.

A request that sends too much, too slowly or nothing at all must not take the disk, the memory or the connections from
the others, even where it comes from a program on this machine that is not a browser.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.errors import UserError
from ..data.slides import Slide

if TYPE_CHECKING:
    from starlette.requests import Request

MAX_BYTES = 2 << 30  # of all files at a time, and of the tiles of one: 400 000 in float16
MAX_CONNECTIONS = 32  # a browser opens up to six
_HEADER = "x-prism-coca"
_PATIENCE = 30.0  # seconds for the next part of an upload, and for the headers of a request
_LEAST_RATE = 1 << 18  # bytes a second of an upload, beyond its first `_PATIENCE` seconds


class HttpError(UserError):
    """A refused request with its HTTP status; any other UserError of a request is a 422."""

    def __init__(self, status: int, where: str, what: str, fix: str) -> None:
        super().__init__(where, what, fix)
        self.status = status


class Uploads:
    """Writes the bodies of requests to files; all that are there at a time share `max_bytes`.

    Args:
        max_bytes: Of all files.
        patience: Seconds for the next part.
    """

    def __init__(self, max_bytes: int = MAX_BYTES, patience: float = _PATIENCE) -> None:
        self.max_bytes, self._patience = max_bytes, patience
        self._used = 0

    @contextlib.asynccontextmanager
    async def saved(self, request: Request, path: Path) -> AsyncIterator[None]:
        """The body of a request is at `path` in the block; its bytes count until the end of it. Raises HttpError."""
        if request.headers.get(_HEADER) != "1":
            raise HttpError(403, "request", "does not come from this page", "open the page itself")
        taken = _Taken()
        try:
            await self._save(request, path, taken)
            yield
        finally:
            self._used -= taken.num_bytes

    async def _save(self, request: Request, path: Path, taken: _Taken) -> None:
        try:
            with open(path, "xb") as file:
                stream, start = request.stream(), time.monotonic()
                while (part := await self._next(stream)) is not None:
                    self._take(len(part), taken)
                    self._require_pace(taken.num_bytes, time.monotonic() - start)
                    file.write(part)
        except OSError as error:
            raise HttpError(507, "upload", f"cannot be stored ({error.strerror})", "free some space") from None

    async def _next(self, stream: Any) -> bytes | None:
        """The next part of a body, None at its end."""
        try:
            return await asyncio.wait_for(anext(stream, None), self._patience)
        except TimeoutError:
            raise HttpError(408, "upload", f"sent nothing for {self._patience:g} seconds", "send it again") from None

    def _require_pace(self, num_bytes: int, seconds: float) -> None:
        """A byte now and then would keep a connection for ever."""
        if seconds > self._patience + num_bytes / _LEAST_RATE:
            raise HttpError(408, "upload", f"is slower than {_LEAST_RATE / 1e6:.2g} MB a second", "copy the file here")

    def _take(self, num_bytes: int, taken: _Taken) -> None:
        if taken.num_bytes + num_bytes > self.max_bytes:
            raise HttpError(413, "upload", f"is larger than {self.max_bytes / 1e9:.3g} GB",
                            "use inference.py --embeddings_file")
        if self._used + num_bytes > self.max_bytes:
            raise HttpError(503, "upload", "has no room beside the other uploads", "send it again later")
        taken.num_bytes += num_bytes
        self._used += num_bytes


class _Taken:
    """What one upload has taken of the budget."""

    num_bytes = 0


def require_small(slide: Slide, max_bytes: int) -> None:
    """Raise HttpError if the tiles of an uploaded file unpack to more than may be uploaded."""
    num_bytes = sum(part.num_tiles * part.width * np.dtype(part.dtype).itemsize for part in slide.parts)
    if num_bytes > max_bytes:
        raise HttpError(413, "upload", f"unpacks to {num_bytes / 1e9:.3g} GB, up to {max_bytes / 1e9:.3g} GB are read",
                        "use inference.py --embeddings_file")


def impatient_protocol(patience: float = _PATIENCE) -> type:
    """Uvicorn's protocol of a connection, which closes one that has not sent the headers of a request in time.

    Uvicorn itself waits for them for ever, as soon as a byte of them has come.
    """
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class ImpatientProtocol(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._watch_headers()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch_headers()

        def _watch_headers(self) -> None:
            if not self._waits_for_headers():
                self._stop_timer()
            elif self._timer is None:
                self._timer = self.loop.call_later(patience, self._close_if_waiting)

        def _waits_for_headers(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _stop_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _close_if_waiting(self) -> None:
            self._timer = None
            if self._waits_for_headers() and not self.transport.is_closing():
                self.transport.close()

    return ImpatientProtocol
