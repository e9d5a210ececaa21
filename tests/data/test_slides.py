"""H5 tile embeddings: layouts of the field, damaged and hostile files. Truth: plain h5py on files written by it."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from finetune.common.errors import BadSlide
from finetune.data import slides as tiles_module
from finetune.data import tile_reader
from finetune.data.slides import find_files, index_slides, inspect_slide
from finetune.data.tile_reader import read_tiles
from tests.helpers.files import paths_of, random_tiles, refused, write_h5, write_slides

D = 6


def bad_slide(path: Path, *words: object, h5_key: str | None = None, image_dim: int = D) -> None:
    """The header check refuses `path` with all `words`."""
    with pytest.raises(BadSlide) as caught:
        inspect_slide(path, h5_key, image_dim)
    text = f"{caught.value.what}; {caught.value.fix}"
    assert caught.value.fix and len(text) < 250
    for word in words:
        assert str(word) in text, f"{word!r} is not in: {text}"


def read(path: Path, h5_key: str | None = None, width: int = D) -> np.ndarray:
    return read_tiles(inspect_slide(path, h5_key, width))


def same(got: np.ndarray, wanted: np.ndarray) -> bool:
    return got.dtype == wanted.dtype and got.dtype.isnative and np.array_equal(got, wanted)


# --- good files ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("key", "shape", "options"), [
    pytest.param("embeddings", (40, D), {}, id="ours, contiguous"),
    pytest.param("features", (40, D), {"chunks": (8, D), "maxshape": (None, D)}, id="CLAM, resizable"),
    pytest.param("features", (1, 40, D), {"chunks": (1, 8, D), "maxshape": (None, 40, D)}, id="H07 TRIDENT (1, N, D)"),
    pytest.param("feats", (40, D), {"chunks": (7, 4), "compression": "gzip", "shuffle": True}, id="H12 STAMP, gzip"),
    pytest.param("patch_embeddings", (40, D), {"compression": "lzf", "fletcher32": True}, id="H12 multiplex, lzf"),
    pytest.param("features", (1, D), {}, id="H08 one tile"),
    pytest.param("features", (D, D), {}, id="H06 as many tiles as columns"),
    pytest.param("features", (1, 1, D), {}, id="H07 (1, 1, D)"),
])
@pytest.mark.parametrize(("stored", "given"), [("<f2", "f2"), ("<f4", "f4"), ("<f8", "f4"), (">f2", "f2"), (">f4", "f4"),
                                               (">f8", "f4")])
def test_H10_every_layout_of_the_field_reads_as_native_floats(tmp_path, key, shape, options, stored, given):
    data = np.random.default_rng(0).standard_normal(shape).astype(stored)
    path = write_h5(tmp_path / "s.1.h5", data, key, **options)
    with h5py.File(path, "a") as file:
        file["coords"] = np.zeros((shape[-2], 2), "i8")
    slide = inspect_slide(path, None, D)
    assert (slide.slide_id, slide.path, slide.key, slide.num_tiles) == ("s.1", str(path), key, shape[-2])
    assert (slide.offset is not None) == (not options), "contiguous data are mapped, not read by HDF5"
    assert same(read_tiles(slide), data.astype(given).reshape(-1, D))


def test_the_dataset_can_be_named_by_key_also_inside_groups(tmp_path):
    wanted = random_tiles(3, D)
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["a/b"], file["features"] = wanted, random_tiles(4, D, 1)
    for key in ("a/b", "/a/b"):
        assert same(read(tmp_path / "s.h5", key), wanted)
    assert same(read(tmp_path / "s.h5"), random_tiles(4, D, 1)), "without a key the usual name counts"


def test_chosen_rows_are_the_rows_of_the_file(tmp_path):
    data = random_tiles(50, D)
    slide = inspect_slide(write_h5(tmp_path / "s.h5", data, chunks=(8, D)), None, D)
    rows = np.array([0, 3, 4, 17, 49])
    assert same(read_tiles(slide, rows), np.stack([data[i] for i in rows]))


@pytest.mark.filterwarnings("error")
def test_large_but_finite_values_are_no_infinity(tmp_path):
    data = np.full((20, D), 3e38, "f4")
    assert same(read(write_h5(tmp_path / "s.h5", data)), data)


# --- bad files -------------------------------------------------------------------------------------------------------

def test_H01_a_missing_file_says_where_its_link_led(tmp_path):
    bad_slide(tmp_path / "no.h5", "not found")
    (tmp_path / "link.h5").symlink_to(tmp_path / "gone.h5")
    bad_slide(tmp_path / "link.h5", "not found (symlink to ", "gone.h5)")
    (tmp_path / "loop.h5").symlink_to(tmp_path / "loop.h5")
    bad_slide(tmp_path / "loop.h5", "not found (symlink to ", "loop.h5)")


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_H01_a_forbidden_file_says_so(tmp_path):
    path = write_h5(tmp_path / "s.h5", random_tiles(3, D))
    path.chmod(0)
    bad_slide(path, "permission denied")


@pytest.mark.parametrize("keep", [0, 100, 0.5, -1], ids=["H02 empty", "H02 100 bytes", "H02 half", "H02 last byte"])
def test_H02_a_cut_file_says_how_many_bytes_there_are(tmp_path, keep):
    path = write_h5(tmp_path / "s.h5", random_tiles(500, D))
    raw = path.read_bytes()
    raw = raw[:int(len(raw) * keep) if isinstance(keep, float) else keep]
    path.write_bytes(raw)
    bad_slide(path, *(["truncated", f"({len(raw)} bytes)"] if raw else ["empty file"]), "copy it again")


@pytest.mark.parametrize(("content", "words"), [
    pytest.param(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", ["git lfs pull"], id="H03 LFS"),
    pytest.param(b"<!DOCTYPE html><html>login</html>", ["starts with '<!DOCTYPE html>"], id="H03 HTML"),
    pytest.param("胃腺癌".encode(), ["not an HDF5 file"], id="H03 text"),
    pytest.param(b"\x1b[31m\n\x00" * 9, ["not an HDF5 file", "\\x1b[31m\\n"], id="H03 control characters"),
])
def test_H03_a_file_that_only_has_the_name_is_recognised(tmp_path, content, words):
    (tmp_path / "s.h5").write_bytes(content)
    bad_slide(tmp_path / "s.h5", *words)


def test_H03_a_folder_with_the_name_of_a_file_is_recognised(tmp_path):
    (tmp_path / "s.h5").mkdir()
    bad_slide(tmp_path / "s.h5", "is a folder")


def test_H04_the_keys_that_were_found_are_listed(tmp_path):
    path = write_h5(tmp_path / "s.h5", random_tiles(3, D), "vectors")
    bad_slide(path, "features", "the file has: vectors", "data.h5_key")
    bad_slide(path, "no dataset tiles", "vectors", h5_key="tiles")
    bad_slide(write_h5(tmp_path / "p.h5", np.zeros((3, 2), "i8"), "coords"), "patch file", "another folder")
    h5py.File(tmp_path / "e.h5", "w").close()
    bad_slide(tmp_path / "e.h5", "the file has: nothing")


@pytest.mark.parametrize("key", ["", "/", ".", "./x", "../features", "features/x", "x/y", "features/.."])
def test_H04_odd_keys_never_crash(tmp_path, key):
    path = write_h5(tmp_path / "s.h5", random_tiles(3, D), "features")
    if key:
        bad_slide(path, h5_key=key)
    else:
        assert inspect_slide(path, key, D).key == "features", "an empty key is no key"


@pytest.mark.parametrize(("data", "words"), [
    pytest.param(None, ["is a group", "data.h5_key"], id="H05 group"),
    pytest.param(np.float32(1), ["is ()"], id="H05 scalar"),
    pytest.param(h5py.Empty("f4"), ["expected floats"], id="H05 empty"),
    pytest.param([b"a", b"b"], ["expected floats"], id="H05 text"),
    pytest.param(np.zeros(3, [("a", "f4")]), ["expected floats"], id="H05 compound"),
    pytest.param(np.zeros((3, 4), "f4"), ["tiles are 4 wide, data.image_dim is 6"], id="H06 width"),
    pytest.param(np.zeros((D, 9), "f4"), ["is (6, 9), expected (N, 6)", "transposed"], id="H06 transposed"),
    pytest.param(np.zeros((2, 3, D), "f4"), ["is (2, 3, 6), expected (N, 6)"], id="H07 two slides"),
    pytest.param(np.zeros((1, 1, 3, D), "f4"), ["is (1, 1, 3, 6)"], id="H07 4-D"),
    pytest.param(np.zeros(D, "f4"), ["is (6,)", "slide-level"], id="H07 1-D"),
    pytest.param(np.zeros((0, D), "f4"), ["0 tiles"], id="H08 no tile"),
    pytest.param(np.zeros((1, 0, D), "f4"), ["0 tiles"], id="H08 no tile in 3-D"),
    pytest.param(np.zeros((3, D), "i4"), ["type int32, expected floats"], id="H10 int32"),
    pytest.param(np.zeros((3, D), "u1"), ["type uint8"], id="H10 uint8"),
    pytest.param(np.zeros((3, D), bool), ["type bool"], id="H10 bool"),
    pytest.param(np.zeros((3, D), "c8"), ["type complex64"], id="H10 complex"),
    pytest.param(np.zeros((3, D), np.longdouble), ["expected floats"], id="H10 long double"),
])
def test_a_dataset_that_is_no_tile_matrix_is_refused_from_its_header(tmp_path, data, words):
    with h5py.File(tmp_path / "s.h5", "w") as file:
        if data is None:
            file.create_group("features")
        else:
            file["features"] = data
    bad_slide(tmp_path / "s.h5", *words)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("dtype", "values"), [
    ("f2", [np.nan]), ("f4", [np.inf]), ("f4", [-np.inf, np.inf]), ("f8", [1e300]), (">f4", [np.nan, 1, np.inf])])
def test_H09_non_finite_tiles_are_counted_and_refused(tmp_path, dtype, values):
    data = random_tiles(20, D).astype(dtype)
    rows = range(3, 3 + 2 * len(values), 2)
    for row, value in zip(rows, values, strict=True):
        data[row, 1] = value
    count = sum(not np.isfinite(v) or v > 1e38 for v in values)
    with refused("s.h5", f"NaN or infinity in {count} of 20 tiles"):
        read(write_h5(tmp_path / "s.h5", data))


def test_H09_a_bad_tile_that_is_not_chosen_does_no_harm(tmp_path):
    data = random_tiles(20, D)
    data[5] = np.nan
    slide = inspect_slide(write_h5(tmp_path / "s.h5", data), None, D)
    assert same(read_tiles(slide, np.array([4, 6])), data[[4, 6]])


def test_H13_a_missing_compression_filter_is_named_from_the_header(tmp_path):
    path = write_h5(tmp_path / "s.h5", random_tiles(20, D), compression="gzip")
    raw = bytearray(path.read_bytes())
    at = raw.index(b"deflate\0") - 8  # filter pipeline message: id, name length, flags, number of values, name
    assert struct.unpack_from("<H", raw, at) == (1,)
    struct.pack_into("<H", raw, at, 32015)  # zstd
    path.write_bytes(raw)
    bad_slide(path, "filter 32015", "not installed", "hdf5plugin")


@pytest.mark.parametrize("number", [0, 5])
@pytest.mark.parametrize("options", [{"compression": "gzip"}, {"fletcher32": True}], ids=["H14 gzip", "H14 fletcher32"])
def test_H14_a_flipped_byte_in_a_checked_chunk_is_an_error_that_names_the_file(tmp_path, options, number):
    """Chunk 5 holds tiles of the sum, and is read with the header."""
    path = write_h5(tmp_path / "s.h5", random_tiles(200, D), chunks=(20, D), **options)
    with h5py.File(path) as file:
        chunk = file["embeddings"].id.get_chunk_info(number)
    raw = bytearray(path.read_bytes())
    raw[chunk.byte_offset + chunk.size // 2] ^= 0xFF
    path.write_bytes(raw)
    if number == 5:
        bad_slide(path, "cannot be read", "copy it again")
        return
    slide = inspect_slide(path, None, D)
    with refused("s.h5", "cannot be read", "copy it again"):
        read_tiles(slide)


def test_A08_other_tiles_in_the_same_shape_have_another_sum(tmp_path):
    tiles = [random_tiles(100, D, seed) for seed in range(2)]
    ways = [lambda path, t: write_h5(path.with_suffix(".h5"), t), lambda path, t: write_h5(path.with_suffix(".h5"), t[None]),
            lambda path, t: write_h5(path.with_suffix(".h5"), t, compression="gzip", chunks=(7, D)),
            lambda path, t: np.save(path.with_suffix(".npy"), t), lambda path, t: np.save(path.with_suffix(".npy"), np.asfortranarray(t)),
            lambda path, t: np.savez_compressed(path.with_suffix(".npz"), features=t),
            lambda path, t: torch.save(torch.from_numpy(t), path.with_suffix(".pt")),
            lambda path, t: torch.save({"features": torch.from_numpy(t).bfloat16()}, path.with_suffix(".pt"))]
    sums = []
    for number, write in enumerate(ways):
        of_seed = []
        for seed, name in ((0, "a"), (1, "b"), (0, "c")):
            folder = tmp_path / f"{number}{name}"
            folder.mkdir()
            write(folder / "s", tiles[seed])
            of_seed.append(inspect_slide(next(folder.iterdir()), None, D).tile_sum)
        assert of_seed[0] == of_seed[2] != of_seed[1] and 0 not in of_seed, number
        sums.append(of_seed)
    assert sums[0] == sums[1] == sums[2] == sums[3] == sums[4] == sums[6], "the same numbers, however they are stored"


def test_H16_a_shape_bomb_is_refused_from_its_header(tmp_path):
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file.create_dataset("embeddings", (2**31, 2560), "f4", chunks=(1024, 2560), compression="gzip")
    assert (tmp_path / "s.h5").stat().st_size < 5000
    bad_slide(tmp_path / "s.h5", "declares 2.2e+04 GB, holds 0 bytes", image_dim=2560)


def test_H16_well_compressed_features_are_no_bomb(tmp_path):
    data = np.zeros((4000, D), "f4")
    assert same(read(write_h5(tmp_path / "s.h5", data, compression="gzip", compression_opts=9)), data)


def external_storage(file: h5py.File, other: Path) -> None:
    file.create_dataset("features", (3, D), "f4", external=[(str(other), 0, 3 * D * 4)])


def virtual(file: h5py.File, other: Path) -> None:
    layout = h5py.VirtualLayout((3, D), "f4")
    layout[:] = h5py.VirtualSource(str(other), "features", (3, D))
    file.create_virtual_dataset("features", layout)


def external_link(file: h5py.File, other: Path) -> None:
    file["features"] = h5py.ExternalLink(str(other), "features")


def soft_link(file: h5py.File, other: Path) -> None:
    file["x"] = random_tiles(3, D)
    file["features"] = h5py.SoftLink("/x")


def dangling_link(file: h5py.File, other: Path) -> None:
    file["features"] = h5py.SoftLink("/nowhere")


@pytest.mark.parametrize("make", [external_storage, virtual, external_link, soft_link, dangling_link])
def test_H17_data_that_may_lie_outside_the_file_is_refused(tmp_path, make):
    other = write_h5(tmp_path / "secret.h5", random_tiles(3, D), "features")
    with h5py.File(tmp_path / "s.h5", "w") as file:
        make(file, other)
    bad_slide(tmp_path / "s.h5", "outside the file", "store the data in the file itself")


def test_H17_a_linked_group_on_the_way_is_refused_too(tmp_path):
    other = write_h5(tmp_path / "secret.h5", random_tiles(3, D), "g/features")
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["g"] = h5py.ExternalLink(str(other), "/g")
        assert file["g/features"].shape == (3, D), "h5py itself follows the link"
    for key in ("g/features", "/g/features", "g//features"):
        bad_slide(tmp_path / "s.h5", "outside the file", h5_key=key)


@pytest.mark.skipif("HDF5_USE_FILE_LOCKING" in os.environ, reason="HDF5_USE_FILE_LOCKING is set")
def test_H18_a_file_that_is_being_written_is_reported_as_locked(tmp_path):
    path = write_h5(tmp_path / "s.h5", random_tiles(3, D))
    with open(path, "rb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)  # what HDF5 does in a process that writes
        bad_slide(path, "locked", "HDF5_USE_FILE_LOCKING=FALSE")
    assert inspect_slide(path, None, D).num_tiles == 3


@pytest.mark.parametrize(("change", "words"), [
    (lambda path: write_h5(path, random_tiles(4, D)), ["changed since it was checked", "do not change"]),
    (lambda path: write_h5(path, random_tiles(3, D, seed=9)), ["changed since it was checked", "do not change"]),
    (lambda path: path.unlink(), ["not found"]),
    (lambda path: path.write_bytes(b""), ["0 bytes, changed since it was checked"]),
], ids=["H20 other number", "H20 other values", "H20 gone", "H20 emptied"])
def test_H20_a_file_that_changed_after_its_check_is_an_error(tmp_path, change, words):
    slide = inspect_slide(write_h5(tmp_path / "s.h5", random_tiles(3, D)), None, D)
    change(tmp_path / "s.h5")
    with refused("s.h5", *words):
        read_tiles(slide)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, -np.nan], ids=["H09 inf", "H09 -inf", "H09 nan", "H09 -nan"])
@pytest.mark.parametrize("dtype", ["f2", "f4"])
@pytest.mark.parametrize("place", [0, 700_000, 1_199_999])  # in the first, a middle and the last block that is looked at
def test_every_kind_of_non_finite_number_is_found_at_any_position(value, dtype, place):
    data = np.random.default_rng(0).standard_normal((1200, 1000)).astype(dtype)
    data.flat[:4] = [np.finfo(dtype).max, np.finfo(dtype).min, -0.0, np.finfo(dtype).smallest_subnormal]
    assert tile_reader.all_finite(data) and tile_reader.all_finite(data[::7, ::3])
    data.flat[place] = value
    assert not tile_reader.all_finite(data)


def test_contiguous_tiles_are_mapped_behind_a_user_block_too(tmp_path):
    data = random_tiles(5, D)
    with h5py.File(tmp_path / "s.h5", "w", userblock_size=1024) as file:
        file["features"] = data
    slide = inspect_slide(tmp_path / "s.h5", None, D)
    tiles = read_tiles(slide)
    assert isinstance(tiles, np.memmap) and slide.offset > 1024 and np.array_equal(tiles, data)


# --- folders ---------------------------------------------------------------------------------------------------------

def test_files_are_found_flat_and_nested_by_their_name(tmp_path):
    for name in ("b.h5", "sub/deep/a.H5", "sub/c.hdf5", "sub/b.h5", "切片 1.2.h5", "x.txt", "y.h5.tmp", "z.svs"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_files(tmp_path)
    assert list(found) == ["a", "b", "c", "切片 1.2"]
    assert found["b"] == [str(tmp_path / "b.h5"), str(tmp_path / "sub/b.h5")]
    assert found["a"] == [str(tmp_path / "sub/deep/a.H5")]


def test_H01_linked_folders_and_files_are_followed_but_not_in_circles(tmp_path):
    (tmp_path / "data/sub").mkdir(parents=True)
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/a.h5").touch()
    (tmp_path / "data/linked").symlink_to(tmp_path / "disk")
    (tmp_path / "data/b.h5").symlink_to(tmp_path / "disk/a.h5")
    for i in range(3):  # three ways up: 3**40 paths without a guard
        (tmp_path / f"data/sub/up{i}").symlink_to(tmp_path / "data")
    assert {k: len(v) for k, v in find_files(tmp_path / "data").items()} == {"a": 1, "b": 1}


def test_C08_a_folder_without_slides_is_refused(tmp_path):
    with refused(tmp_path, "no .h5 file in it"):
        find_files(tmp_path)
    with refused(tmp_path / "no", "no such folder"):
        find_files(tmp_path / "no")
    (tmp_path / "a.h5").touch()
    with refused(tmp_path / "a.h5", "empty file"):
        find_files(tmp_path / "a.h5")


def test_all_problems_of_a_folder_are_found_at_once(tmp_path):
    write_slides(tmp_path, {"a": 3, "b": 2, "c": 1}, D)
    write_h5(tmp_path / "wide.h5", random_tiles(3, 9))
    (tmp_path / "empty.h5").touch()
    slides, bad = index_slides(paths_of(find_files(tmp_path), ["c", "empty", "a", "wide"]), None, D)
    assert [(s.slide_id, s.num_tiles) for s in slides] == [("c", 1), ("a", 3)], "in the order of the paths"
    assert set(bad) == {str(tmp_path / "wide.h5"), str(tmp_path / "empty.h5")}


def test_H06_one_error_when_all_files_are_wrong_in_the_same_way(tmp_path):
    files = find_files(write_slides(tmp_path, {"a": 3, "b": 4, "c": 5}, 9))
    with refused(tmp_path, "all 3 files: tiles are 9 wide, data.image_dim is 6", "data.image_dim"):
        index_slides(paths_of(files), None, D)
    (tmp_path / "a.h5").write_bytes(b"")
    slides, bad = index_slides(paths_of(files), None, D)
    assert not slides and len(bad) == 3, "different faults are listed one by one"


def test_H19_headers_read_by_many_processes_are_the_same(tmp_path, monkeypatch):
    files = find_files(write_slides(tmp_path, {f"s{i}": i + 1 for i in range(6)}, D))
    (tmp_path / "s3.h5").write_bytes(b"x")
    alone = index_slides(paths_of(files), None, D)
    monkeypatch.setattr(tiles_module, "_PARALLEL_FROM", 1)
    together = index_slides(paths_of(files), None, D)
    assert together[0] == alone[0] and len(alone[0]) == 5
    assert {k: v.args for k, v in together[1].items()} == {k: v.args for k, v in alone[1].items()}


def test_H19_hundreds_of_reads_keep_no_file_open(tmp_path):
    slide = inspect_slide(write_h5(tmp_path / "s.h5", random_tiles(3, D)), None, D)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(200):
        read_tiles(slide)
    assert len(os.listdir("/proc/self/fd")) <= before
