"""Reads the tile embeddings and coordinates of slides whose headers were checked, and chooses the tiles of an epoch.

`h5_files`, `pt_files` and `npy_files` know the file layouts. Contiguous data is memory-mapped, other data read in one
pass. Handles are opened per read and never kept, so that any number of loader processes, forked or spawned, may read.
Loader processes import this module and no torch: they start in a fraction of a second.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from ..common.errors import BadSlide, UserError
from ..common.memory import memory_for
from . import h5_files
from .slides import Slide, SlideFile, describe_error, format_of
from .tile_coords import Coords

_BLOCK = 1 << 19  # numbers checked at a time: 1 or 2 MB, so that the second pass over them reads from the CPU's cache


def read_tiles(slide: Slide, rows: np.ndarray | None = None, *, check: bool = True) -> np.ndarray:
    """Read the tile embeddings of a slide or case.

    Args:
        slide: With checked headers.
        rows: Sorted indices of the wanted tiles; None reads all N.
        check: Look for NaN and infinity, which doubles the time. Not needed if what is computed from the tiles is
            checked.

    Returns:
        (N, D) or (len(rows), D), native float16 or float32; it may be a read-only map of the file.

    Raises:
        UserError: The file cannot be read, has changed since its header was checked, needs more memory than is free, or
            holds NaN or infinity.
    """
    if len(slide.parts) > 1:
        return _read_case(slide, rows, check)
    file = slide.parts[0]
    tiles = _read_rows(file, rows)
    dtype = np.float16 if tiles.dtype.itemsize == 2 else np.float32
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is infinite, and is reported below
        tiles = tiles.astype(dtype, copy=False)
    if check:
        _require_finite(tiles, file.path)
    return tiles


def _read_rows(file: SlideFile, rows: np.ndarray | None) -> np.ndarray:
    """The wanted tiles of a file in its own type; a file that is not mapped is read whole. Raises UserError."""
    num_tiles = file.num_tiles if rows is None or file.offset is None else len(rows)
    num_bytes = num_tiles * file.width * np.dtype(file.dtype).itemsize
    with memory_for(file.path, num_bytes, f"its {num_tiles} tiles"):
        tiles = _open(file)
        return tiles if rows is None else tiles[rows]


def _require_finite(tiles: np.ndarray, path: str) -> None:
    if all_finite(tiles):
        return
    num_bad = np.count_nonzero(~np.isfinite(tiles).all(axis=1))
    raise UserError(path, f"NaN or infinity in {num_bad} of {len(tiles)} tiles",
                    "extract the features of this slide again")


def _read_case(slide: Slide, rows: np.ndarray | None, check: bool) -> np.ndarray:
    bounds = np.cumsum([0, *(part.num_tiles for part in slide.parts)])
    tiles = []
    for part, (first, end) in zip(slide.parts, pairwise(bounds), strict=True):
        part_rows = None
        if rows is not None:
            part_rows = rows[(rows >= first) & (rows < end)] - first
        tiles.append(read_tiles(part, part_rows, check=check))
    return np.concatenate(tiles)


def _open(file: SlideFile) -> np.ndarray:
    """All tiles (N, D) of a file, in its own type, mapped where possible."""
    path = Path(file.path)
    file_format = format_of(path)
    shape = (file.num_tiles, file.width)
    try:
        stat = os.stat(path)
        if not file.is_unchanged(stat):
            raise UserError(file.path, f"{stat.st_size} bytes, changed since it was checked ({file.size} bytes)",
                            "do not change the files while they are in use, then start again")
        if file.offset is not None:
            return np.memmap(file.path, file.dtype, "r", file.offset, shape)
        return file_format.read(path, file.key, stat.st_size).reshape(shape)
    except (*file_format.ERRORS, BadSlide) as error:
        bad = describe_error(path, error)
        raise UserError(file.path, bad.what, bad.fix) from None


def read_coords(slide: SlideFile) -> Coords | None:
    """Coordinates of the tiles of a file, None if it has none. Raises UserError if they cannot be read."""
    path = Path(slide.path)
    if format_of(path) is not h5_files or slide.key == slide.slide_id != path.stem:  # HistoGPT's dataset per slide
        return None
    try:
        return h5_files.read_coords(path, slide.key, slide.num_tiles)
    except h5_files.ERRORS as error:
        bad = describe_error(path, error)
        raise UserError(path, f"its coordinates: {bad.what}", bad.fix) from None


def choose_tiles(slide: Slide, max_tiles: int | None, seed: int, epoch: int) -> np.ndarray | None:
    """Choose the tiles to use in an epoch: a pure function of (seed, epoch, slide id).

    Each slide of a case contributes the same number, or all it has if that is fewer: a small biopsy is not lost
    beside a large resection.

    Returns:
        Sorted indices of `max_tiles` tiles, or None for all.
    """
    if max_tiles is None or slide.num_tiles <= max_tiles:
        return None
    rng = np.random.default_rng([seed, epoch, zlib.crc32(slide.slide_id.encode())])
    counts = [part.num_tiles for part in slide.parts]
    starts = np.cumsum([0, *counts])
    smallest_first = sorted(range(len(counts)), key=lambda part: counts[part])  # the larger take their unused quota
    chosen: dict[int, np.ndarray] = {}
    remaining = max_tiles
    for num_done, part in enumerate(smallest_first):
        quota = min(counts[part], remaining // (len(counts) - num_done))
        rows = rng.choice(counts[part], quota, replace=False)
        chosen[part] = starts[part] + np.sort(rows)
        remaining -= quota
    return np.concatenate([chosen[part] for part in range(len(counts))])


@dataclass(frozen=True)
class TileReader:
    """Reads the tiles (N, D) of a slide in an epoch: all, or `max_tiles` chosen by (seed, epoch, id)."""

    max_tiles: int | None
    seed: int

    def __call__(self, slide: Slide, epoch: int) -> np.ndarray:
        return read_tiles(slide, choose_tiles(slide, self.max_tiles, self.seed, epoch))


def all_finite(tiles: np.ndarray) -> bool:
    """Whether an array of float16 or float32 holds no NaN or infinity, at memory speed.

    Read as an integer, the bits of infinity and NaN are larger than those of all other numbers of their sign: as
    signed integers for positive numbers, as unsigned ones for negative. Two integer maxima take 1/15 of the time of
    `np.isfinite`.
    """
    num_bytes = tiles.dtype.itemsize
    infinity = {2: 0x7C00, 4: 0x7F800000}[num_bytes]
    negative_infinity = infinity + (1 << (8 * num_bytes - 1))
    flat = np.ascontiguousarray(tiles).reshape(-1)
    signed, unsigned = flat.view(f"i{num_bytes}"), flat.view(f"u{num_bytes}")
    for start in range(0, len(flat), _BLOCK):
        block = slice(start, start + _BLOCK)
        if signed[block].max() >= infinity or unsigned[block].max() >= negative_infinity:
            return False
    return True
