"""Files with the names, shapes, types, attributes and storage of each tool, written with plain h5py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from finetune.common.errors import BadSlide
from finetune.data.h5_files import is_encoder
from finetune.data.slides import SlideFile, find_files, index_slides, inspect_slide
from finetune.data.tile_reader import read_coords, read_tiles
from tests.helpers.files import paths_of, random_tiles, refused

D, N = 6, 12
GRID = np.stack(np.meshgrid(np.arange(4), np.arange(3)), -1).reshape(-1, 2)  # (12, 2)


def clam(file: h5py.File, tiles: np.ndarray) -> None:
    file.create_dataset("features", data=tiles.astype("f4"), chunks=(32, D), maxshape=(None, D))
    file.create_dataset("coords", data=(GRID * 512).astype("i4"), chunks=(32, 2), maxshape=(None, 2))


def clam_patches(file: h5py.File, tiles: np.ndarray | None = None) -> None:
    coords = file.create_dataset("coords", data=(GRID * 512).astype("i8"), chunks=(1, 2), maxshape=(None, 2))
    coords.attrs.update({"patch_size": 256, "patch_level": 1, "downsample": np.array([2.0, 2.0]), "name": "s",
                         "downsampled_level_dim": np.array([1000, 800]), "level_dim": np.array([1000, 800]),
                         "save_path": "patches"})


def trident(file: h5py.File, tiles: np.ndarray, encoder: str | None = "virchow", **changes: object) -> None:
    features = file.create_dataset("features", data=tiles, chunks=(1, *tiles.shape[1:]), maxshape=(None, *tiles.shape[1:]))
    features.attrs.update({"name": "s", "savetodir": "features_virchow"} | ({"encoder": encoder} if encoder else {}))
    coords = file.create_dataset("coords", data=(GRID * 512).astype("i8"), chunks=(1, 2), maxshape=(None, 2))
    coords.attrs.update({"patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40, "overlap": 0,
                         "target_magnification": 20, "name": "s", "savetodir": "patches", "level0_width": "None",
                         "level0_height": "None"} | changes)


def trident_slide(file: h5py.File, tiles: np.ndarray) -> None:
    trident(file, tiles[0], encoder=None)


def stamp(file: h5py.File, tiles: np.ndarray, **changes: object) -> None:
    file["feats"] = tiles.astype("f2")
    file["coords"] = (GRID * 256.0).astype("f4")
    file.attrs.update({"stamp_version": "2.3.0", "extractor": "virchow-full-3f2a9c1b", "unit": "um", "tile_size_um": 256.0,
                       "tile_size_px": 224, "code_hash": "3f2a9c1b", "feat_type": "tile"} | changes)


def stamp_slide(file: h5py.File, tiles: np.ndarray) -> None:
    file["feats"] = tiles[:1]
    file.attrs.update({"version": "2.3.0", "encoder": "cobra", "precision": "torch.float32", "stamp_version": "2.3.0",
                       "code_hash": "0a1b2c3d", "feat_type": "slide"})


def stamp_multiplex(file: h5py.File, tiles: np.ndarray) -> None:
    file["patch_embeddings"] = tiles


def histogpt(file: h5py.File, tiles: np.ndarray, model: object = "virchow") -> None:
    file["feats"] = tiles
    file["coords"] = np.column_stack([np.zeros(N), GRID * 512]).astype("f8")  # scene, x, y
    file["model_name"] = model
    file["slide_sizes"] = np.array([[4096, 4096]])


def ours(file: h5py.File, tiles: np.ndarray) -> None:
    file["embeddings"] = tiles.astype("f2")
    file["coords"] = GRID * 96
    file["coords"].attrs.update({"patch_size": 96, "patch_size_level0": 192})


def atlaspatch(file: h5py.File, tiles: np.ndarray, encoders: tuple[str, ...] = ("uni_v2", "virchow", "virchow2")) -> None:
    for number, name in enumerate(encoders):
        file.create_dataset(f"features/{name}", data=tiles.astype("f4") if name == "virchow" else random_tiles(N, D, number + 5))
    file["coords"] = np.column_stack([GRID * 512, np.full((N, 2), 512), np.zeros(N)]).astype("i4")  # x, y, width, height, level
    file.attrs.update({"patch_size": 256, "patch_size_level0": 512})


def write(folder: Path, tool: Callable, *args: object, name: str = "s.h5", **changes: object) -> Path:
    with h5py.File(folder / name, "w") as file:
        tool(file, random_tiles(N, D), *args, **changes)
    return folder / name


def inspect(path: Path, encoder: str | None = "virchow") -> SlideFile:
    return inspect_slide(path, None, D, encoder)


@pytest.mark.parametrize(("tool", "key", "mapped", "unit", "spacing", "known"), [
    pytest.param(ours, "embeddings", True, "px", 96, (192.0, None, None), id="own script"),
    pytest.param(clam, "features", False, "px", 512, (None, None, None), id="CLAM"),
    pytest.param(trident, "features", False, "px", 512, (512.0, None, 20.0), id="TRIDENT"),
    pytest.param(stamp, "feats", True, "um", 256, (256.0, 256 / 224, None), id="STAMP"),
    pytest.param(stamp_multiplex, "patch_embeddings", True, None, None, None, id="STAMP multiplex"),
    pytest.param(histogpt, "feats", True, "px", 512, (None, None, None), id="HistoGPT"),
    pytest.param(atlaspatch, "features/virchow", True, "px", 512, (512.0, None, None), id="AtlasPatch"),
])
def test_the_features_and_coordinates_of_each_tool_are_found(tmp_path, tool, key, mapped, unit, spacing, known):
    slide = inspect(write(tmp_path, tool))
    assert (slide.key, slide.num_tiles, slide.offset is not None) == (key, N, mapped)
    tiles = read_tiles(slide)
    assert np.array_equal(tiles, random_tiles(N, D).astype(tiles.dtype)) and isinstance(tiles, np.memmap) == mapped
    coords = read_coords(slide)
    if unit is None:
        assert coords is None
        return
    assert np.array_equal(coords.xy, GRID * float(spacing)) and coords.unit == unit and coords.step == spacing
    assert (coords.tile_size, coords.mpp, coords.magnification) == known


@pytest.mark.parametrize(("tool", "changes", "words"), [
    pytest.param(clam_patches, {}, ["patch file (coordinates only)", "CLAM: h5_files"], id="CLAM patch file"),
    pytest.param(trident_slide, {}, ["slide-level", "features_virchow"], id="TRIDENT slide"),
    pytest.param(stamp_slide, {}, ["slide-level file of STAMP", "preprocess"], id="STAMP slide"),
    pytest.param(stamp, {"feat_type": "patient"}, ["patient-level file of STAMP"], id="STAMP patient"),
    pytest.param(trident, {"encoder": "virchow2"}, ["'virchow2', expected 'virchow'", "2560"], id="TRIDENT Virchow2"),
    pytest.param(stamp, {"extractor": "virchow2-3f2a9c1b"}, ["'virchow2-3f2a9c1b'", "2560"], id="STAMP Virchow2"),
    pytest.param(histogpt, {"model": "ctranspath"}, ["'ctranspath'", "any"], id="HistoGPT CTransPath"),
    pytest.param(histogpt, {"model": [b"uni"]}, ["'uni'"], id="HistoGPT, bytes in an array"),
    pytest.param(atlaspatch, {"encoders": ("uni_v2",)}, ["'uni_v2', expected 'virchow'"], id="AtlasPatch without Virchow"),
])
def test_what_is_not_the_wanted_tiles_is_refused_with_what_is_wanted(tmp_path, tool, changes, words):
    with pytest.raises(BadSlide) as caught:
        inspect(write(tmp_path, tool, **changes))
    for word in words:
        assert word in f"{caught.value.what}; {caught.value.fix}"


def test_H08_an_empty_slide_of_trident_has_0_tiles(tmp_path):
    for shape in ((0, D), (0,)):
        with h5py.File(tmp_path / "s.h5", "w") as file:
            file.create_dataset("features", shape, "f4", chunks=(1, *shape[1:]), maxshape=(None, *shape[1:]))
        with pytest.raises(BadSlide, match="0 tiles"):
            inspect(tmp_path / "s.h5")


@pytest.mark.parametrize(("found", "same"), [
    ("virchow", True), ("Virchow", True), ("paige-ai/Virchow", True), ("hf-hub:paige-ai/Virchow", True), ("virchow_v1", True),
    ("virchow-full", True), ("virchow-full-0123456789abcdef", True), ("virchow2", False), ("virchow-2", False),
    ("virchow_v2", False), ("paige-ai/Virchow2", False), ("virchow2-3f2a9c1b", False), ("uni", False), ("", False)])
def test_virchow_is_distinguished_from_virchow2(found, same):
    assert is_encoder(found, "virchow") is same


def test_any_encoder_may_be_allowed(tmp_path):
    assert inspect(write(tmp_path, trident, "virchow2"), None).num_tiles == N
    assert inspect(write(tmp_path, trident, "uni_v1"), "uni").num_tiles == N


def test_several_matrices_that_fit_need_a_key_and_one_that_fits_is_taken(tmp_path):
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["features"], file["feats"] = random_tiles(N, D), random_tiles(N, D + 1)
        file["embeddings"] = random_tiles(1, D)[0]
    assert inspect(tmp_path / "s.h5").key == "features"
    with h5py.File(tmp_path / "s.h5", "a") as file:
        file["patch_embeddings"] = random_tiles(N, D)
    with pytest.raises(BadSlide, match=r"features and patch_embeddings.*data\.h5_key"):
        inspect(tmp_path / "s.h5")
    assert inspect_slide(tmp_path / "s.h5", "patch_embeddings", D).key == "patch_embeddings"


@pytest.mark.parametrize(("changes", "size"), [
    ({"patch_size_level0": "None"}, 512.0), ({"patch_size_level0": "None", "level0_magnification": "None"}, 256.0),
    ({"patch_size_level0": np.array([300.0])}, 300.0), ({"patch_size_level0": "None", "patch_size": "None"}, None)])
def test_the_tile_size_comes_from_what_is_written(tmp_path, changes, size):
    assert read_coords(inspect(write(tmp_path, trident, **changes))).tile_size == size


def test_the_scale_of_clams_patch_level_counts(tmp_path):
    with h5py.File(write(tmp_path, clam_patches), "a") as file:
        file["features"] = random_tiles(N, D)
    assert read_coords(inspect(tmp_path / "s.h5")).tile_size == 512


@pytest.mark.parametrize("coords", [np.zeros((N - 1, 2)), np.zeros((N, 4)), np.zeros(N), np.full((N, 2), np.nan), b"text",
                                    h5py.SoftLink("/features"), h5py.ExternalLink("other.h5", "/x"), None, h5py.Empty("f4")])
def test_coordinates_that_are_none_of_these_tiles_are_none(tmp_path, coords):
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["features"] = random_tiles(N, D)
        if coords is not None:
            file["coords"] = coords
    assert read_coords(inspect(tmp_path / "s.h5")) is None


def test_one_file_with_a_dataset_for_each_slide_as_histogpt_trains_from(tmp_path):
    with h5py.File(tmp_path / "all.h5", "w") as file:
        for number, name in enumerate(["p2", "p.1", "患者"]):
            file[name] = random_tiles(3 + number, D, number)
    files = find_files(tmp_path / "all.h5")
    assert list(files) == ["p.1", "p2", "患者"]
    slides, bad = index_slides(paths_of(files, ["p2", "患者", "p.1"]), None, D)
    assert [(s.slide_id, s.num_tiles) for s in slides] == [("p2", 3), ("患者", 5), ("p.1", 4)] and not bad
    for number, slide in ((0, slides[0]), (2, slides[1])):
        assert np.array_equal(read_tiles(slide), random_tiles(3 + number, D, number))
        assert inspect_slide(slide.location, None, D) == slide and read_coords(slide) is None
    with refused("s.h5", "is the file of one slide", "give the folder"):
        find_files(write(tmp_path, stamp))


def test_of_several_encoders_of_atlaspatch_one_is_named_by_key_if_any_is_accepted(tmp_path):
    path = write(tmp_path, atlaspatch)
    with pytest.raises(BadSlide, match="several matrices of features: features/uni_v2 and features/virchow and"):
        inspect(path, None)
    assert inspect_slide(path, "features/uni_v2", D).key == "features/uni_v2"


def all_slides(folder: Path, tool: Callable, *names: str, **changes: object) -> Path:
    """One file with a group for each slide."""
    with h5py.File(folder / "all.h5", "w") as file:
        for number, name in enumerate(names):
            tool(file.create_group(name), random_tiles(N, D, number), **changes)
    return folder / "all.h5"


@pytest.mark.parametrize(("tool", "key", "unit"), [(trident, "features", "px"), (stamp, "feats", "um"), (ours, "embeddings", "px"),
                                                   (atlaspatch, "features/virchow", "px")])
def test_one_file_with_a_group_for_each_slide(tmp_path, tool, key, unit):
    files = find_files(all_slides(tmp_path, tool, "A", "all", "患者 1"))
    assert list(files) == ["A", "all", "患者 1"]
    slides, bad = index_slides(paths_of(files), None, D, "virchow")
    assert [(s.slide_id, s.key) for s in slides] == [("A", f"A/{key}"), ("all", f"all/{key}"), ("患者 1", f"患者 1/{key}")] and not bad
    for number, slide in enumerate(slides):
        tiles = read_tiles(slide)
        assert np.array_equal(tiles, random_tiles(N, D, number).astype(tiles.dtype))
        if slide.slide_id != "all":  # of the name of the file: its place cannot be told from that of the file
            assert inspect_slide(slide.location, None, D, "virchow") == slide
        coords = read_coords(slide)
        assert coords.unit == unit and len(coords.xy) == N
    (tmp_path / "all.h5").touch()
    with refused("all.h5", "changed since it was checked"):
        read_tiles(slides[0])


def test_a_group_for_each_slide_goes_through_all_checks(tmp_path):
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file["good/features"] = random_tiles(N, D)
        file["wide/features"] = random_tiles(N, D + 1)
        file["nan/features"] = np.full((N, D), np.nan, "f4")
        file["other/features"], file["other/features"].attrs["encoder"] = random_tiles(N, D), "uni"
        file["whole/features"], file["whole"].attrs["feat_type"] = random_tiles(N, D), "slide"
        file["far"] = h5py.ExternalLink("secret.h5", "/")
        file["soft/features"] = h5py.SoftLink("/good/features")
        file.create_group("empty")
    slides, bad = index_slides(paths_of(find_files(tmp_path / "all.h5")), None, D, "virchow")
    assert [s.slide_id for s in slides] == ["good", "nan"]
    for name, words in {"wide": "7 wide", "other": "'uni'", "whole": "slide-level", "far": "link", "soft": "link", "empty": "no dataset"}.items():
        assert words in bad[f"{tmp_path}/all.h5/{name}"].what, name
    with refused("NaN or infinity in 12 of 12 tiles"):
        read_tiles(slides[1])


def test_a_file_of_groups_among_the_files_of_a_folder_says_how_to_give_it(tmp_path):
    with pytest.raises(BadSlide) as caught:
        inspect(all_slides(tmp_path, trident, "A", "B"))
    assert "give this file as data.embeddings_dir" in caught.value.fix
