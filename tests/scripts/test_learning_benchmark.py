"""The learning benchmark: sides that share nothing, baselines against plain truths, and that it runs."""

import json
import subprocess
import sys

import h5py
import numpy as np
import pytest

from benchmarks.confidence import Judged, weighted_auroc
from benchmarks.learning_baselines import Answer, Probe, difference, nearest, pieces, score
from benchmarks.learning_data import FOLD_KINDS, made_tasks, real_tasks
from tests.helpers.files import ROOT

TILE = 96


@pytest.fixture
def regions(tmp_path):
    """Two images of 24 regions each, of 2 x 2 tiles, that overlap by half."""
    (tmp_path / "embeddings").mkdir()
    labels = {}
    for number in range(48):
        left, top = number % 6 * TILE, number % 24 // 6 * TILE
        corners = [[left + x, top + y] for x in (0, TILE) for y in (0, TILE)]
        with h5py.File(tmp_path / "embeddings" / f"region_{number:02d}.h5", "w") as file:
            file["coords"] = np.array(corners)
            file["coords"].attrs["patch_size_level0"] = TILE
        labels[f"region_{number:02d}"] = f"{('皮肤', '头颈')[number // 24]}，核密度{'低中高'[number % 3]}。"
    (tmp_path / "labels.json").write_text(json.dumps(labels, ensure_ascii=False), encoding="utf-8")
    return tmp_path


def pixels(folder, ids):
    """(image, tile column, tile row) of all pixels' tiles of regions."""
    found = set()
    for i in ids:
        with h5py.File(folder / "embeddings" / f"{i}.h5") as file:
            found |= {(int(i[-2:]) // 24, *map(int, corner // TILE)) for corner in file["coords"][:]}
    return found


@pytest.mark.parametrize("kind", FOLD_KINDS)
def test_no_pixel_is_on_both_sides_and_each_image_is_tested(regions, kind):
    tasks = list(real_tasks(regions, [kind], [7], regions / "work", 40))
    assert len(tasks) == (24 if kind == "pairs" else 4)
    for task in tasks:
        learned = pixels(regions, [*task.ids("train"), *task.ids("val")])
        tested = pixels(regions, task.ids("test"))
        assert task.ids("train") and task.ids("val") and not learned & tested
        assert {image for image, *_ in tested} == {0, 1}
        assert len(task.sides) == len(task.texts) < 48  # what overlaps a test region is left out


def test_no_text_of_a_made_test_slide_stands_in_training(tmp_path):
    (task,) = made_tasks([60], [7], tmp_path)
    learned = {task.texts[i] for i in [*task.ids("train"), *task.ids("val")]}
    assert not learned & {task.texts[i] for i in task.ids("test")}
    assert next(iter(made_tasks([60], [7], tmp_path))) == task  # slides are made once


def test_pieces_are_phrases_or_words():
    assert pieces("胃腺癌，高分化；未见坏死。") == {"胃腺癌", "高分化", "未见坏死"}
    assert pieces("Well differentiated, in a duct.") == {"well", "differentiated", "duct"}


def test_scores_by_hand():
    rows = score([Answer.of("甲，乙。"), Answer(frozenset({"甲"})), Answer.of("丙。")], ["甲，乙。", "甲，乙。", "甲，乙。"])
    assert rows.tolist() == [[1, 1], [pytest.approx(2 / 3), 0], [0, 0]]


def test_the_nearest_slide_is_that_of_the_same_direction_from_the_mean():
    train = np.array([[11.0, 10.0], [10.0, 11.0], [9.0, 9.0]])
    assert [a.text for a in nearest(train, ["甲", "乙", "丙"], np.array([[14.0, 10.0]]))] == ["甲"]


@pytest.mark.parametrize("text", ["{}，{}。", "finding {} and finding {}"])
def test_the_probe_reads_what_is_linear_in_the_features(text):
    rng = np.random.default_rng(0)
    values, directions = rng.integers(0, 2, (200, 2)), rng.standard_normal((2, 2, 64))
    features = directions[0][values[:, 0]] + directions[1][values[:, 1]] + 0.1 * rng.standard_normal((200, 64))
    names = np.array([["alpha", "beta"], ["gamma", "delta"]]) if "finding" in text else np.array([["甲", "乙"], ["丙", "丁"]])
    texts = [text.format(names[0][one], names[1][other]) for one, other in values]
    probe = Probe(features[:150], texts[:150])
    assert score(probe.answers(features[150:]), texts[150:])[:, 0].mean() > 0.99
    assert score(probe.best_texts(features[150:]), texts[150:])[:, 1].mean() > 0.99


def test_whole_clusters_are_drawn():
    ours, clusters = np.array([1.0] * 50 + [0.0] * 50), ["first"] * 50 + ["second"] * 50
    assert difference(ours, np.zeros(100), clusters) == (0.5, 0.0, 1.0)
    mean, low, high = difference(ours, np.zeros(100), [str(i) for i in range(100)])
    assert mean == 0.5 and 0.38 < low < high < 0.62


@pytest.mark.full
def test_the_small_mode_runs_both_scripts_and_leaves_the_results_alone(tmp_path):
    results = ROOT / "benchmarks" / "RESULTS.md"
    before = results.read_bytes()
    command = [sys.executable, "-m", "benchmarks", "learning", "--small", "--curve", "--work", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-2000:]
    for method in ("captioner", "most common text", "contrastive space", "linear probe", "training text of the probe"):
        assert method in done.stdout
    assert "17 training slides" in done.stdout and results.read_bytes() == before


@pytest.mark.full
def test_the_small_mode_judges_the_confidence(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "confidence", "--small", "--work", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "| made, 40 slides | 8, " in done.stdout


def test_the_area_counts_pairs_of_a_wrong_and_a_right_caption_by_their_weights():
    rng = np.random.default_rng(0)
    confidence, right, weights = rng.integers(0, 5, 40) / 4, rng.random(40) < 0.5, rng.random(40)
    hits = pairs = 0.0
    for i in np.flatnonzero(~right):
        for j in np.flatnonzero(right):
            pairs += weights[i] * weights[j]
            hits += weights[i] * weights[j] * (1.0 if confidence[i] < confidence[j] else 0.5 * (confidence[i] == confidence[j]))
    assert weighted_auroc(confidence, right, weights) == pytest.approx(hits / pairs)
    judged = Judged(np.array(["clean"] * 18 + ["foreign", "noise", "noise", "mixed"]), *(np.zeros(22),) * 4)
    strange = {kind: judged.weights[judged.kind == kind].sum() for kind in ("foreign", "noise", "mixed")}
    assert list(strange.values()) == pytest.approx([2 / 3] * 3) and judged.weights.sum() == pytest.approx(20), "a tenth, in equal parts"


@pytest.mark.full
def test_the_small_mode_pretrains_a_language_model_and_trains_it(tmp_path):
    pytest.importorskip("transformers")
    ways = ["language model, LoRA 16", "language model, all of it"]  # CoCa and frozen ones train in other tests
    command = [sys.executable, "-m", "benchmarks", "language_model", "--small", "--work", str(tmp_path), "--ways", *ways]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-2000:]
    for way in ways:
        assert f"| made, 24 slides | {way}" in done.stdout
    (note,) = tmp_path.rglob("note.json")
    pretrained = json.loads(note.read_text(encoding="utf-8"))
    assert pretrained["texts"] == 17 and pretrained["loss"] < np.log(pretrained["words"]), "better than a guess"
