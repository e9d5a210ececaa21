"""Tensors as tile embeddings. Truth: `torch.save` and `torch.load` themselves."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.common.errors import BadSlide
from finetune.data.slides import find_files, index_slides, inspect_slide
from finetune.data.tile_reader import read_coords, read_tiles
from tests.helpers.files import paths_of, random_tiles, refused, write_h5

D = 6
TILES = torch.from_numpy(random_tiles(40, D))


def save(folder: Path, content: object, name: str = "s.pt", **options: object) -> Path:
    torch.save(content, folder / name, **options)
    return folder / name


@pytest.mark.parametrize(("content", "mapped"), [
    pytest.param(TILES, True, id="CLAM pt_files, HistGen, WsiCaption"), pytest.param(TILES[None], True, id="(1, N, D)"),
    pytest.param(TILES.half(), True, id="float16"), pytest.param(TILES.double(), True, id="float64"),
    pytest.param(TILES.bfloat16(), False, id="bfloat16"), pytest.param(TILES[5:9], True, id="a view of a larger tensor"),
    pytest.param(TILES.clone().requires_grad_(), True, id="with requires_grad, as a model gives it"),
    pytest.param(TILES.T.contiguous().T, False, id="columns first"), pytest.param({"features": TILES}, False, id="dict"),
    pytest.param({"coords": torch.zeros(40, 2), "feats": TILES}, False, id="dict with coordinates"),
])
def test_a_tensor_reads_as_torch_reads_it_and_is_mapped_if_it_is_alone(tmp_path, content, mapped):
    slide = inspect_slide(save(tmp_path, content), None, D)
    wanted = content if isinstance(content, torch.Tensor) else next(v for v in content.values() if v.shape[-1] == D)
    wanted = (wanted if wanted.dtype == torch.float16 else wanted.float()).detach().numpy().reshape(-1, D)
    tiles = read_tiles(slide)
    assert (tiles.dtype, slide.num_tiles, slide.slide_id) == (wanted.dtype, len(wanted), "s")
    assert np.array_equal(tiles, wanted) and (slide.offset is not None) == mapped and read_coords(slide) is None
    assert np.array_equal(read_tiles(slide, np.array([0, 3])), wanted[[0, 3]])


class Bomb:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


def compressed(folder: Path) -> Path:
    """An archive whose entries inflate."""
    path = save(folder, torch.zeros(4000, D), "plain.pt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(folder / "s.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    return folder / "s.pt"


def raw(folder: Path, content: bytes) -> Path:
    (folder / "s.pt").write_bytes(content)
    return folder / "s.pt"


@pytest.mark.parametrize(("make", "words"), [
    pytest.param(lambda f: save(f, {"features": TILES, "x": Bomb(f / "canary")}), ["holds objects other"], id="K03 bomb"),
    pytest.param(lambda f: save(f, Bomb(f / "canary"), _use_new_zipfile_serialization=False), ["torch 1.6"], id="K03 old bomb"),
    pytest.param(compressed, ["declares more than it holds"], id="H16 compressed"),
    pytest.param(lambda f: save(f, torch.zeros(1).expand(2**31, D)), ["declares more numbers"], id="H16 numbers upon numbers"),
    pytest.param(lambda f: raw(f, save(f, TILES, "t.pt").read_bytes()[:-30]), ["truncated"], id="H02 cut"),
    pytest.param(lambda f: raw(f, b"version https://git-lfs.github.com/spec/v1\n"), ["git lfs pull"], id="H03 LFS"),
    pytest.param(lambda f: raw(f, b""), ["torch 1.6"], id="H02 nothing in it"),
    pytest.param(lambda f: save(f, [TILES]), ["a list, expected a tensor"], id="H05 list"),
    pytest.param(lambda f: save(f, TILES.to_sparse()), ["expected a tensor"], id="H05 sparse"),
    pytest.param(lambda f: save(f, TILES.int()), ["int32, expected floats"], id="H10 whole numbers"),
    pytest.param(lambda f: save(f, TILES[0]), ["slide-level"], id="H07 slide-level"),
    pytest.param(lambda f: save(f, TILES.T.contiguous()), ["transposed"], id="H06 transposed tensor"),
    pytest.param(lambda f: save(f, TILES[:0]), ["0 tiles"], id="H08 no tile"),
    pytest.param(lambda f: save(f, {"a": TILES}), ["is a dict of: a", "data.h5_key"], id="H04 unknown key"),
    pytest.param(lambda f: save(f, {"feats": TILES, "features": TILES}), ["say which"], id="H04 two keys"),
])
def test_a_file_that_is_no_tile_matrix_is_refused_and_runs_nothing(tmp_path, make, words):
    path = make(tmp_path)
    with pytest.raises(BadSlide) as caught:
        inspect_slide(path, None, D)
    text = f"{caught.value.what}; {caught.value.fix}"
    assert not (tmp_path / "canary").exists() and "weights_only" not in text
    for word in words:
        assert word in text, text


def test_a_damaged_archive_of_the_right_form_never_crashes(tmp_path):
    whole = bytearray(save(tmp_path, TILES, "whole.pt").read_bytes())
    rng = np.random.default_rng(0)
    for _ in range(150):
        data = whole.copy()
        for place in rng.integers(0, len(data), 4):
            data[place] = rng.integers(256)
        try:
            read_tiles(inspect_slide(raw(tmp_path, data), None, D), check=False)
        except BadSlide as problem:
            assert problem.fix


def test_of_a_tensor_and_an_h5_of_one_name_the_h5_counts_as_clam_writes_both(tmp_path):
    for folder in ("h5_files", "pt_files"):
        (tmp_path / folder).mkdir()
    write_h5(tmp_path / "h5_files" / "a.h5", random_tiles(3, D), "features")
    for name in ("a", "b"):
        save(tmp_path / "pt_files", TILES, f"{name}.pt")
    slides, bad = index_slides(paths_of(find_files(tmp_path)), None, D)
    assert [s.num_tiles for s in slides] == [3, 40] and not bad


def test_H20_a_tensor_that_changed_after_its_check_is_an_error(tmp_path):
    slide = inspect_slide(save(tmp_path, TILES), None, D)
    save(tmp_path, TILES[:5].clone())
    with refused("s.pt", "changed since it was checked"):
        read_tiles(slide)
