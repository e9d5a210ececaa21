"""H5 files of tile embeddings in the layout of each tool: features, name of the tile encoder, coordinates.

| written by | features | encoder named in | coords |
| ours, own scripts | `embeddings` (N, D) | - | (N, 2) pixels |
| CLAM | `features` (N, D), chunked | - | (N, 2) level-0 pixels |
| TRIDENT | `features` (N, D), chunked | its attribute `encoder` | (N, 2) level-0 pixels, `patch_size_level0` |
| STAMP | `feats` (N, D) float16 | attribute `extractor` of the file | (N, 2) micrometres, `tile_size_um` |
| HistoGPT | `feats` (N, D); or one dataset a slide | dataset `model_name` | (N, 3) scene, x, y |
| STAMP multiplex | `patch_embeddings` (N, D) | - | - |
| AtlasPatch | `features/ENCODER` (N, D) | its name | (N, 5) level-0 pixels, `patch_size_level0` of the file |
| one file for all slides | `SLIDE`, or any of these in a group `SLIDE` | as these | beside the features |
A leading 1 in the shape is dropped. Slide-level files of TRIDENT and STAMP use the same names and are refused.

To read another layout, add its dataset to KEYS, its encoder to `_encoder_name` and its coordinates to
`tile_coords`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from ..common.errors import BadSlide
from .tile_coords import Coords, coords_of
from .tile_sum import NOT_SUMMED, sum_of_tiles

KEYS = ("embeddings", "features", "feats", "patch_embeddings")
ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError)  # what h5py raises for broken files
_FILTER_FIX = "pip install hdf5plugin and set HDF5_PLUGIN_PATH to its plugins folder, or repack with gzip"
_TILE_FOLDER = "give the folder of the tile features (TRIDENT: features_virchow; STAMP: what `preprocess` wrote)"
_MAX_SLIDES = 10_000_000  # in one file
_MAX_ENCODERS = 1000  # in one group
# Columns of x and y: HistoGPT writes scene, x, y; AtlasPatch x, y, width, height, level.
_XY = {2: slice(0, 2), 3: slice(1, 3), 5: slice(0, 2)}
_MAX_COMPRESSION = 2000  # deflate shrinks nothing by more than 1032
_MAX_SUMMED_CHUNK = 1 << 26  # bytes; h5py's own chunks have up to 1 MB
_MAX_FILTER_BYTES = 4096  # that a filter may add to a chunk it cannot shrink


class Header(NamedTuple):
    """Header of a dataset of tile embeddings, (N, D) or (1, N, D).

    Attributes:
        key: Its name.
        num_tiles, width: N and D.
        dtype: In numpy's notation.
        offset: Byte offset of its data in the file; None if chunked or compressed.
        tile_sum: Of `tile_sum.sum_of_tiles`.
    """

    key: str
    num_tiles: int
    width: int
    dtype: str
    offset: int | None
    tile_sum: int = NOT_SUMMED


def inspect(path: Path, key: str | None, width: int, encoder: str | None, slide: str | None = None) -> Header:
    """Check the header of the features in a file; reads only the few tiles of its sum.

    Args:
        path: The H5 file.
        key: Name of the dataset; None looks for one of KEYS.
        width: D, the dimension its tiles must have.
        encoder: Tile encoder the features must come from, if the file names one; None accepts any.
        slide: In a file of several slides, the dataset or group of the wanted one.

    Raises:
        BadSlide: The features cannot be used. One of ERRORS if the file is broken.
    """
    with h5py.File(path, "r") as file:
        key, dataset, num_tiles = _find_features(file, _candidates(file, key, encoder, slide), width)
        name = _encoder_name(file, dataset)
        if encoder and name and not is_encoder(name, encoder):
            raise BadSlide(f"tiles of the encoder {name!r}, expected {encoder!r}",
                           "use features of that encoder (Prism: Virchow, 2560 wide), or set data.tile_encoder=any")
        _check_chunks(dataset, path.stat().st_size)
        return Header(key, num_tiles, width, dataset.dtype.str, dataset.id.get_offset(), _sum(dataset, num_tiles))


def read(path: Path, key: str, file_size: int) -> np.ndarray:
    """Read a dataset that `inspect` has accepted, in its own shape and dtype."""
    with h5py.File(path, "r") as file:
        _check_chunks(file[key], file_size)
        return file[key][()]


def _sum(dataset: h5py.Dataset, num_tiles: int) -> int:
    """The sum over a few tiles, unless a single chunk is so large that reading them would take all memory."""
    if dataset.chunks and math.prod(dataset.chunks) * dataset.dtype.itemsize > _MAX_SUMMED_CHUNK:
        return NOT_SUMMED
    return sum_of_tiles(lambda rows: dataset[..., rows, :].tobytes(), num_tiles)


def read_coords(path: Path, key: str, num_tiles: int) -> Coords | None:
    """Coordinates of the tiles of a dataset, None if there are none that fit them.

    Args:
        path: The file.
        key: The dataset of the features: coordinates are beside it, or beside the group of all encoders.
        num_tiles: N.
    """
    with h5py.File(path, "r") as file:
        dataset = _coords_dataset(file, key)
        shape = () if dataset is None else _without_leading_one(dataset.shape)
        if len(shape) != 2 or shape[0] != num_tiles or shape[1] not in _XY:
            return None
        xy = dataset[()].reshape(shape)[:, _XY[shape[1]]].astype(np.float64)
        return coords_of(xy, dataset.parent.attrs, dataset.attrs) if np.isfinite(xy).all() else None


def _coords_dataset(file: h5py.File, key: str) -> h5py.Dataset | None:
    groups = key.split("/")[:-1]
    if groups and groups[-1] in KEYS:
        groups.pop()
    dataset = _inner_dataset(file, "/".join([*groups, "coords"]))
    return dataset if dataset is not None and dataset.dtype.kind in "iuf" else None


def slides_in(path: Path) -> list[str]:
    """Names of the datasets of a file that holds one per slide, the form HistoGPT trains from. Raises BadSlide."""
    with h5py.File(path, "r") as file:
        # a name that is not UTF-8 comes as bytes: no label can have it
        names = [name for name in islice(file, _MAX_SLIDES) if isinstance(name, str)]
    if not names:
        raise BadSlide("is empty", "give the folder of the slides")
    if set(names) & {*KEYS, "coords"}:
        raise BadSlide("is the file of one slide", "give the folder of the slides")
    return names


def is_encoder(name: str, wanted: str) -> bool:
    """Whether the name a file gives its tile encoder means the wanted one.

    Owner and case do not matter, nor does `full`, `v1` or a code hash at the end: `paige-ai/Virchow` and STAMP's
    `virchow-full-3f2a9c1b` are virchow, `virchow2` is not.
    """
    name, wanted = (text.strip().rsplit("/", 1)[-1].lower().replace("_", "-") for text in (name, wanted))
    return re.fullmatch(re.escape(wanted) + r"(-(full|v1|[0-9a-f]{6,64}))*", name) is not None


def describe_error(path: Path, error: Exception) -> BadSlide:
    """Translate an error of h5py into a problem and its fix."""
    text = str(error)
    if isinstance(error, BlockingIOError) or "unable to lock file" in text:
        return BadSlide("locked: is another process still writing it?",
                        "wait, or set HDF5_USE_FILE_LOCKING=FALSE on file systems without locks")
    if "file signature not found" in text:
        return _not_hdf5(path)
    if "truncated file" in text:
        details = text[text.find("eof"):][:60]
        return BadSlide(f"truncated ({path.stat().st_size} bytes): {details}", "copy it again")

    # HDF5 looks for a filter it lacks in its plugin folder, which may not exist
    if re.search("required filter|can't open directory|filter is not", text):
        return BadSlide("compressed with a filter that is not installed", _FILTER_FIX)
    return BadSlide(f"cannot be read ({text[:120]})", "copy it again or extract its features again")


def _not_hdf5(path: Path) -> BadSlide:
    with open(path, "rb") as file:
        head = file.read(40)
    fix = "run git lfs pull" if head.startswith(b"version https://git-lfs") else "give an H5 file"
    return BadSlide(f"not an HDF5 file (starts with {head[:24].decode('latin-1')!r})", fix)


def _candidates(file: h5py.File, key: str | None, encoder: str | None, slide: str | None) -> list[str]:
    """Names of what may be the features: datasets of usual names, or those of such a group, one for each encoder."""
    names = [key] if key else list(KEYS)
    if slide is not None:
        names = [f"{slide}/{name}" for name in names] if _is_group(file, slide) else [slide]
    return list(chain.from_iterable(_members(file, name, encoder) if _is_group(file, name) else [name]
                                    for name in names))


def _members(file: h5py.File, group: str, encoder: str | None) -> list[str]:
    """The datasets of a group, or the one that is named after the wanted encoder; the group if it is empty."""
    names = [name for name in islice(file[group], _MAX_ENCODERS) if isinstance(name, str)]
    named = [name for name in names if encoder and is_encoder(name, encoder)]
    return [f"{group}/{name}" for name in named or names] or [group]


def _is_group(file: h5py.File, name: str) -> bool:
    """Whether a name leads to a group of the file itself."""
    try:
        _refuse_links(file, name)
    except BadSlide:  # absent, or a link, which is refused later
        return False
    return isinstance(file[name], h5py.Group)


def _find_features(file: h5py.File, candidates: list[str], width: int) -> tuple[str, h5py.Dataset, int]:
    """(key, dataset, number of tiles) of the only candidate that can be the features. Raises BadSlide."""
    present = [name for name in candidates if file.get(name, getlink=True) is not None]
    if not present:
        raise _no_features(file, candidates)
    for owner in (file, file[present[0].rpartition("/")[0] or "/"]):
        _require_tile_level(owner)
    matches = _matrices(file, present, width)
    if len(matches) > 1:
        names = " and ".join(name for name, _, _ in matches)
        raise BadSlide(f"has several matrices of features: {names}", "say which with data.h5_key")
    return matches[0]


def _require_tile_level(owner: h5py.Group) -> None:
    """Raises BadSlide for slide-level features, which STAMP stores under the same name."""
    level = _attribute(owner, "feat_type")
    if level in ("slide", "patient"):
        raise BadSlide(f"this is a {level}-level file of STAMP", _TILE_FOLDER)


def _matrices(file: h5py.File, names: list[str], width: int) -> list[tuple[str, h5py.Dataset, int]]:
    """(key, dataset, number of tiles) of those that are matrices of features. Raises BadSlide if none is."""
    # a file may hold a dataset that has a usual name but is not a feature matrix
    matches: list[tuple[str, h5py.Dataset, int]] = []
    problems: list[BadSlide] = []
    for name in names:
        try:
            dataset, num_tiles = _check_header(file, name, width)
            matches.append((name, dataset, num_tiles))
        except BadSlide as problem:
            problems.append(problem)
    if not matches:
        raise problems[0]
    return matches


def _no_features(file: h5py.File, candidates: Sequence[str]) -> BadSlide:
    names = ", ".join(str(name) for name in list(file)[:8])  # a name that is not UTF-8 comes as bytes
    fix = "name the dataset with data.h5_key"
    if len(file) and set(file) <= {"coords", "imgs"}:
        fix = ("this looks like a patch file (coordinates only); features are in another folder (CLAM: h5_files, "
               "TRIDENT: features_virchow)")
    elif len(file) and all(_is_group(file, name) for name in islice(file, _MAX_ENCODERS)):
        fix = "if each group is a slide, give this file as data.embeddings_dir"
    return BadSlide(f"no dataset {' / '.join(candidates)}; the file has: {names or 'nothing'}", fix)


def _check_header(file: h5py.File, key: str, width: int) -> tuple[h5py.Dataset, int]:
    """(dataset, number of tiles), checked by the header alone: a file that declares 20 TB is not read."""
    _refuse_links(file, key)
    dataset = file[key]
    if not isinstance(dataset, h5py.Dataset):
        raise BadSlide(f"{key!r} is a group", "name the dataset with data.h5_key")
    dtype = dataset.dtype
    if dataset.shape is None or dtype.kind != "f" or dtype.itemsize not in (2, 4, 8):
        raise BadSlide(f"{key!r} has type {dtype}, expected floats", "name the dataset with data.h5_key")
    if _is_stored_outside(dataset):
        raise BadSlide(f"{key!r} points outside the file", "store the data in the file itself")
    _refuse_missing_filters(dataset)
    num_tiles = check_shape(dataset.shape, width, repr(key))

    # HDF5 returns zeros for chunks that were never written: reading them would fill the memory
    stored = dataset.id.get_storage_size()
    declared = math.prod(dataset.shape) * dtype.itemsize
    if stored * _MAX_COMPRESSION < declared:
        raise BadSlide(f"declares {declared / 1e9:.3g} GB, holds {stored} bytes", "extract its features again")
    return dataset, num_tiles


def _refuse_links(file: h5py.File, key: str) -> None:
    """Refuse links: one on the path to a dataset may lead to any other file."""
    groups = key.strip("/").split("/")
    for depth in range(1, len(groups) + 1):
        link = file.get("/".join(groups[:depth]), getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise BadSlide(f"{key!r} is a link that may point outside the file", "store the data in the file itself")


def _refuse_missing_filters(dataset: h5py.Dataset) -> None:
    # HDF5 itself notices this only when the tiles are read
    properties = dataset.id.get_create_plist()
    for number in range(properties.get_nfilters()):
        code = properties.get_filter(number)[0]
        if not h5py.h5z.filter_avail(code):
            raise BadSlide(f"compressed with filter {code}, which is not installed", _FILTER_FIX)


def check_shape(full_shape: tuple[int, ...], width: int, name: str) -> int:
    """Number of tiles of a matrix (N, width) or (1, N, width).

    Args:
        full_shape: Of the matrix.
        width: D, the dimension its tiles must have.
        name: Of the matrix, for the message.

    Raises:
        BadSlide: It has another shape, or no tile.
    """
    shape = _without_leading_one(full_shape)
    wrong_shape = f"{name} is {tuple(full_shape)}, expected (N, {width})"
    if 0 in shape:  # TRIDENT writes (0, D) or (0,) for a slide without tissue
        raise BadSlide("0 tiles", "extract the features of this slide again")
    if len(shape) == 1:
        raise BadSlide(wrong_shape, f"this is a slide-level file: {_TILE_FOLDER}")
    if len(shape) != 2:
        raise BadSlide(wrong_shape, "store one (N, D) matrix")
    num_tiles, tile_width = shape
    if tile_width == width:
        return num_tiles
    if num_tiles == width:
        raise BadSlide(wrong_shape, "transposed? write tiles as rows")
    raise BadSlide(f"tiles are {tile_width} wide, data.image_dim is {width}",
                   "extract features with the tile encoder that Prism takes: Virchow, 2560 wide")


def _without_leading_one(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[1:] if len(shape) == 3 and shape[0] == 1 else shape


def _is_stored_outside(dataset: object) -> bool:
    """Whether an object is not a dataset with its data in the file itself."""
    if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
        return True
    properties = dataset.id.get_create_plist()
    return bool(properties.get_external_count()) or properties.get_layout() == h5py.h5d.VIRTUAL


def _inner_dataset(file: h5py.File, name: str) -> h5py.Dataset | None:
    """The dataset of this name if it is stored in the file itself, else None."""
    if not isinstance(file.get(name, getlink=True), h5py.HardLink) or _is_stored_outside(file[name]):
        return None
    return file[name]


def _encoder_name(file: h5py.File, dataset: h5py.Dataset) -> str | None:
    """The tile encoder as TRIDENT, STAMP, HistoGPT or AtlasPatch names it."""
    group = dataset.parent
    name = _attribute(dataset, "encoder") or _attribute(group, "extractor") or _attribute(file, "extractor")
    if name is None and group.name.rpartition("/")[2] in KEYS:
        name = dataset.name.rpartition("/")[2]
    stored = _inner_dataset(file, "model_name") if name is None else None
    if stored is not None and stored.size == 1:
        name = np.asarray(stored[()]).reshape(-1)[0]
    if isinstance(name, bytes):
        return name.decode("utf-8", "replace")
    return name if isinstance(name, str) else None


def _attribute(owner: h5py.Group | h5py.Dataset, name: str) -> object:
    """An attribute or None; where there is none, several times as fast as `attrs.get`."""
    return owner.attrs[name] if h5py.h5a.exists(owner.id, name.encode()) else None


def _possible_chunk_sizes(dataset: h5py.Dataset) -> range:
    """In bytes, as stored."""
    chunk_bytes = math.prod(dataset.chunks) * dataset.dtype.itemsize
    if dataset.id.get_create_plist().get_nfilters() == 0:
        return range(chunk_bytes, chunk_bytes + 1)
    # zlib takes 8 bytes for no data at all; what a filter cannot shrink it may enlarge
    return range(9, 2 * chunk_bytes + _MAX_FILTER_BYTES + 1)


def _check_chunks(dataset: h5py.Dataset, file_size: int) -> None:
    """Raises OSError for a broken index of chunks: HDF5's filters crash the process on chunks of impossible sizes."""
    if dataset.chunks is None:
        return
    sizes = _possible_chunk_sizes(dataset)

    # a callback instead of a list of chunks: TRIDENT writes one chunk per tile
    def check(chunk: h5py.h5d.StoreInfo) -> None:
        in_file = 0 < chunk.byte_offset <= file_size - chunk.size
        if not (in_file and chunk.size in sizes and _is_inside(chunk.chunk_offset, dataset.shape)):
            raise OSError(f"its chunk at {chunk.chunk_offset} is broken")

    dataset.id.chunk_iter(check)


def _is_inside(offset: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return all(0 <= at < end for at, end in zip(offset, shape, strict=True))
