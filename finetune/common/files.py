"""Path expansion and atomic writes."""

from __future__ import annotations

import contextlib
import os
import platform
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_MACHINE = f"{zlib.crc32(platform.node().encode()):08x}"  # two machines may use the same process id


def expand(path: str) -> Path:
    """`path` with `~` and environment variables expanded, absolute."""
    return Path(os.path.abspath(os.path.expandvars(os.path.expanduser(path))))


def write_atomically(path: Path, content: str | bytes, durable: bool = False) -> None:
    """Replace a file in one step; several processes and machines may write it.

    Args:
        path: The file; its folder exists.
        content: A text is encoded as UTF-8.
        durable: Wait until the content is on the disk, so that a power cut leaves no empty file.

    Raises:
        OSError: The existing file is then intact.
    """
    with replacing(path, durable) as file:
        file.write(content if isinstance(content, bytes) else content.encode("utf-8", "replace"))  # lone surrogates


@contextlib.contextmanager
def replacing(path: Path, durable: bool = False) -> Iterator[BinaryIO]:
    """A new file to write to, which replaces `path` in one step when the block ends; as `write_atomically`.

    If the block raises, the existing file stays as it is.
    """
    temporary = path.with_name(f".{path.name}.{_MACHINE}.{os.getpid()}.tmp")
    is_complete = False
    try:
        temporary.unlink(missing_ok=True)  # left by a dead process with this id
        with open(temporary, "xb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
        is_complete = True
    finally:
        if not is_complete:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
