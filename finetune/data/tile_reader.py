"""Tile embeddings on disk: find the file of each slide, check its header, read its tiles.

What is in a file is for `h5` and `pt` to say. Numbers that lie in one piece are memory-mapped at their offset, all
others read in one pass. Handles are opened per read and never kept, so that any number of loader processes, forked or
spawned, may read. Loader processes import this module and no torch: they start in a fraction of a second.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from ..common.errors import BadSlide, UserError
from . import h5_files as h5
from . import pt_files as pt
from .slides import Slide, SlideFile, _explain, _opener

_BLOCK = 1 << 19  # numbers checked at a time: 1 or 2 MB, so that the second look at them is served by the cache


def read_tiles(slide: Slide, rows: np.ndarray | None = None, *, check: bool = True) -> np.ndarray:
    """Tile embeddings (N, D) of a slide or case in native float16 or float32; `rows` (sorted indices): only those.

    The result may be a read-only map of the file. check: look for NaN and infinity (as long again as the reading; who
    looks at what is computed from the tiles need not). Raises UserError if the file cannot be read, has changed since
    it was indexed, or holds NaN or infinity.
    """
    if len(slide.parts) > 1:
        ends = np.cumsum([0, *(part.num_tiles for part in slide.parts)])
        several = [None] * len(slide.parts) if rows is None else [
            rows[(rows >= first) & (rows < end)] - first for first, end in pairwise(ends)]
        return np.concatenate([read_tiles(part, its_rows, check=check)
                               for part, its_rows in zip(slide.parts, several, strict=True)])
    slide = slide.parts[0]
    path, opener = Path(slide.path), _opener(Path(slide.path))
    try:
        stat = os.stat(path)
        if (stat.st_size, stat.st_mtime_ns) != (slide.size, slide.mtime_ns):
            raise UserError(slide.path, f"{stat.st_size} bytes, changed since it was checked ({slide.size} bytes)",
                            "do not change the files while they are in use, then start again")
        if slide.offset is not None:
            tiles = np.memmap(slide.path, slide.dtype, "r", slide.offset, (slide.num_tiles, slide.width))
        else:
            tiles = opener.read(path, slide.key, stat.st_size).reshape(slide.num_tiles, slide.width)
    except (*opener.ERRORS, BadSlide) as error:
        bad = error if isinstance(error, BadSlide) else _explain(path, error)
        raise UserError(slide.path, bad.what, bad.fix) from None
    tiles = tiles if rows is None else tiles[rows]
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is told below
        tiles = tiles.astype(np.float16 if tiles.dtype.itemsize == 2 else np.float32, copy=False)
    if check and not _all_finite(tiles):
        bad_rows = np.count_nonzero(~np.isfinite(tiles).all(axis=1))
        raise UserError(slide.path, f"NaN or infinity in {bad_rows} of {len(tiles)} tiles",
                        "extract the features of this slide again")
    return tiles


def read_coords(slide: SlideFile) -> h5.Coords | None:
    """Where the tiles of a file lie, with the unit; None if it does not say. Raises UserError if it cannot be read."""
    if _opener(path := Path(slide.path)) is pt or slide.in_one_file_of_many:
        return None
    try:
        return h5.read_coords(path, slide.num_tiles)
    except h5.ERRORS as error:
        bad = _explain(path, error)
        raise UserError(path, f"its coordinates: {bad.what}", bad.fix) from None


def choose_tiles(slide: Slide, max_tiles: int | None, seed: int, epoch: int) -> np.ndarray | None:
    """Sorted indices of the tiles to use, or None for all: the same ones for the same (seed, epoch, slide id).

    Of a case each slide gives the same number, or all it has where that is less: a small biopsy is not lost beside a
    large resection.
    """
    if max_tiles is None or slide.num_tiles <= max_tiles:
        return None
    rng = np.random.default_rng([seed, epoch, zlib.crc32(slide.slide_id.encode())])
    chosen, first, left = {}, 0, max_tiles
    order = sorted(range(len(slide.parts)), key=lambda i: slide.parts[i].num_tiles)  # the smallest first
    for done, i in enumerate(order):
        share = min(slide.parts[i].num_tiles, left // (len(order) - done))
        chosen[i] = np.sort(rng.choice(slide.parts[i].num_tiles, share, replace=False))
        left -= share
    for i, part in enumerate(slide.parts):
        chosen[i] = chosen[i] + first
        first += part.num_tiles
    return np.concatenate([chosen[i] for i in range(len(slide.parts))])


@dataclass(frozen=True)
class TileReader:
    """Reads a slide's tiles of an epoch: all of them, or `max_tiles` chosen by (seed, epoch, id)."""

    max_tiles: int | None
    seed: int

    def __call__(self, slide: Slide, epoch: int) -> np.ndarray:
        return read_tiles(slide, choose_tiles(slide, self.max_tiles, self.seed, epoch))


def _all_finite(tiles: np.ndarray) -> bool:
    """Whether an array of float16 or float32 holds no NaN or infinity, at memory speed.

    The bits of infinity and NaN are larger than those of all other numbers of their sign: as signed integers those of
    the positive ones, as unsigned those of the negative. Two integer maxima are 15 times as fast as `np.isfinite`.
    """
    bits = 8 * tiles.dtype.itemsize
    infinity = {16: 0x7C00, 32: 0x7F800000}[bits]
    flat = np.ascontiguousarray(tiles).reshape(-1)
    signed, unsigned = flat.view(f"i{bits // 8}"), flat.view(f"u{bits // 8}")
    return all(signed[i:i + _BLOCK].max() < infinity and unsigned[i:i + _BLOCK].max() < infinity + (1 << (bits - 1))
               for i in range(0, len(flat), _BLOCK))
