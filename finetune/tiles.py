"""Tile embeddings on disk: find the file of each slide, check its header, read its tiles.

What is in a file is for `h5` and `pt` to say. Numbers that lie in one piece are memory-mapped at their offset, all
others read in one pass. Handles are opened per read and never kept, so that any number of loader processes, forked or
spawned, may read. Loader processes import this module and no torch: they start in a fraction of a second.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np

from . import h5, pt
from .config import expand
from .errors import BadSlide, UserError
from .progress import progress

_H5, _PT = (".h5", ".hdf5"), ".pt"
_BLOCK = 1 << 19  # numbers checked at a time: 1 or 2 MB, so that the second look at them is served by the cache
_PARALLEL_FROM = 512  # below so many files a process pool starts slower than the headers are read


@dataclass(frozen=True)
class SlideFile:
    """A checked file: `key` names a float dataset of `num_tiles` tiles, (N, D) or (1, N, D); '' is a `.pt`'s only one.

    dtype, width: of the dataset. offset: byte of the file where its numbers lie in one piece, None if chunked or
    compressed. size (bytes) and mtime_ns: of the file when it was checked.
    """

    slide_id: str
    path: str
    key: str
    num_tiles: int
    width: int = 0
    dtype: str = "<f2"
    offset: int | None = None
    size: int = 0
    mtime_ns: int = 0

    @property
    def parts(self) -> tuple[SlideFile, ...]:
        """The files it is made of, as of a Case: itself."""
        return (self,)

    @property
    def in_one_file_of_many(self) -> bool:
        """Whether the file holds a dataset for each of several slides, `key` being this one's."""
        return self.key == self.slide_id != Path(self.path).stem

    @property
    def place(self) -> str:
        """What `inspect_slide` took: the file, or FILE.h5/ID."""
        return f"{self.path}/{self.key}" if self.in_one_file_of_many else self.path


@dataclass(frozen=True)
class Case:
    """Several slides that are encoded as one: their tiles one after the other. It stands in for a SlideFile."""

    slide_id: str
    parts: tuple[SlideFile, ...]

    @property
    def num_tiles(self) -> int:
        return sum(part.num_tiles for part in self.parts)

    @property
    def path(self) -> str:
        """Of its first file, for messages."""
        return self.parts[0].path


Slide = SlideFile | Case


def join_slides(case_id: str, parts: Sequence[SlideFile]) -> Slide:
    """The slides of one case as one under its id."""
    return parts[0] if [part.slide_id for part in parts] == [case_id] else Case(case_id, tuple(parts))


def open_case(case_id: str, slides: Sequence[Sequence[str]], h5_key: str | None, image_dim: int,
              encoder: str | None = None) -> Slide:
    """The slides of one case, each given by the files of its name, checked and joined. Raises UserError."""
    parts = []
    for path, *others in slides:
        try:
            if others:
                raise BadSlide(f"{len(others)} other files have this name, {others[0]} among them", "keep one of them")
            parts.append(inspect_slide(path, h5_key, image_dim, encoder))
        except BadSlide as bad:
            raise UserError(path, bad.what, bad.fix) from None
    return join_slides(case_id, parts)


def find_files(embeddings_dir: str | Path) -> dict[str, list[str]]:
    """{slide id: paths} of all H5 and .pt files below a folder, flat or nested, sorted; FILE.h5/ID for an H5 file that
    has a dataset for each slide. A .pt counts only without an H5 of its name: CLAM writes both. Raises UserError if
    there are none.
    """
    root = expand(str(embeddings_dir))
    if root.is_file():
        return {name: [f"{root}/{name}"] for name in sorted(_slides_in(root))}
    if not root.is_dir():
        raise UserError(root, "no such folder", "give the folder of the H5 tile embeddings")
    found: dict[str, list[str]] = {}
    tensors: dict[str, list[str]] = {}
    walked: set[str] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        if (real := os.path.realpath(folder)) in walked:  # a link back up would be followed for ever
            subfolders.clear()
            continue
        walked.add(real)
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in (*_H5, _PT):
                kind = tensors if suffix.lower() == _PT else found
                kind.setdefault(stem, []).append(os.path.join(folder, name))
    found = tensors | found
    if not found:
        raise UserError(root, "no .h5 file in it", "give the folder of the tile embeddings (.h5, or tensors as .pt)")
    return {slide_id: sorted(found[slide_id]) for slide_id in sorted(found)}


def index_slides(files: dict[str, list[str]], ids: Sequence[str], h5_key: str | None, image_dim: int,
                 encoder: str | None = None, known: Mapping[str, SlideFile] = MappingProxyType({}),
                 ) -> tuple[list[SlideFile], dict[str, BadSlide]]:
    """Check the headers of the slides `ids`, in parallel when they are many; (usable, {path or id: problem}).

    known: {path: header} of files that need not be looked at again.
    If every file that could be read is wrong in the same way the config is at fault: one UserError, not one per file.
    """
    bad = {i: BadSlide("no H5 file of this name", "add the file or remove its label") for i in ids if i not in files}
    for i in ids:
        if len(files.get(i, ())) > 1:
            bad[i] = BadSlide(f"{len(files[i])} files have this name: {', '.join(files[i][:3])}", "keep one of them")
    paths = [files[i][0] for i in ids if i not in bad]
    slides: list[SlideFile] = []
    inspect = partial(_try_inspect, h5_key=h5_key, image_dim=image_dim, encoder=encoder)
    new = [path for path in paths if path not in known]
    bar = progress(_map(inspect, new), "indexing", len(new), "file")
    found = dict(zip(new, bar, strict=True))
    for path in paths:
        result = known.get(path) or found[path]
        if isinstance(result, BadSlide):
            bad[path] = result
        else:
            slides.append(result)
    kinds = Counter((bad[path].what, bad[path].fix) for path in paths if path in bad)
    if not slides and len(paths) > 1 and len(kinds) == 1:
        (what, fix), count = kinds.popitem()
        raise UserError(f"{Path(paths[0]).parent}", f"all {count} files: {what}", fix)
    return slides, bad


def inspect_slide(path: str | Path, h5_key: str | None, image_dim: int, encoder: str | None = None) -> SlideFile:
    """Check the header of one file, or FILE.h5/ID; reads no tile. encoder: the tile encoder it must be of, if it names
    one; None = any. Raises BadSlide."""
    path, slide_id = Path(path), Path(path).stem
    if path.parent.suffix.lower() in _H5 and path.parent.is_file():
        path, slide_id, h5_key = path.parent, path.name, path.name
    opener = _opener(path)
    try:
        stat = os.stat(path)  # before the header is read: a later change is then sure to be noticed
        header = opener.inspect(path, h5_key, image_dim, encoder)
    except opener.ERRORS as error:
        raise _explain(path, error) from None
    return SlideFile(slide_id, str(path), *header, stat.st_size, stat.st_mtime_ns)


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


def _opener(path: Path) -> ModuleType:
    """The module that knows files of this ending."""
    return pt if path.suffix.lower() == _PT else h5


def _explain(path: Path, error: Exception) -> BadSlide:
    """What a failed read means, in the words of somebody who can mend it."""
    if path.is_symlink() and not path.exists():
        return BadSlide(f"not found (symlink to {os.readlink(path)})", "mend the link or copy the file")
    if not path.exists():
        return BadSlide("not found", "check the path")
    if path.is_dir():
        return BadSlide("is a folder", "give an H5 file")
    if getattr(error, "errno", None) in (errno.EACCES, errno.EPERM) and not os.access(path, os.R_OK):
        return BadSlide("permission denied", "make it readable")
    if path.stat().st_size == 0 and not isinstance(error, BlockingIOError):
        return BadSlide("empty file", "copy it again")
    return _opener(path).explain(path, error)


def _slides_in(path: Path) -> list[str]:
    try:
        return h5.slides_in(path)
    except (*h5.ERRORS, BadSlide) as error:
        bad = error if isinstance(error, BadSlide) else _explain(path, error)
        raise UserError(path, bad.what, bad.fix) from None


def _try_inspect(path: str, **wanted: Any) -> SlideFile | BadSlide:
    try:
        return inspect_slide(path, **wanted)
    except BadSlide as problem:
        return problem


def _map(inspect: partial, paths: list[str]) -> Iterable[SlideFile | BadSlide]:
    """Results in order. Processes, as HDF5 has one lock for all threads; spawned, as forking with threads may hang."""
    if len(paths) < _PARALLEL_FROM:
        yield from map(inspect, paths)
        return
    with ProcessPoolExecutor(min(8, os.cpu_count() or 1), multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(inspect, paths, chunksize=64)
