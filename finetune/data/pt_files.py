"""Tile embeddings as `.pt` files: one tensor (N, D) or (1, N, D) that `torch.save` wrote (CLAM's `pt_files`, HistGen,
WsiCaption), or a dict that holds one. No pickle runs: `weights_only`, and only archives that hold what they declare.

torch is only imported to read a header: the data of a lone tensor is memory-mapped by its offset in the file.
"""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.errors import BadSlide
from .h5_files import KEYS, Header, check_shape
from .tile_sum import sum_of_tiles

if TYPE_CHECKING:
    import torch

ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, zipfile.BadZipFile, struct.error)
_FLOATS = ("float16", "float32", "float64", "bfloat16")
_LOCAL_HEADER = 30  # bytes before the names in the local header of a zip entry; their lengths are its last 4 bytes


def inspect(path: Path, key: str | None, width: int, encoder: str | None) -> Header:
    """Check the header of the tensor in a file; reads only the few tiles of its sum.

    Args:
        path: The `.pt` file.
        key: Name of the tensor in a dict; None looks for one of KEYS.
        width: D, the dimension its tiles must have.
        encoder: Ignored: such files do not name their tile encoder.

    Raises:
        BadSlide: The tensor cannot be used. One of ERRORS if the file is broken.
    """
    tensor, key, is_alone = _load(path, key)
    num_tiles = check_shape(tuple(tensor.shape), width, f"the tensor {key}".strip())
    kind = str(tensor.dtype).removeprefix("torch.")
    if kind not in _FLOATS:
        raise BadSlide(f"holds {kind}, expected floats", "is this another file of the tool? give its features")
    tile_sum = sum_of_tiles(lambda rows: _as_array(tensor[..., rows, :]).tobytes(), num_tiles)
    if kind == "bfloat16":
        return Header(key, num_tiles, width, np.dtype("float32").str, None, tile_sum)
    dtype = np.dtype(kind)
    offset = _offset(path, tensor, dtype) if is_alone and tensor.is_contiguous() else None
    return Header(key, num_tiles, width, dtype.str, offset, tile_sum)


def read(path: Path, key: str, file_size: int) -> np.ndarray:
    """Read a tensor that `inspect` has accepted, in its own shape; bfloat16 as float32."""
    return _as_array(_load(path, key)[0])


def _as_array(tensor: torch.Tensor) -> np.ndarray:
    if str(tensor.dtype) == "torch.bfloat16":  # numpy has no such type
        tensor = tensor.float()
    return tensor.contiguous().numpy()


def describe_error(path: Path, error: Exception) -> BadSlide:
    """Translate a read error into a problem and its fix."""
    return BadSlide(f"cannot be read ({type(error).__name__})", "copy it again or extract its features again")


def _load(path: Path, key: str | None) -> tuple[torch.Tensor, str, bool]:
    """(the tensor, its key or '', whether the file holds nothing else). Raises BadSlide."""
    import torch

    entries = _entries(path)
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # a hostile file may raise anything; torch's own message advises trusting the file
        raise BadSlide("holds objects other than tensors, or is damaged",
                       "save one tensor (N, D) with torch.save") from None
    found_key = ""
    if isinstance(content, dict):
        found_key = _find_key(content, key)
        content = content[found_key]
    _check_tensor(content)

    # torch writes each storage as an entry NAME/data/NUMBER
    storages = [entry for entry in entries if "/data/" in entry.filename]
    is_alone = not found_key and len(storages) == 1
    return content.detach(), found_key, is_alone


def _check_tensor(content: Any) -> None:
    """Raises BadSlide for anything but a dense tensor within its storage."""
    import torch

    is_dense = type(content) is torch.Tensor and content.layout is torch.strided and content.device.type == "cpu"
    if not is_dense:
        raise BadSlide(f"holds a {type(content).__name__}, expected a tensor (N, D)", "save one tensor with torch.save")

    # a tensor of stride 0 can declare 10^9 numbers in a file of 1 kB
    if content.nbytes > content.untyped_storage().nbytes():
        raise BadSlide("declares more numbers than it holds", "extract its features again")


def _find_key(content: dict, wanted: str | None) -> str:
    candidates = (wanted,) if wanted else KEYS
    keys = [key for key in candidates if key in content]
    if len(keys) != 1:
        listed = ", ".join(str(key) for key in list(content)[:8])
        raise BadSlide(f"is a dict of: {listed or 'nothing'}", "say which with data.h5_key, or save one tensor (N, D)")
    return keys[0]


def _entries(path: Path) -> list[zipfile.ZipInfo]:
    """The entries of the archive. Raises BadSlide for any other file, or if unpacking would inflate it."""
    _refuse_other_files(path)
    file_size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except zipfile.BadZipFile:
        raise BadSlide(f"truncated ({file_size} bytes)", "copy it again") from None

    _require_stored(entries, file_size)
    return entries


def _require_stored(entries: list[zipfile.ZipInfo], file_size: int) -> None:
    """torch itself compresses nothing: a small file that declares gigabytes is an attack. Raises BadSlide for it."""
    methods = {entry.compress_type for entry in entries}
    declared = sum(entry.file_size for entry in entries)
    if methods - {zipfile.ZIP_STORED} or declared > file_size:
        raise BadSlide("declares more than it holds", "extract its features again")


def _refuse_other_files(path: Path) -> None:
    with open(path, "rb") as file:
        head = file.read(24)
    if head.startswith(b"PK"):  # a zip archive
        return
    fix = "load it and save it again with a current torch"
    if head.startswith(b"version https://git-lfs"):
        fix = "run git lfs pull"
    raise BadSlide(f"not a file of torch 1.6 or newer (starts with {head.decode('latin-1')!r})", fix)


def _offset(path: Path, tensor: torch.Tensor, dtype: np.dtype) -> int | None:
    """Byte where the numbers of the only tensor start, behind the local header of its entry.

    None if other bytes than those of its first row are there (a file from a big-endian machine).
    """
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        entry = next(e for e in archive.infolist() if "/data/" in e.filename)
        file.seek(entry.header_offset + _LOCAL_HEADER - 4)
        name_length, extra_length = struct.unpack("<HH", file.read(4))
        start = entry.header_offset + _LOCAL_HEADER + name_length + extra_length
        start += tensor.storage_offset() * dtype.itemsize
        file.seek(start)
        first_row = tensor.reshape(-1)[: tensor.shape[-1]].numpy().tobytes()
        return start if file.read(len(first_row)) == first_row else None
