"""The budget of uploads: bytes over all requests, time for the next part, connections without a request, bombs."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator

import h5py
import numpy as np
import pytest

from finetune.data.slides import inspect_slide
from finetune.inference.uploads import HttpError, Uploads, impatient_protocol, require_small


class Request:
    """A request whose body comes in parts; a number in place of a part is a pause in seconds."""

    def __init__(self, *parts: bytes | float) -> None:
        self.parts, self.headers = parts, {"x-prism-coca": "1"}

    async def stream(self) -> AsyncIterator[bytes]:
        for part in self.parts:
            if isinstance(part, float):
                await asyncio.sleep(part)
            else:
                yield part


def status_of(uploads: Uploads, request: Request, path) -> int | bytes:
    """The body as it was saved, or the status of the refusal."""
    async def save() -> bytes:
        async with uploads.saved(request, path):
            return path.read_bytes()

    try:
        return asyncio.run(save())
    except HttpError as error:
        return error.status


def test_parts_are_joined_and_the_space_is_free_again_afterwards(tmp_path):
    uploads = Uploads(max_bytes=10)
    assert status_of(uploads, Request(b"12345", b"67890"), tmp_path / "a") == b"1234567890"
    assert status_of(uploads, Request(b"12345", b"678901"), tmp_path / "b") == 413
    assert status_of(uploads, Request(b"x" * 10), tmp_path / "c") == b"x" * 10


def test_uploads_at_one_time_share_the_space(tmp_path):
    async def two() -> list[int | bytes]:
        uploads, first_is_saved = Uploads(max_bytes=10), asyncio.Event()

        async def first() -> bytes:
            async with uploads.saved(Request(b"123456"), tmp_path / "a"):
                first_is_saved.set()
                await asyncio.sleep(0.2)
                return b"done"

        async def second() -> int:
            await first_is_saved.wait()
            with pytest.raises(HttpError) as refused:
                async with uploads.saved(Request(b"12345"), tmp_path / "b"):
                    pass
            return refused.value.status

        return await asyncio.gather(first(), second())

    assert asyncio.run(two()) == [b"done", 503]


def test_an_upload_that_pauses_too_long_ends(tmp_path):
    start = time.monotonic()
    assert status_of(Uploads(patience=0.1), Request(b"1", 30.0, b"2"), tmp_path / "a") == 408
    assert status_of(Uploads(patience=5.0), Request(b"1", 0.05, b"2"), tmp_path / "b") == b"12"
    assert time.monotonic() - start < 5


def test_a_byte_now_and_then_does_not_keep_a_connection(tmp_path):
    start = time.monotonic()
    drip = [part for _ in range(200) for part in (b"x", 0.05)]
    assert status_of(Uploads(patience=0.2), Request(*drip), tmp_path / "a") == 408
    assert time.monotonic() - start < 3, "ten seconds of drops"
    large = [part for _ in range(8) for part in (b"x" * 100_000, 0.05)]
    assert status_of(Uploads(patience=0.2), Request(*large), tmp_path / "b") == b"x" * 800_000


def test_a_small_file_of_many_tiles_is_refused_by_its_header(tmp_path):
    path = tmp_path / "bomb.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=np.zeros((4000, 2560), np.float16), chunks=(1000, 2560), compression="gzip")
    assert path.stat().st_size < 100_000
    with pytest.raises(HttpError) as refused:
        require_small(inspect_slide(path, None, 2560), 10_000_000)
    assert refused.value.status == 413 and "unpacks to 0.0205 GB" in refused.value.line()
    small = tmp_path / "small.h5"
    with h5py.File(small, "w") as file:
        file["features"] = np.zeros((10, 2560), np.float16)
    require_small(inspect_slide(small, None, 2560), 10 * 2560 * 2)


def test_a_connection_without_a_request_is_closed_and_others_are_answered():
    uvicorn = pytest.importorskip("uvicorn")

    async def app(scope, receive, send):
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})

    server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", 0, log_level="error", lifespan="off",
                                           http=impatient_protocol(patience=0.3), timeout_keep_alive=20))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    address = server.servers[0].sockets[0].getsockname()
    try:
        with socket.create_connection(address) as silent, socket.create_connection(address) as half, \
                socket.create_connection(address) as whole:
            half.sendall(b"POST /describe HTTP/1.1\r\nHost: x\r\n")
            whole.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert whole.recv(100).startswith(b"HTTP/1.1 204")
            for connection in (silent, half):
                connection.settimeout(10)
                assert connection.recv(100) == b"", "closed by the server"
            whole.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert whole.recv(100).startswith(b"HTTP/1.1 204"), "a connection that has asked is kept"
            whole.sendall(b"GET / HTTP/1.1\r\n")
            whole.settimeout(10)
            assert whole.recv(100) == b"", "the headers of a later request have a time, too"
    finally:
        server.should_exit = True
        thread.join(10)
