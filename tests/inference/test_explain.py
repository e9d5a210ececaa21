"""Tile maps: layouts, pictures, pages, and the command."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from finetune.data.h5_files import Coords
from finetune.inference.captioner import Captioner
from finetune.inference.explain import explain_slide, open_slide
from finetune.inference.tile_maps import heatmap_png, lay_out, open_thumbnail, page_data
from tests.helpers.files import ROOT, refused, write_h5
from tests.helpers.pages import explain

# --- pictures ---------------------------------------------------------------------------------------------------------

XY = Coords(np.array([[100.0, 40], [196, 40], [388, 232]]), tile_size=96)


def test_tiles_lie_where_their_coordinates_say():
    assert lay_out(3, XY).cells.tolist() == [[0, 0], [1, 0], [3, 2]] and lay_out(3, XY).shape == (4, 3)
    square = lay_out(5, None)
    assert square.cells.tolist() == [[0, 0], [1, 0], [2, 0], [0, 1], [1, 1]] and not square.known


def test_coordinates_on_no_grid_make_no_huge_picture():
    far = Coords(np.array([[0.0, 0], [0.001, 0], [1e9, 5]]))
    assert max(lay_out(3, far).shape) <= 4096
    assert len(heatmap_png(lay_out(3, far), [1, 0, 0])) < 200_000


def test_a_heatmap_is_hot_where_the_weight_is():
    image = Image.open(io.BytesIO(heatmap_png(lay_out(3, XY), [0.25, 0.0, 0.75])))
    cell = image.width // 4
    color = {name: image.getpixel((x * cell + cell // 2, y * cell + cell // 2)) for name, (x, y) in
             {"half": (0, 0), "none": (1, 0), "hot": (3, 2), "blank": (2, 1)}.items()}
    assert color["hot"] == (214, 73, 20) and color["none"] == (222, 226, 230) and color["blank"] == (255, 255, 255)
    assert color["hot"][2] < color["half"][2] < color["none"][2]


def test_over_a_thumbnail_the_heat_lies_at_the_slides_scale(tmp_path, log_lines):
    path = tmp_path / "t.png"
    Image.new("RGB", (100, 60), (0, 0, 200)).save(path)
    layout = lay_out(3, XY, (100, 60), 10.0)  # a tile is 9.6 pixels
    image = Image.open(io.BytesIO(heatmap_png(layout, [0.0, 0.0, 1.0], open_thumbnail(path))))
    assert image.size == (100, 60) and image.getpixel((43, 28))[0] > 150 and image.getpixel((13, 8)) == (0, 0, 200)
    assert lay_out(3, XY, (100, 60)).thumbnail_box[0] == pytest.approx(100 / 5.4667, rel=1e-3)
    assert "--thumbnail_scale" in log_lines[-1]


@pytest.mark.parametrize("scale", [0.01, 3.5])
def test_a_scale_at_which_tiles_lie_outside_the_thumbnail_is_refused(scale):
    with refused("--thumbnail_scale", "outside the thumbnail of 100x60"):
        lay_out(3, XY, (100, 60), scale)


@pytest.mark.parametrize(("name", "content", "words"), [("a.png", None, "not found"), ("a.png", b"GIF89a", "not a usable PNG"), ("a.jpg", b"\xff\xd8\xff", "not a usable PNG")])
def test_an_unusable_thumbnail_is_refused(tmp_path, name, content, words):
    if content:
        (tmp_path / name).write_bytes(content)
    with refused(name, words):
        open_thumbnail(tmp_path / name)


def explained(weights):
    """An explanation of one phrase."""
    test = {"log_odds": 2.0, "removed": 1, "without_top": -1.0, "without_random": None, "spread": None, "holds": True}
    return {"tokens": [{"text": "a", "probability": 1.0}],
            "phrases": [{"text": "a", "tokens": [0], "alternative": "b", "deletion_test": test, "no_map": None, "weights": weights}]}


def test_the_page_of_a_large_slide_has_few_cells_and_loses_no_weight():
    side = 100
    xy = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2) * 256.0
    weights = np.zeros(side * side)
    weights[77 * side + 33] = 1.0
    data = page_data(explained(weights.tolist()), lay_out(side * side, Coords(xy)))
    heat = data["phrases"][0]["heat"]
    assert len(data["cells"]) == len(heat) <= 4096 and sum(heat) == 99
    assert data["cells"][heat.index(99)] == [33 // 2, 77 // 2]
    assert data["phrases"][0]["most"] == 1 and (data["origin"], data["step"], data["unit"]) == ((0, 0), 512, "px")


def test_a_cell_has_the_coordinates_of_its_tile():
    coords = Coords(np.array([[100.0, 40], [196, 40], [388, 232]]), unit="um", tile_size=96)
    data = page_data(explained([0.2, 0.3, 0.5]), lay_out(3, coords))
    places = {tuple(data["origin"][axis] + cell[axis] * data["step"] for axis in (0, 1)) for cell in data["cells"]}
    assert places == {(100, 40), (196, 40), (388, 232)} and data["unit"] == "um" and data["phrases"][0]["most"] == 0.5


# --- the command ------------------------------------------------------------------------------------------------------



def test_the_command_writes_a_map_of_what_has_an_effect_and_none_of_what_has_not(run_with_coords):
    Image.new("RGB", (90, 80)).save(run_with_coords / "thumb.jpg")
    (run_with_coords / "out").mkdir()
    for name in ("phrase_2.png", "phrase_9.png", "phrase_note.png"):
        (run_with_coords / "out" / name).write_text("old", encoding="utf-8")
    done = subprocess.run([sys.executable, "inference.py", "--checkpoint", run_with_coords / "run" / "best_model.pth", "--embeddings_file",
                           run_with_coords / "embeddings" / "s1.h5", "--explain", run_with_coords / "out", "--thumbnail", run_with_coords / "thumb.jpg"], cwd=ROOT,
                          capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    found = json.loads((run_with_coords / "out" / "explanation.json").read_text(encoding="utf-8"))
    assert found["id"] == "s1" and found["coordinates"][7] == [1024, 512] and found["unit"] == "px"
    assert found["caption"] == "胃腺癌，高分化。" and f"caption: {found['caption']}" in done.stdout
    assert "".join(t["text"] for t in found["tokens"]) == found["caption"]
    cancer, grade = found["phrases"]
    assert (cancer["text"], cancer["alternative"], grade["text"], grade["alternative"]) == ("胃腺癌", "未见癌", "高分化", "")
    test, weights = cancer["deletion_test"], np.array(cancer["weights"])
    assert cancer["no_map"] is None and weights.shape == (20,) and weights.min() >= 0 and weights.sum() == pytest.approx(1)
    assert sorted(weights.argsort()[-5:]) == [0, 1, 2, 3, 4], "the tiles with the direction of cancer"
    assert test["holds"] and test["without_top"] <= test["log_odds"] / 2 and test["without_random"] - test["without_top"] > 4.34 * test["spread"]
    assert grade["weights"] is None and grade["no_map"] == "no effect" and grade["deletion_test"]["holds"] is False
    assert "no effect: do not read this map" in next(line for line in done.stdout.splitlines() if "高分化\t" in line)
    pictures = {p.name for p in (run_with_coords / "out").glob("*.png")}
    assert pictures == {"phrase_1.png", "phrase_note.png"} and Image.open(run_with_coords / "out" / "phrase_1.png").size == (90, 80)
    page = (run_with_coords / "out" / "explanation.html").read_text(encoding="utf-8")
    assert "无效应：不要读这张图" in page and "no effect: do not read this map" in page and len(page) < 200_000


def test_a_caption_is_explained_without_training_texts(run_with_coords):
    captioner = Captioner.load(run_with_coords / "run")
    slide = open_slide(captioner, run_with_coords / "embeddings" / "s1.h5")
    found, _ = explain_slide(captioner, slide, "胃腺癌，高分化。")
    assert found["phrases"][0]["alternative"] not in (None, "", "胃腺癌") and found["phrases"][0]["deletion_test"]["removed"] > 0


def test_the_page_of_an_unusual_slide_says_so_first(run_with_coords, capsys):
    write_h5(run_with_coords / "equal.h5", np.ones((30, 2560), "f4"))
    explain(run_with_coords, "--embeddings_file", run_with_coords / "equal.h5", "--explain", run_with_coords / "equal")
    found = json.loads((run_with_coords / "equal" / "explanation.json").read_text(encoding="utf-8"))
    assert found["unusual"] is True and found["confidence"] == 0 and "all its tiles are equal" in found["unusual_reason"]
    assert f"\tunusual: {found['unusual_reason']}" in capsys.readouterr().out
    assert {(p["no_map"], p["weights"], p["deletion_test"]) for p in found["phrases"]} == {("unusual slide", None, None)}
    page = (run_with_coords / "equal" / "explanation.html").read_text(encoding="utf-8")
    assert "异常切片：无图" in page and "unusual slide: no map" in page
    assert "异常切片：所有图块都相同" in page and "Unusual slide: all its tiles are equal" in page


@pytest.mark.parametrize(("args", "words"), [(["--embeddings_dir", "embeddings"], ["--explain", "is for one slide"]), (["--embeddings_file", "x.h5", "--thumbnail", "no.png"], ["no.png: not found"]),
                                             (["--embeddings_file", "x.h5"], ["x.h5: "]), (["--embeddings_file", "x.h5", "--thumbnail_scale", "-1"], ["--thumbnail_scale: thumbnail_scale is -1.0"])])
def test_what_cannot_be_explained_is_one_line(run_with_coords, args, words):
    with refused(*words):
        explain(run_with_coords, *args, "--explain", run_with_coords / "bad")
