"""Tile embeddings as NumPy files: an array (N, D) or (1, N, D) as `.npy`, or as one of a `.npz`. No pickle is read.

An array of a `.npy` file is memory-mapped by its offset; those of a `.npz` may be compressed and are read in one pass.
"""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..common.errors import BadSlide
from .h5_files import KEYS, Header, check_shape
from .tile_sum import sum_of_tiles

ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, EOFError, SyntaxError, MemoryError,
          tokenize.TokenError, zipfile.BadZipFile, zlib.error, NotImplementedError)
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_MAX_COMPRESSION = 1100  # deflate shrinks nothing by more than 1032
_COORDS_BEFORE = 3  # columns: Owkin's files hold level, x and y before the features
_EXTRACT_AGAIN = "extract its features again"


def inspect(path: Path, key: str | None, width: int, encoder: str | None) -> Header:
    """Check the header of the array in a file; reads only the few tiles of its sum.

    Args:
        path: The `.npy` or `.npz` file.
        key: Name of the array in a `.npz`; None takes the only one, or looks for one of KEYS.
        width: D, the dimension its tiles must have.
        encoder: Ignored: such files do not name their tile encoder.

    Raises:
        BadSlide: The array cannot be used. One of ERRORS if the file is broken.
    """
    if path.suffix.lower() == ".npz":
        return _inspect_archive(path, key, width)
    with open(path, "rb") as file:
        shape, is_fortran, dtype = _read_header(file)
        offset = file.tell()
    num_tiles = _check(shape, dtype, path.stat().st_size - offset, width)
    tiles = np.memmap(path, dtype, "r", offset, shape, "F" if is_fortran else "C")
    tile_sum = sum_of_tiles(lambda rows: tiles[..., rows, :].tobytes(), num_tiles)
    return Header("", num_tiles, width, dtype.str, None if is_fortran else offset, tile_sum)


def _inspect_archive(path: Path, key: str | None, width: int) -> Header:
    with zipfile.ZipFile(path) as archive:
        entry = _find_entry(archive.infolist(), key)
        if entry.file_size > _MAX_COMPRESSION * entry.compress_size:
            raise BadSlide("declares more than it holds", _EXTRACT_AGAIN)
        with archive.open(entry, "r") as file:
            shape, _, dtype = _read_header(file)
            num_bytes = entry.file_size - file.tell()
    num_tiles = _check(shape, dtype, num_bytes, width)
    return Header(entry.filename.removesuffix(".npy"), num_tiles, width, dtype.str, None, entry.CRC or 1)


def read(path: Path, key: str, file_size: int) -> np.ndarray:
    """Read an array that `inspect` has accepted, in its own shape and dtype."""
    content = np.load(path, allow_pickle=False)
    if not key:
        return content
    with content:
        return content[key]


def describe_error(path: Path, error: Exception) -> BadSlide:
    """Translate a read error into a problem and its fix."""
    with open(path, "rb") as file:
        head = file.read(24)
    if not head.startswith((b"\x93NUMPY", b"PK")):
        fix = "run git lfs pull" if head.startswith(b"version https://git-lfs") else "save the array with numpy.save"
        return BadSlide(f"not a NumPy file (starts with {head.decode('latin-1')!r})", fix)
    return BadSlide(f"cannot be read ({type(error).__name__})", "copy it again or extract its features again")


def _read_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, whether columns come first, dtype) of an array. Raises BadSlide or one of ERRORS."""
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise BadSlide(f"is of version {version[0]}.{version[1]} of the format", "save the array with numpy.save")
    return _HEADERS[version](file)


def _check(shape: tuple[int, ...], dtype: np.dtype, num_bytes: int, width: int) -> int:
    """The number of tiles of an array of which `num_bytes` are stored. Raises BadSlide."""
    if dtype.kind != "f" or dtype.itemsize not in (2, 4, 8):
        raise BadSlide(f"holds {dtype}, expected floats", "is this another file of the tool? give its features")
    if len(shape) == 2 and shape[1] == width + _COORDS_BEFORE:
        raise BadSlide(f"tiles are {shape[1]} wide: {_COORDS_BEFORE} columns of coordinates before the features?",
                       f"save the array without them: a[:, {_COORDS_BEFORE}:]")
    num_tiles = check_shape(shape, width, "the array")
    if math.prod(shape) * dtype.itemsize > num_bytes:
        raise BadSlide(f"truncated ({num_bytes} bytes of numbers)", "copy it again")
    return num_tiles


def _find_entry(entries: list[zipfile.ZipInfo], key: str | None) -> zipfile.ZipInfo:
    """The array of that name, the only one, or the one of a usual name. Raises BadSlide."""
    arrays = {entry.filename.removesuffix(".npy"): entry for entry in entries if entry.filename.endswith(".npy")}
    names = [name for name in ((key,) if key else KEYS) if name in arrays]
    if not names and not key and len(arrays) == 1:
        names = list(arrays)
    if len(names) != 1:
        raise BadSlide(f"holds the arrays: {', '.join(list(arrays)[:8]) or 'none'}",
                       "say which with data.h5_key, or save one array (N, D)")
    return arrays[names[0]]
