"""The files of slides and cases: found below a folder, matched with ids, their headers checked. Imports no torch."""

from __future__ import annotations

import errno
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from ..common.errors import BadSlide, UserError
from ..common.files import expand
from ..common.progress import progress
from . import h5_files as h5
from . import pt_files as pt

_H5, _PT = (".h5", ".hdf5"), ".pt"
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
