"""Tile embeddings as `.pt` files: one tensor (N, D) or (1, N, D) that `torch.save` wrote (CLAM's `pt_files`, HistGen,
WsiCaption), or a dict that holds one. No pickle runs: `weights_only`, and only archives that hold what they declare.

torch is imported for a header only: a bare tensor lies in one piece in the file and is then mapped by its offset.
"""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..common.errors import BadSlide
from .h5_files import KEYS, Header, check_shape

ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, zipfile.BadZipFile, struct.error)


def inspect(path: Path, key: str | None, width: int, encoder: str | None) -> Header:
    """Header of the tensor in a file; reads no tile. Raises BadSlide. `encoder`: such files do not name theirs."""
    tensor, found, in_one_piece = _load(path, key)
    num_tiles = check_shape(tuple(tensor.shape), width, f"the tensor {found}".strip())
    kind = str(tensor.dtype).removeprefix("torch.")
    if kind not in ("float16", "float32", "float64", "bfloat16"):
        raise BadSlide(f"holds {kind}, expected floats", "is this another file of the tool? give its features")
    dtype = np.dtype("float32" if kind == "bfloat16" else kind)  # numpy knows no bfloat16
    offset = _offset(path, tensor, dtype) if in_one_piece and kind != "bfloat16" and tensor.is_contiguous() else None
    return Header(found, num_tiles, width, dtype.str, offset)


def read(path: Path, key: str, file_size: int) -> np.ndarray:
    """The whole of a tensor that `inspect` has found good."""
    tensor = _load(path, key)[0]
    return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).contiguous().numpy()


def explain(path: Path, error: Exception) -> BadSlide:
    return BadSlide(f"cannot be read ({type(error).__name__})", "copy it again or extract its features again")


def _load(path: Path, key: str | None) -> tuple[torch.Tensor, str, bool]:
    """(the tensor, its key or '', whether the file holds nothing else)."""
    import torch

    names = _entries(path)
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # the unpickler may fail in any way on a hostile file; its text advises to trust the file
        raise BadSlide("holds other things than tensors, or is damaged",
                       "save one tensor (N, D) with torch.save") from None
    found = ""
    if isinstance(content, dict):
        keys = [k for k in ((key,) if key else KEYS) if k in content]
        if len(keys) != 1:
            listed = ", ".join(map(str, list(content)[:8])) or "nothing"
            raise BadSlide(f"is a dict of: {listed}", "say which with data.h5_key, or save one tensor (N, D)")
        found, content = keys[0], content[keys[0]]
    if type(content) is not torch.Tensor or content.layout is not torch.strided or content.device.type != "cpu":
        raise BadSlide(f"holds a {type(content).__name__}, expected a tensor (N, D)", "save one tensor with torch.save")
    if content.nbytes > content.untyped_storage().nbytes():  # 1 kB can declare 10^9 numbers on top of each other
        raise BadSlide("declares more numbers than it holds", "extract its features again")
    return content.detach(), found, not found and sum("/data/" in n for n in names) == 1


def _entries(path: Path) -> list[str]:
    """Names in the archive. Raises BadSlide for what is none, or is compressed (a bomb: torch itself never does)."""
    with open(path, "rb") as file:
        if (head := file.read(24))[:2] != b"PK":
            raise BadSlide("no file of torch 1.6 or newer (starts with " + repr(head.decode("latin-1")) + ")",
                           "run git lfs pull" if head.startswith(b"version https://git-lfs") else
                           "load it and save it again with today's torch")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except zipfile.BadZipFile:
        raise BadSlide(f"truncated ({path.stat().st_size} bytes)", "copy it again") from None
    if any(e.compress_type != zipfile.ZIP_STORED for e in entries) or \
            sum(e.file_size for e in entries) > path.stat().st_size:
        raise BadSlide("declares more than it holds", "extract its features again")
    return [e.filename for e in entries]


def _offset(path: Path, tensor: torch.Tensor, dtype: np.dtype) -> int | None:
    """Byte where the numbers of the only tensor begin, behind the local header of its entry; None if other bytes than
    those of its first row lie there (a file from a big-endian machine)."""
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        entry = next(e for e in archive.infolist() if "/data/" in e.filename)
        file.seek(entry.header_offset + 26)
        start = entry.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
        file.seek(start := start + tensor.storage_offset() * dtype.itemsize)
        first = tensor.reshape(-1)[: tensor.shape[-1]].numpy().tobytes()
        return start if file.read(len(first)) == first else None
