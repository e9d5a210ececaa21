"""Tile embeddings as .npy and .npz files, written by NumPy; damaged and hostile ones."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from finetune.common.errors import BadSlide
from finetune.config.schema import DataConfig
from finetune.data.prepare import prepare_data, scan_contents
from finetune.data.slides import find_files, index_slides, inspect_slide
from finetune.data.tile_reader import read_coords, read_tiles
from tests.helpers.files import paths_of, random_tiles, refused, write_h5, write_json

D = 6
TILES = random_tiles(40, D)


def save(folder: Path, array: np.ndarray, name: str = "s.npy") -> Path:
    np.save(folder / name, array)
    return folder / name


def bad(path: Path, *words: str, key: str | None = None) -> None:
    with pytest.raises(BadSlide) as caught:
        inspect_slide(path, key, D)
    for word in words:
        assert word in f"{caught.value.what}; {caught.value.fix}"


@pytest.mark.parametrize("shape", [(40, D), (1, 40, D)])
@pytest.mark.parametrize(("stored", "given"), [("<f2", "f2"), ("<f4", "f4"), ("<f8", "f4"), (">f4", "f4")])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_reads_as_native_floats_mapped_where_its_rows_are_stored_one_by_one(tmp_path, shape, stored, given, order):
    data = np.asarray(TILES.astype(stored).reshape(shape), order=order)
    slide = inspect_slide(save(tmp_path, data), None, D)
    tiles = read_tiles(slide)
    assert (slide.slide_id, slide.key, slide.num_tiles, slide.width) == ("s", "", 40, D)
    assert tiles.dtype == given and np.array_equal(tiles, TILES.astype(stored).astype(given)) and read_coords(slide) is None
    assert (slide.offset is not None) == (order == "C")
    rows = np.array([0, 7, 39])
    assert np.array_equal(read_tiles(slide, rows), tiles[rows])


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(("arrays", "h5_key", "key"), [
    ({"arr_0": TILES}, None, "arr_0"), ({"features": TILES, "coords": np.zeros((40, 2))}, None, "features"), ({"x": TILES, "y": TILES}, "y", "y")])
def test_an_archive_of_arrays_is_read(tmp_path, write, arrays, h5_key, key):
    write(tmp_path / "s.npz", **arrays)
    slide = inspect_slide(tmp_path / "s.npz", h5_key, D)
    assert (slide.key, slide.num_tiles, slide.offset) == (key, 40, None) and np.array_equal(read_tiles(slide), TILES)


@pytest.mark.parametrize(("array", "words"), [
    (np.zeros((3, D), "i8"), ["holds int64, expected floats"]), (np.zeros((3, D), "c8"), ["holds complex64"]), (np.array([["a"]]), ["expected floats"]),
    (np.zeros((3, 4), "f4"), ["tiles are 4 wide"]), (np.zeros((3, D + 3), "f4"), ["3 columns of coordinates before the features?", "a[:, 3:]"]),
    (np.zeros((D, 10), "f4"), ["transposed"]), (np.zeros(D, "f4"), ["slide-level"]), (np.zeros((0, D), "f4"), ["0 tiles"]),
    (np.zeros((3, D), [("a", "f4")]), ["expected floats"]), (np.array(1.0), ["is (), expected"])])
def test_an_array_that_is_no_tile_matrix_is_refused_from_its_header(tmp_path, array, words):
    bad(save(tmp_path, array), *words)


def test_a_pickle_is_never_read(tmp_path):
    np.save(tmp_path / "s.npy", np.array([[print, {}]], object), allow_pickle=True)
    bad(tmp_path / "s.npy", "holds object, expected floats")


@pytest.mark.parametrize("name", ["s.npy", "s.npz"])
def test_a_cut_or_other_file_says_so(tmp_path, name):
    if name == "s.npy":
        save(tmp_path, TILES)
    else:
        np.savez(tmp_path / name, TILES)
    raw = (tmp_path / name).read_bytes()
    for content, words in ((raw[:-1], ["copy it again"]), (raw[:60], ["copy it again"]), (b"", ["empty file"]), (b"<html>", ["not a NumPy file", "<html>"]),
                           (b"version https://git-lfs.github.com/spec/v1", ["git lfs pull"])):
        (tmp_path / name).write_bytes(content)
        bad(tmp_path / name, *words)


def test_bombs_are_refused_from_their_headers(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2**40, D)})
    (tmp_path / "s.npy").write_bytes(header.getvalue())
    bad(tmp_path / "s.npy", "truncated (0 bytes of numbers)")
    with zipfile.ZipFile(tmp_path / "s.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("features.npy", header.getvalue())
    bad(tmp_path / "s.npz", "truncated")
    np.savez_compressed(tmp_path / "z.npz", np.zeros((100_000, D), "f4"))
    assert inspect_slide(tmp_path / "z.npz", None, D).num_tiles == 100_000, "well compressed features are no bomb"


def test_an_archive_of_other_or_several_arrays_lists_them(tmp_path):
    np.savez(tmp_path / "s.npz", a=TILES, b=TILES)
    bad(tmp_path / "s.npz", "holds the arrays: a, b", "data.h5_key")
    bad(tmp_path / "s.npz", "holds the arrays: a, b", key="c")
    np.savez(tmp_path / "s.npz")
    bad(tmp_path / "s.npz", "holds the arrays: none")


def test_non_finite_and_changed_tiles_are_refused(tmp_path):
    data = TILES.copy()
    data[3, 1] = np.inf
    slide = inspect_slide(save(tmp_path, data), None, D)
    with refused("s.npy", "NaN or infinity in 1 of 40 tiles"):
        read_tiles(slide)
    save(tmp_path, TILES[:5])
    with refused("s.npy", "changed since it was checked"):
        read_tiles(slide)


def test_arrays_count_only_where_there_are_no_other_files(tmp_path, log_lines):
    save(tmp_path, TILES, "a.npy")
    np.savez(tmp_path / "b.npz", TILES)
    np.savez(tmp_path / "a.npz", TILES)
    assert [Path(p).name for p in paths_of(find_files(tmp_path))] == ["a.npy", "b.npz"]
    write_h5(tmp_path / "c.h5", TILES)
    assert list(find_files(tmp_path)) == ["c"] and any("NumPy files beside H5" in line for line in log_lines)


def test_a_lazyslide_store_says_how_to_save_its_features(tmp_path):
    (tmp_path / "s.zarr" / "tables").mkdir(parents=True)
    save(tmp_path / "s.zarr", TILES, "0.npy")
    with refused("s.zarr", "is a Zarr store, as LazySlide writes them", "numpy.save"):
        find_files(tmp_path)
    save(tmp_path, TILES, "s.npy")
    assert list(find_files(tmp_path)) == ["s"]


def test_a_folder_of_arrays_trains_as_a_folder_of_h5_files(tmp_path):
    """Equal fingerprint, equal samples; the check of all contents reads them."""
    fingerprints = []
    for kind in ("h5", "npy", "npz"):
        folder = tmp_path / kind
        folder.mkdir()
        for i in range(6):
            tiles = random_tiles(i + 1, D, i)
            if kind == "h5":
                write_h5(folder / f"s{i}.h5", tiles)
            elif kind == "npy":
                save(folder, tiles, f"s{i}.npy")
            else:
                np.savez_compressed(folder / f"s{i}.npz", tiles)
        write_json(tmp_path / "l.json", {f"s{i}": f"胃癌{i}" for i in range(6)})
        data = prepare_data(DataConfig(embeddings_dir=str(folder), labels_file=str(tmp_path / "l.json"), image_dim=D, val_split=0.2), 42)
        scan_contents(data)
        assert all(np.array_equal(read_tiles(s), random_tiles(s.num_tiles, D, s.num_tiles - 1)) for s in data.slides)
        fingerprints.append(data.fingerprint)
    assert len(set(fingerprints)) == 1
    slides, problems = index_slides(paths_of(find_files(tmp_path / "npz")), None, D)
    assert len(slides) == 6 and not problems
