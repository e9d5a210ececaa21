"""H5 files of tile embeddings as each tool of the field writes them: the dataset of the features, the tile encoder that
made them, the coordinates. With `demo`, which only writes, the one user of h5py.

| written by | features | says which encoder | coords |
| ours, own scripts | `embeddings` (N, D) | - | (N, 2) pixels |
| CLAM | `features` (N, D), chunked | - | (N, 2) level-0 pixels |
| TRIDENT | `features` (N, D), chunked | its attribute `encoder` | (N, 2) level-0 pixels, `patch_size_level0` |
| STAMP | `feats` (N, D) float16 | attribute `extractor` of the file | (N, 2) micrometres, `tile_size_um` |
| HistoGPT | `feats` (N, D); or one dataset a slide | dataset `model_name` | (N, 3) scene, x, y |
| STAMP multiplex | `patch_embeddings` (N, D) | - | - |
A leading 1 in the shape is dropped. Slide-level files of TRIDENT and STAMP carry the same names and are told apart.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from ..common.errors import BadSlide

KEYS = ("embeddings", "features", "feats", "patch_embeddings")
ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError)  # all of h5py's for broken objects
_FILTER_FIX = "pip install hdf5plugin and set HDF5_PLUGIN_PATH to its plugins folder, or repack with gzip"
_TILE_FOLDER = "give the folder of the tile features (TRIDENT: features_virchow; STAMP: what `preprocess` wrote)"
_MAX_SLIDES = 10_000_000  # in one file


class Header(NamedTuple):
    """What `inspect` finds: (N, D) or (1, N, D) numbers under `key`; offset: of their first byte if in one piece."""

    key: str
    num_tiles: int
    width: int
    dtype: str
    offset: int | None


@dataclass(frozen=True)
class Coords:
    """Where the N tiles of one file lie.

    xy: (N, 2) float64, corners of the tiles. unit: `px`, pixels of the slide at full size (level 0), or `um`,
    micrometres. tile_size: side of a tile in that unit. mpp: micrometres per pixel the tiles were read at, and
    magnification: the objective power. None for what the file does not say.
    """

    xy: np.ndarray
    unit: str = "px"
    tile_size: float | None = None
    mpp: float | None = None
    magnification: float | None = None

    @property
    def step(self) -> float:
        """Distance of neighbouring tiles: the smallest between two rows or columns of the grid; 1 for a single tile."""
        gaps = [np.diff(np.unique(axis)) for axis in self.xy.T]
        return float(min((gap.min() for gap in gaps if len(gap)), default=self.tile_size or 1.0))


def inspect(path: Path, key: str | None, width: int, encoder: str | None) -> Header:
    """Header of the features in a file; reads no tile. Raises BadSlide, or one of ERRORS if the file is broken.

    key: of the dataset; None finds it. width: D of its tiles. encoder: who must have made them, None = anyone.
    """
    with h5py.File(path, "r") as file:
        key, dataset, num_tiles = _features(file, key, width)
        found = _encoder(file, dataset)
        if encoder and found and not is_encoder(found, encoder):
            raise BadSlide(f"tiles of the encoder {found!r}, expected {encoder!r}",
                           "use features of that encoder (Prism: Virchow, 2560 wide), or set data.tile_encoder=any")
        return Header(key, num_tiles, width, dataset.dtype.str, dataset.id.get_offset())


def read(path: Path, key: str, file_size: int) -> np.ndarray:
    """The whole of a dataset that `inspect` has found good."""
    with h5py.File(path, "r") as file:
        _check_chunks(file[key], file_size)
        return file[key][()]


def read_coords(path: Path, num_tiles: int) -> Coords | None:
    """Coordinates of the tiles, None if the file has none for them."""
    with h5py.File(path, "r") as file:
        if not isinstance(file.get("coords", getlink=True), h5py.HardLink) or _outside(dataset := file["coords"]):
            return None
        shape = dataset.shape[1:] if len(dataset.shape) == 3 and dataset.shape[0] == 1 else dataset.shape
        if shape[:1] != (num_tiles,) or len(shape) != 2 or shape[1] not in (2, 3) or dataset.dtype.kind not in "iuf":
            return None
        xy = dataset[()].reshape(shape)[:, -2:].astype(np.float64)  # a third column, in front, is the scene
        return Coords(xy, *_scale(file, dataset)) if np.isfinite(xy).all() else None


def slides_in(path: Path) -> list[str]:
    """Names of the datasets of a file that holds one for each slide, as HistoGPT trains from it."""
    with h5py.File(path, "r") as file:
        names = [name for _, name in zip(range(_MAX_SLIDES), file, strict=False) if isinstance(name, str)]
    if set(names) & {*KEYS, "coords"} or not names:
        raise BadSlide("is the file of one slide" if names else "is empty", "give the folder of the slides")
    return names


def is_encoder(found: str, wanted: str) -> bool:
    """Whether a tile encoder's name is the wanted one, but for owner, case, a `full`, `v1` or code hash at its end:
    `paige-ai/Virchow` and STAMP's `virchow-full-3f2a9c1b` are virchow, `virchow2` is not."""
    name, wanted = (text.strip().rsplit("/", 1)[-1].lower().replace("_", "-") for text in (found, wanted))
    return re.fullmatch(re.escape(wanted) + r"(-(full|v1|[0-9a-f]{6,64}))*", name) is not None


def explain(path: Path, error: Exception) -> BadSlide:
    """h5py's error in the words of somebody who can mend it."""
    text = str(error)
    if isinstance(error, BlockingIOError) or "unable to lock file" in text:
        return BadSlide("locked: is another process still writing it?",
                        "wait, or set HDF5_USE_FILE_LOCKING=FALSE on file systems without locks")
    if "file signature not found" in text:
        with open(path, "rb") as file:
            head = file.read(40)
        pull = "run git lfs pull" if head.startswith(b"version https://git-lfs") else "give an H5 file"
        return BadSlide(f"not an HDF5 file (starts with {head[:24].decode('latin-1')!r})", pull)
    if "truncated file" in text:
        return BadSlide(f"truncated ({path.stat().st_size} bytes): {text[text.find('eof'):][:60]}", "copy it again")
    if "required filter" in text or "can't open directory" in text or "filter is not" in text:
        return BadSlide("compressed with a filter that is not installed", _FILTER_FIX)
    return BadSlide(f"cannot be read ({text[:120]})", "copy it again or extract its features again")


def _features(file: h5py.File, wanted: str | None, width: int) -> tuple[str, h5py.Dataset, int]:
    """(key, dataset, number of tiles) of the one that can be the features. Raises BadSlide."""
    keys = [k for k in ((wanted,) if wanted else KEYS) if file.get(k, getlink=True) is not None]
    if not keys:
        names = ", ".join(map(str, list(file)[:8])) or "nothing"  # a name that is no UTF-8 comes as bytes
        patches = set(file) <= {"coords", "imgs"} and len(file)
        raise BadSlide(f"no dataset {wanted or ' / '.join(KEYS)}; the file has: {names}",
                       "this looks like a patch file (coordinates only); features are in another folder (CLAM: "
                       "h5_files, TRIDENT: features_virchow)" if patches else "name the dataset with data.h5_key")
    if (kind := _attribute(file, "feat_type")) in ("slide", "patient"):
        raise BadSlide(f"this is a {kind}-level file of STAMP", _TILE_FOLDER)
    fitting: list[tuple[str, h5py.Dataset, int]] = []
    problems: list[BadSlide] = []
    for key in keys:
        try:
            fitting.append((key, *_check_header(file, key, width)))
        except BadSlide as problem:
            problems.append(problem)
    if len(fitting) > 1:
        raise BadSlide(f"has several matrices of features: {' and '.join(f[0] for f in fitting)}",
                       "say which with data.h5_key")
    if not fitting:
        raise problems[0]
    return fitting[0]


def _check_header(file: h5py.File, key: str, width: int) -> tuple[h5py.Dataset, int]:
    """The dataset and its number of tiles, from shape and type alone: a file that declares 20 TB is refused unread."""
    parts = key.strip("/").split("/")
    for end in range(1, len(parts) + 1):  # a link may lead to another file: anyone's, not only this slide's
        if not isinstance(file.get("/".join(parts[:end]), getlink=True), h5py.HardLink):
            raise BadSlide(f"{key!r} is a link that may point outside the file", "store the data in the file itself")
    dataset = file[key]
    if not isinstance(dataset, h5py.Dataset):
        raise BadSlide(f"{key!r} is a group", "name the dataset with data.h5_key")
    full_shape, dtype, filters = dataset.shape, dataset.dtype, dataset.id.get_create_plist()
    if full_shape is None or dtype.kind != "f" or dtype.itemsize not in (2, 4, 8):
        raise BadSlide(f"{key!r} has type {dtype}, expected floats", "name the dataset with data.h5_key")
    if _outside(dataset):
        raise BadSlide(f"{key!r} points outside the file", "store the data in the file itself")
    if missing := [c for c in (filters.get_filter(i)[0] for i in range(filters.get_nfilters()))
                   if not h5py.h5z.filter_avail(c)]:
        raise BadSlide(f"compressed with filter {missing[0]}, which is not installed", _FILTER_FIX)
    num_tiles = check_shape(full_shape, width, repr(key))
    stored, declared = dataset.id.get_storage_size(), math.prod(full_shape) * dtype.itemsize
    if stored * 2000 < declared:  # gzip cannot shrink features like that: nothing or next to nothing was written
        raise BadSlide(f"declares {declared / 1e9:.3g} GB, holds {stored} bytes", "extract its features again")
    return dataset, num_tiles


def check_shape(full_shape: tuple[int, ...], width: int, name: str) -> int:
    """Number of tiles of a matrix (N, width) or (1, N, width). Raises BadSlide."""
    shape = full_shape[1:] if len(full_shape) == 3 and full_shape[0] == 1 else full_shape
    wrong = f"{name} is {tuple(full_shape)}, expected (N, {width})"
    if 0 in shape:  # TRIDENT writes (0, D) or (0,)
        raise BadSlide("0 tiles", "extract the features of this slide again")
    if len(shape) == 2 and shape[0] == width != shape[1]:
        raise BadSlide(wrong, "transposed? write tiles as rows")
    if len(shape) == 1:
        raise BadSlide(wrong, f"this is a slide-level file: {_TILE_FOLDER}")
    if len(shape) != 2:
        raise BadSlide(wrong, "store one (N, D) matrix")
    if shape[1] != width:
        raise BadSlide(f"tiles are {shape[1]} wide, data.image_dim is {width}",
                       "use features of the right tile encoder (Prism: Virchow, 2560) or set data.image_dim")
    return shape[0]


def _outside(dataset: object) -> bool:
    """Whether an object is anything but a dataset whose numbers lie in the file itself."""
    if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
        return True
    plan = dataset.id.get_create_plist()
    return bool(plan.get_external_count()) or plan.get_layout() == h5py.h5d.VIRTUAL


def _encoder(file: h5py.File, dataset: h5py.Dataset) -> str | None:
    """The tile encoder as the file names it: TRIDENT, STAMP or HistoGPT."""
    name = _attribute(dataset, "encoder") or _attribute(file, "extractor")
    if name is None and isinstance(file.get("model_name", getlink=True), h5py.HardLink) and \
            not _outside(file["model_name"]) and file["model_name"].size == 1:
        name = np.asarray(file["model_name"][()]).reshape(-1)[0]
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else name if isinstance(name, str) else None


def _attribute(owner: h5py.File | h5py.Dataset, name: str) -> object:
    """An attribute, None if it is not there; several times as fast as `attrs.get` when it is not."""
    return owner.attrs[name] if h5py.h5a.exists(owner.id, name.encode()) else None


def _scale(file: h5py.File, coords: h5py.Dataset) -> tuple[str, float | None, float | None, float | None]:
    """(unit, tile size, mpp, magnification) from the attributes of STAMP, TRIDENT or CLAM."""
    def number(value: object) -> float | None:  # TRIDENT writes what it does not know as the text 'None'
        try:
            value = float(np.asarray(value).reshape(-1)[0])
        except (TypeError, ValueError, IndexError):
            return None
        return value if 0 < value < math.inf else None

    if file.attrs.get("unit") == "um":
        size, pixels = number(file.attrs.get("tile_size_um")), number(file.attrs.get("tile_size_px"))
        return "um", size, size / pixels if size and pixels else None, None
    get = coords.attrs.get
    size, read_at = number(get("patch_size")), number(get("target_magnification"))
    scale = number(get("downsample")) or 1.0  # of CLAM's patch_level
    if read_at and (full := number(get("level0_magnification"))):
        scale = full / read_at
    return "px", number(get("patch_size_level0")) or (size * scale if size else None), None, read_at


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
