"""Tile embeddings on disk: find the H5 file of each slide, check its header, read its tiles. The only user of h5py.

Layouts: one 2-D float dataset (N tiles, D) per file, as TRIDENT, CLAM, STAMP and HistoGPT write it, (1, N, D) too.
Contiguous datasets are memory-mapped at their offset in the file, all others read by HDF5 in one pass. Handles are
opened per read and never kept, so any number of loader processes, forked or spawned, may read. Loader processes import
this module and no torch: they start in a fraction of a second.
"""

from __future__ import annotations

import errno
import math
import multiprocessing
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

import h5py
import numpy as np
from tqdm import tqdm

from .config import expand
from .errors import UserError

KEYS = ("embeddings", "features", "feats", "patch_embeddings")  # our own, CLAM/TRIDENT, STAMP/HistoGPT, STAMP multiplex
SUFFIXES = (".h5", ".hdf5")
_H5_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError)  # all of h5py's for broken objects
_FILTER_FIX = "pip install hdf5plugin and set HDF5_PLUGIN_PATH to its plugins folder, or repack with gzip"
_BLOCK = 1 << 19  # numbers checked at a time: 1 or 2 MB, so that the second look at them is served by the cache
_PARALLEL_FROM = 512  # below so many files a process pool starts slower than the headers are read


class BadSlide(Exception):
    """Why the file of one slide cannot be used: `what`, and `fix`, as in UserError."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what, fix)
        self.what, self.fix = what, fix


@dataclass(frozen=True)
class SlideFile:
    """A checked H5 file: `key` names a float dataset of `num_tiles` tiles, (N, D) or (1, N, D).

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


def find_files(embeddings_dir: str | Path) -> dict[str, list[str]]:
    """{slide id: paths} of all H5 files below a folder, flat or nested, sorted. Raises UserError if there are none."""
    root = expand(str(embeddings_dir))
    if not root.is_dir():
        raise UserError(root, "no such folder", "give the folder of the H5 tile embeddings")
    found: dict[str, list[str]] = {}
    walked: set[str] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        if (real := os.path.realpath(folder)) in walked:  # a link back up would be followed for ever
            subfolders.clear()
            continue
        walked.add(real)
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in SUFFIXES:
                found.setdefault(stem, []).append(os.path.join(folder, name))
    if not found:
        raise UserError(root, "no .h5 file in it", "give the folder of the H5 tile embeddings")
    return {slide_id: sorted(found[slide_id]) for slide_id in sorted(found)}


def index_slides(files: dict[str, list[str]], ids: Sequence[str], h5_key: str | None, image_dim: int,
                 known: Mapping[str, SlideFile] = MappingProxyType({}),
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
    inspect = partial(_try_inspect, h5_key=h5_key, image_dim=image_dim)
    new = [path for path in paths if path not in known]
    bar = tqdm(_map(inspect, new), "indexing", len(new), unit="file", leave=False, disable=None)
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


def inspect_slide(path: str | Path, h5_key: str | None, image_dim: int) -> SlideFile:
    """Check the header of one H5 file; reads no tile. Raises BadSlide."""
    try:
        stat = os.stat(path)  # before the header is read: a later change is then sure to be noticed
        with h5py.File(path, "r") as file:
            key = _feature_key(file, h5_key)
            dataset = file[key]
            num_tiles = _check_header(dataset, key, image_dim)
            return SlideFile(Path(path).stem, str(path), key, num_tiles, image_dim, dataset.dtype.str,
                             dataset.id.get_offset(), stat.st_size, stat.st_mtime_ns)
    except _H5_ERRORS as error:
        raise _explain(Path(path), error) from None


def read_tiles(slide: SlideFile, rows: np.ndarray | None = None, *, check: bool = True) -> np.ndarray:
    """Tile embeddings (N, D) of a slide in native float16 or float32; `rows` (sorted indices): only those.

    The result may be a read-only map of the file. check: look for NaN and infinity (as long again as the reading; who
    looks at what is computed from the tiles need not). Raises UserError if the file cannot be read, has changed since
    it was indexed, or holds NaN or infinity.
    """
    try:
        stat = os.stat(slide.path)
        if (stat.st_size, stat.st_mtime_ns) != (slide.size, slide.mtime_ns):
            raise UserError(slide.path, f"{stat.st_size} bytes, changed since it was checked ({slide.size} bytes)",
                            "do not change the files while they are in use, then start again")
        if slide.offset is not None:
            tiles = np.memmap(slide.path, slide.dtype, "r", slide.offset, (slide.num_tiles, slide.width))
        else:
            with h5py.File(slide.path, "r") as file:
                _check_chunks(file[slide.key], stat.st_size)
                tiles = file[slide.key][()].reshape(slide.num_tiles, slide.width)
    except _H5_ERRORS as error:
        bad = _explain(Path(slide.path), error)
        raise UserError(slide.path, bad.what, bad.fix) from None
    tiles = tiles if rows is None else tiles[rows]
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is told below
        tiles = tiles.astype(np.float16 if tiles.dtype.itemsize == 2 else np.float32, copy=False)
    if check and not _all_finite(tiles):
        bad_rows = np.count_nonzero(~np.isfinite(tiles).all(axis=1))
        raise UserError(slide.path, f"NaN or infinity in {bad_rows} of {len(tiles)} tiles",
                        "extract the features of this slide again")
    return tiles


def choose_tiles(slide: SlideFile, max_tiles: int | None, seed: int, epoch: int) -> np.ndarray | None:
    """Sorted indices of the tiles to use, or None for all: the same ones for the same (seed, epoch, slide id)."""
    if max_tiles is None or slide.num_tiles <= max_tiles:
        return None
    rng = np.random.default_rng([seed, epoch, zlib.crc32(slide.slide_id.encode())])
    return np.sort(rng.choice(slide.num_tiles, max_tiles, replace=False))


@dataclass(frozen=True)
class TileReader:
    """Reads a slide's tiles of an epoch: all of them, or `max_tiles` chosen by (seed, epoch, id)."""

    max_tiles: int | None
    seed: int

    def __call__(self, slide: SlideFile, epoch: int) -> np.ndarray:
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


def _feature_key(file: h5py.File, h5_key: str | None) -> str:
    key = next((k for k in ((h5_key,) if h5_key else KEYS) if k in file or file.get(k, getlink=True) is not None), None)
    if key is None:
        names = ", ".join(map(str, list(file)[:8])) or "nothing"  # a name that is no UTF-8 comes as bytes
        hint = "this looks like a patch file (coordinates only); features are in another folder" \
            if set(file) <= {"coords", "imgs"} and len(file) else "name the dataset with data.h5_key"
        raise BadSlide(f"no dataset {h5_key or ' / '.join(KEYS)}; the file has: {names}", hint)
    parts = key.strip("/").split("/")
    for end in range(1, len(parts) + 1):  # a link may lead to another file: anyone's, not only this slide's
        if not isinstance(file.get("/".join(parts[:end]), getlink=True), h5py.HardLink):
            raise BadSlide(f"{key!r} is a link that may point outside the file", "store the data in the file itself")
    return key


def _check_header(dataset: object, key: str, image_dim: int) -> int:
    """Number of tiles, from shape and type alone: a file that declares 20 TB is refused before any read."""
    if not isinstance(dataset, h5py.Dataset):
        raise BadSlide(f"{key!r} is a group", "name the dataset with data.h5_key")
    full_shape, dtype, filters = dataset.shape, dataset.dtype, dataset.id.get_create_plist()
    if full_shape is None or dtype.kind != "f" or dtype.itemsize not in (2, 4, 8):
        raise BadSlide(f"{key!r} has type {dtype}, expected floats", "name the dataset with data.h5_key")
    if filters.get_external_count() or filters.get_layout() == h5py.h5d.VIRTUAL:
        raise BadSlide(f"{key!r} points outside the file", "store the data in the file itself")
    if missing := [c for c in (filters.get_filter(i)[0] for i in range(filters.get_nfilters()))
                   if not h5py.h5z.filter_avail(c)]:
        raise BadSlide(f"compressed with filter {missing[0]}, which is not installed", _FILTER_FIX)
    shape = full_shape[1:] if len(full_shape) == 3 and full_shape[0] == 1 else full_shape
    wrong = f"{key!r} is {full_shape}, expected (N, {image_dim})"
    if len(shape) == 2 and shape[0] == image_dim != shape[1]:
        raise BadSlide(wrong, "transposed? write tiles as rows")
    if len(shape) == 1:
        raise BadSlide(wrong, "this is a slide-level file: give the folder of the tile features")
    if len(shape) != 2:
        raise BadSlide(wrong, "store one (N, D) matrix")
    if shape[1] != image_dim:
        raise BadSlide(f"tiles are {shape[1]} wide, data.image_dim is {image_dim}",
                       "use features of the right tile encoder (Prism: Virchow, 2560) or set data.image_dim")
    if shape[0] == 0:
        raise BadSlide("0 tiles", "extract the features of this slide again")
    stored, declared = dataset.id.get_storage_size(), math.prod(full_shape) * dtype.itemsize
    if stored * 2000 < declared:  # gzip cannot shrink features like that: nothing or next to nothing was written
        raise BadSlide(f"declares {declared / 1e9:.3g} GB, holds {stored} bytes", "extract its features again")
    return shape[0]


def _check_chunks(dataset: h5py.Dataset, file_size: int) -> None:
    """Raises OSError for a broken index of chunks: HDF5's filters crash the process on chunks of impossible sizes."""
    if dataset.chunks is None:
        return
    whole = math.prod(dataset.chunks) * dataset.dtype.itemsize
    filters = dataset.id.get_create_plist().get_nfilters()

    def check(chunk: h5py.h5d.StoreInfo) -> None:
        fits = 8 < chunk.size <= 2 * whole + 4096 if filters else chunk.size == whole
        inside = all(0 <= at < end for at, end in zip(chunk.chunk_offset, dataset.shape, strict=True))
        if not (fits and inside and 0 < chunk.byte_offset <= file_size - chunk.size):
            raise OSError(f"its chunk at {chunk.chunk_offset} is broken")

    dataset.id.chunk_iter(check)


def _explain(path: Path, error: Exception) -> BadSlide:
    """h5py's error in the words of somebody who can mend it."""
    text = str(error)
    if path.is_symlink() and not path.exists():
        return BadSlide(f"not found (symlink to {os.readlink(path)})", "mend the link or copy the file")
    if not path.exists():
        return BadSlide("not found", "check the path")
    if path.is_dir():
        return BadSlide("is a folder", "give an H5 file")
    if getattr(error, "errno", None) in (errno.EACCES, errno.EPERM) and not os.access(path, os.R_OK):
        return BadSlide("permission denied", "make it readable")
    if isinstance(error, BlockingIOError) or "unable to lock file" in text:
        return BadSlide("locked: is another process still writing it?",
                        "wait, or set HDF5_USE_FILE_LOCKING=FALSE on file systems without locks")
    size = path.stat().st_size
    if size == 0:
        return BadSlide("empty file", "copy it again")
    if "file signature not found" in text:
        head = path.open("rb").read(40)
        pull = "run git lfs pull" if head.startswith(b"version https://git-lfs") else "give an H5 file"
        return BadSlide(f"not an HDF5 file (starts with {head[:24].decode('latin-1')!r})", pull)
    if "truncated file" in text:
        return BadSlide(f"truncated ({size} bytes): {text[text.find('eof'):][:60]}", "copy it again")
    if "required filter" in text or "can't open directory" in text or "filter is not" in text:
        return BadSlide("compressed with a filter that is not installed", _FILTER_FIX)
    return BadSlide(f"cannot be read ({text[:120]})", "copy it again or extract its features again")


def _try_inspect(path: str, h5_key: str | None, image_dim: int) -> SlideFile | BadSlide:
    try:
        return inspect_slide(path, h5_key, image_dim)
    except BadSlide as problem:
        return problem


def _map(inspect: partial, paths: list[str]) -> Iterable[SlideFile | BadSlide]:
    """Results in order. Processes, as HDF5 has one lock for all threads; spawned, as forking with threads may hang."""
    if len(paths) < _PARALLEL_FROM:
        yield from map(inspect, paths)
        return
    with ProcessPoolExecutor(min(8, os.cpu_count() or 1), multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(inspect, paths, chunksize=64)
