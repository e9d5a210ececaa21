"""The files of slides and cases: found below a folder, matched with ids, their headers checked. Imports no torch."""

from __future__ import annotations

import errno
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from ..common.errors import BadSlide, UserError
from ..common.files import expand, require_regular
from ..common.log import notice
from ..common.progress import progress
from ..common.threads import usable_cores
from . import h5_files, npy_files, pt_files
from .loader_process import map_in_processes
from .tile_sum import NOT_SUMMED

_H5 = (".h5", ".hdf5")
FORMATS = {".h5": h5_files, ".hdf5": h5_files, ".pt": pt_files, ".npy": npy_files, ".npz": npy_files}
_ARRAYS = (".npy", ".npz")  # any array may be saved so: they count only where there is no other file
_SAME = {".hdf5": ".h5"}
_ZARR = ".zarr"
_PARALLEL_FROM = 512  # files; for fewer, starting a process pool takes longer than reading the headers


@dataclass(frozen=True)
class SlideFile:
    """The checked file of one slide.

    Attributes:
        key: The dataset of its tiles, (N, D) or (1, N, D); '' if a `.pt` or `.npy` file holds a single array.
        num_tiles, width: N and D.
        dtype: Of the dataset, in numpy's notation.
        offset: Byte offset of its data in the file; None if chunked or compressed.
        size, mtime_ns: Of the file when it was checked, in bytes and nanoseconds.
        tile_sum: Over a few of its tiles.
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
    tile_sum: int = NOT_SUMMED

    @property
    def parts(self) -> tuple[SlideFile, ...]:
        """The files of this slide, as a Case has them."""
        return (self,)

    @property
    def in_shared_file(self) -> bool:
        """Whether the file holds a dataset or a group per slide, named after it."""
        # os.path: with 100 000 slides, a Path of each takes seconds
        return self.slide_id != os.path.splitext(os.path.basename(self.path))[0]

    @property
    def location(self) -> str:
        """The argument of `inspect_slide`: the file, or FILE.h5/ID."""
        return f"{self.path}/{self.slide_id}" if self.in_shared_file else self.path

    def is_unchanged(self, stat: os.stat_result) -> bool:
        """Whether a file of this state is the one that was checked."""
        return (stat.st_size, stat.st_mtime_ns) == (self.size, self.mtime_ns)


@dataclass(frozen=True)
class Case:
    """Several slides that are encoded as one, their tiles concatenated. It can be used like a SlideFile."""

    slide_id: str
    parts: tuple[SlideFile, ...]

    @property
    def num_tiles(self) -> int:
        """Number of tiles of all files."""
        return sum(part.num_tiles for part in self.parts)

    @property
    def path(self) -> str:
        """The first file, for messages."""
        return self.parts[0].path


Slide = SlideFile | Case


def join_slides(case_id: str, parts: Sequence[SlideFile]) -> Slide:
    """The slides of a case as one slide with the id of the case."""
    if len(parts) == 1 and parts[0].slide_id == case_id:
        return parts[0]
    return Case(case_id, tuple(parts))


def open_case(case_id: str, slides: Sequence[Sequence[str]], h5_key: str | None, image_dim: int,
              encoder: str | None = None) -> Slide:
    """Check and join the slides of one case.

    Args:
        case_id: Id of the case.
        slides: For each slide the files of its name.
        h5_key, image_dim, encoder: As in `inspect_slide`.

    Raises:
        UserError: A slide cannot be used, or several files have its name.
    """
    parts = []
    for path, *others in slides:
        try:
            if others:
                raise BadSlide(f"{len(others)} other files have this name, such as {others[0]}",
                               "name it with its folder in the slides of a labels file")
            parts.append(inspect_slide(path, h5_key, image_dim, encoder))
        except BadSlide as bad:
            raise UserError(path, bad.what, bad.fix) from None
    return join_slides(case_id, parts)


def find_files(embeddings_dir: str | Path) -> dict[str, list[str]]:
    """Find the files of slides below a folder, flat or nested.

    Args:
        embeddings_dir: The folder, or one H5 file that has a dataset or group per slide.

    Returns:
        {slide id: paths}, sorted; a path is FILE.h5/ID for a slide of a shared file. A .pt file only counts if there is
        no H5 file of its name: CLAM writes both. NumPy files only count if there are no others.

    Raises:
        UserError: There are none.
    """
    root = expand(str(embeddings_dir))
    if root.is_file():
        return {name: [f"{root}/{name}"] for name in sorted(_slides_in(root))}
    if not root.is_dir():
        raise UserError(root, "no such folder", "give the folder of the H5 tile embeddings")
    paths = _paths_by_name(root)
    return {slide_id: sorted(paths[slide_id]) for slide_id in sorted(paths)}


def _paths_by_name(root: Path) -> dict[str, list[str]]:
    found = _paths_by_ending(root)
    arrays, others = {**found[".npz"], **found[".npy"]}, {**found[".pt"], **found[".h5"]}
    if not arrays and not others:
        raise _no_files(root, found[_ZARR])
    if arrays and others:
        notice("%d NumPy files beside H5 or .pt files are not taken for slides: %s ...", len(arrays),
               ", ".join(list(arrays)[:5]))
    return others or arrays


def _paths_by_ending(root: Path) -> dict[str, dict[str, list[str]]]:
    """{ending: {slide id: paths}}."""
    found: dict[str, dict[str, list[str]]] = {suffix: defaultdict(list) for suffix in (*FORMATS, _ZARR)}
    for path in _walk(root):
        stem, suffix = os.path.splitext(os.path.basename(path))
        if suffix.lower() in found:
            found[_SAME.get(suffix.lower(), suffix.lower())][stem].append(path)
    return found


def _no_files(root: Path, stores: dict[str, list[str]]) -> UserError:
    for paths in stores.values():
        return UserError(paths[0], "is a Zarr store, as LazySlide writes them",
                         'save its features as NumPy files: numpy.save("ID.npy", wsi["virchow_tiles"].X)')
    return UserError(root, "no .h5 file in it", "give the folder of the tile embeddings (.h5, .pt or .npy)")


def _walk(root: Path) -> Iterator[str]:
    """The paths of all files and Zarr stores below a folder, links followed."""
    visited: set[str] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real_path = os.path.realpath(folder)
        if real_path in visited:  # a link to a parent folder would be followed forever
            subfolders.clear()
            continue
        visited.add(real_path)
        yield from (os.path.join(folder, name) for name in names + _take_stores(subfolders))


def _take_stores(subfolders: list[str]) -> list[str]:
    """Remove the Zarr stores, folders of thousands of files, from a list and return them."""
    stores = [name for name in subfolders if name.endswith(_ZARR)]
    subfolders[:] = [name for name in subfolders if name not in stores]
    return stores


def _slides_in(path: Path) -> list[str]:
    if path.suffix.lower() in (".pt", *_ARRAYS):
        raise UserError(path, "is the file of one slide", "give the folder of the slides")
    try:
        return h5_files.slides_in(path)
    except (*h5_files.ERRORS, BadSlide) as error:
        bad = describe_error(path, error)
        raise UserError(path, bad.what, bad.fix) from None


def index_slides(paths: Sequence[str], h5_key: str | None, image_dim: int, encoder: str | None = None,
                 cached: Mapping[str, SlideFile] = MappingProxyType({}),
                 ) -> tuple[list[SlideFile], dict[str, BadSlide]]:
    """Check the headers of slides, in parallel when there are many.

    Args:
        paths: Of the files, each once, of `find_files`.
        h5_key, image_dim, encoder: As in `inspect_slide`.
        cached: {location: header} of files that need not be read again.

    Returns:
        (usable slides in the order of `paths`, {path: problem}).

    Raises:
        UserError: All files have the same problem, so the config is at fault and one error is enough.
    """
    # problems are returned as values: an exception would end the pool's map before the other files are read
    inspect = partial(_try_inspect, h5_key=h5_key, image_dim=image_dim, encoder=encoder)
    headers = _read_headers(inspect, paths, cached)
    problems: dict[str, BadSlide] = {}
    slides: list[SlideFile] = []
    for path in paths:
        header = headers[path]
        if isinstance(header, BadSlide):
            problems[path] = header
        else:
            slides.append(header)

    # a single bad file says nothing about the config
    if len(paths) > 1 and not slides:
        _raise_if_all_alike(paths, problems)
    return slides, problems


def _raise_if_all_alike(paths: Sequence[str], problems: dict[str, BadSlide]) -> None:
    different = {(problems[path].what, problems[path].fix) for path in paths}
    if len(different) == 1:
        what, fix = different.pop()
        raise UserError(Path(paths[0]).parent, f"all {len(paths)} files: {what}", fix)


def _read_headers(inspect: partial, paths: Sequence[str], cached: Mapping[str, SlideFile],
                  ) -> dict[str, SlideFile | BadSlide]:
    missing = [path for path in paths if path not in cached]
    results = progress(_map(inspect, missing), "indexing", len(missing), "file")
    return {**cached, **dict(zip(missing, results, strict=True))}


def _try_inspect(path: str, **options: Any) -> SlideFile | BadSlide:
    try:
        return inspect_slide(path, **options)
    except BadSlide as problem:
        return problem


def _map(inspect: partial, paths: list[str]) -> Iterable[SlideFile | BadSlide]:
    """Results in order. Processes, as HDF5 has one lock for all threads."""
    if len(paths) < _PARALLEL_FROM:
        yield from map(inspect, paths)
        return
    yield from map_in_processes(inspect, paths, min(8, usable_cores()), chunksize=64)


def inspect_slide(path: str | Path, h5_key: str | None, image_dim: int, encoder: str | None = None) -> SlideFile:
    """Check the header of one slide; reads only the few tiles of its sum.

    Args:
        path: The file, or FILE.h5/ID for a dataset of a shared file.
        h5_key: Name of the dataset; None looks for the usual names.
        image_dim: D, the dimension its tiles must have.
        encoder: Tile encoder its features must come from, if the file names one; None accepts any.

    Raises:
        BadSlide: The slide cannot be used.
    """
    path = Path(path)
    in_shared_file = path.parent.suffix.lower() in _H5 and path.parent.is_file()
    slide_id = path.name if in_shared_file else path.stem
    if in_shared_file:
        path = path.parent
    file_format = format_of(path)
    try:
        require_regular(path)
        stat = os.stat(path)  # before the header is read, so that a later change is certain to be noticed
        of_slide = (slide_id,) if in_shared_file else ()
        header = file_format.inspect(path, h5_key, image_dim, encoder, *of_slide)
    except file_format.ERRORS as error:
        raise describe_error(path, error) from None
    *header, tile_sum = header
    return SlideFile(slide_id, str(path), *header, stat.st_size, stat.st_mtime_ns, tile_sum)


def format_of(path: Path) -> ModuleType:
    """The module that reads files of this ending: it has ERRORS, `inspect`, `read` and `describe_error`."""
    return FORMATS.get(path.suffix.lower(), h5_files)


def describe_error(path: Path, error: Exception) -> BadSlide:
    """Translate a read error into a problem and its fix."""
    if isinstance(error, BadSlide):
        return error
    problem = _path_problem(path)
    if problem:
        return problem
    if getattr(error, "errno", None) in (errno.EACCES, errno.EPERM) and not os.access(path, os.R_OK):
        return BadSlide("permission denied", "make it readable")
    if path.stat().st_size == 0 and not isinstance(error, BlockingIOError):  # else another process is writing it
        return BadSlide("empty file", "copy it again")
    return format_of(path).describe_error(path, error)


def _path_problem(path: Path) -> BadSlide | None:
    if path.is_dir():
        return BadSlide("is a folder", "give an H5 file")
    if path.is_file():
        return None
    if path.exists():
        return BadSlide("a pipe or device, not a regular file", "give an H5 file")
    if path.is_symlink():
        return BadSlide(f"not found (symlink to {os.readlink(path)})", "repair the link or copy the file")
    return BadSlide("not found", "check the path")
