"""The file of one encoding in the slide cache: a `.npy` file, which `numpy.load` reads, and 28 bytes after its numbers.

They hold the identity of what was encoded and a CRC-32 of the whole file, so that a flipped bit, a page of zeros or the
file of another slide is noticed. The sum is compared when a process reads a file for the first time, and again when the
file has changed since: it takes 0.2 ms for the 1.3 MB of a slide, and reading them from memory 0.15 ms.

Earlier versions wrote no sum. Their files have a header of version 1.0 of the `.npy` format, those of this version one
of version 2.0, as long and with the same content: so a file that has lost its sum is not taken for one of theirs.

Shapes: n image tokens of D numbers.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ..common.errors import UserError
from ..common.files import require_regular
from .tile_reader import all_finite

_TRAILER = struct.Struct("<8s16sI")  # mark, identity, CRC-32 of all bytes before it
_MARK = b"prismsum"
IDENTITY_BYTES = 16


class FileState(Enum):
    """What the size of a file says about it."""

    MISSING = "missing"
    DAMAGED = "damaged"  # of another size
    WHOLE = "whole"
    WITHOUT_SUM = "without a checksum"  # of a version that wrote none


class DamagedEncoding(UserError):
    """A file of the slide cache that cannot be used.

    Attributes:
        repair: Replaces the file. To be called in the thread that uses the encoder; raises UserError where it cannot.
    """

    repair: Callable[[], None]

    def __init__(self, where: Path, what: str, fix: str) -> None:
        super().__init__(where, what, fix)
        self.repair = self._raise

    def _raise(self) -> NoReturn:
        raise self


class EncodingFormat:
    """The bytes of the files of one cache, whose encodings are all of one shape (n, D) and type."""

    def __init__(self, shape: tuple[int, int], dtype: str) -> None:
        self._dtype = np.dtype(dtype)
        about = {"descr": self._dtype.str, "fortran_order": False, "shape": shape}
        self._old_header = _written(np.lib.format.write_array_header_1_0, about)
        self._header = _written(np.lib.format.write_array_header_2_0, about)  # both are padded to 128 bytes
        self._size_without_sum = len(self._header) + shape[0] * shape[1] * self._dtype.itemsize
        self._size = self._size_without_sum + _TRAILER.size
        self._compared: set[int] = set()  # hashes of the files, in their present state, whose sum was right

    def content(self, tokens: np.ndarray, identity: bytes) -> bytes:
        """The file of an encoding (n, D) of this shape and type."""
        content = self._header + np.ascontiguousarray(tokens, self._dtype).tobytes()
        return content + _TRAILER.pack(_MARK, identity, zlib.crc32(identity, zlib.crc32(content)))

    def state(self, path: Path) -> FileState:
        """What the size of a file says; only where it is that of a file without a sum, the header is read."""
        try:
            size = os.path.getsize(path)
        except OSError:
            return FileState.MISSING
        if size == self._size_without_sum and self._is_of_an_earlier_version(path):
            return FileState.WITHOUT_SUM
        return FileState.WHOLE if size == self._size else FileState.DAMAGED

    def _is_of_an_earlier_version(self, path: Path) -> bool:
        try:
            with open(path, "rb") as file:
                return file.read(len(self._old_header)) == self._old_header
        except OSError:
            return False

    def read_into(self, tokens: np.ndarray, path: Path, identity: bytes) -> str | None:
        """Read a file into `tokens` (n, D), a contiguous array of this type. Returns what is wrong with it, or None."""
        try:
            return self._read_into(tokens, path, identity)
        except OSError as error:
            return f"cannot be read ({error.strerror or error})"

    def _read_into(self, tokens: np.ndarray, path: Path, identity: bytes) -> str | None:
        """As `read_into`. Raises OSError."""
        data = memoryview(tokens.reshape(-1).view(np.uint8))
        require_regular(path)
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            header, num_read, trailer = file.read(len(self._header)), file.readinto(data), file.read()
        sizes = {self._header: (_TRAILER.size,), self._old_header: (_TRAILER.size, 0)}  # of the sum
        if num_read != len(data) or len(trailer) not in sizes.get(header, ()):
            return f"cannot be read ({status.st_size} bytes, expected {self._size}, or a damaged header)"
        # a program can set the time of the last change back, but not that of the inode
        state = hash((identity, status.st_ino, status.st_mtime_ns, status.st_ctime_ns))
        return self._wrong_content(header, tokens, trailer, identity, state)

    def _wrong_content(self, header: bytes, tokens: np.ndarray, trailer: bytes, identity: bytes, state: int,
                       ) -> str | None:
        """As `read_into`. state: hash of the file and its times of change."""
        if not trailer:
            return self._wrong_numbers(tokens, state)
        mark, written_for, checksum = _TRAILER.unpack(trailer)
        if mark == _MARK and written_for != identity:
            return "is the encoding of other tiles"
        if mark != _MARK or not self._is_right(header, tokens, identity, checksum, state):
            return "has a wrong checksum"
        return None

    def _is_right(self, header: bytes, tokens: np.ndarray, identity: bytes, checksum: int, state: int) -> bool:
        """Whether a sum is that of the file, or was when it was read before."""
        if state in self._compared:
            return True
        if zlib.crc32(identity, zlib.crc32(tokens, zlib.crc32(header))) != checksum:
            return False
        self._compared.add(state)
        return True

    def _wrong_numbers(self, tokens: np.ndarray, state: int) -> str | None:
        """As `read_into`, for files without a sum."""
        if state not in self._compared and not all_finite(tokens):
            return "holds NaN or infinity"
        self._compared.add(state)
        return None


def _written(write: Callable[[io.BytesIO, dict[str, Any]], None], about: dict[str, Any]) -> bytes:
    header = io.BytesIO()
    write(header, about)
    return header.getvalue()
