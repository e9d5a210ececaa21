"""Cases of several slides and several texts, from the labels to a batch. Truth: numpy on the files that were written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.config.schema import DataConfig
from finetune.data.batch import Sample
from finetune.data.loader import BatchLoader
from finetune.data.prepare import prepare_data, scan_contents
from finetune.data.sampler import BatchOrder
from finetune.data.slide_cache import SlideCache
from finetune.data.slides import Case, SlideFile, inspect_slide, join_slides, open_case
from finetune.data.splits import split_ids
from finetune.data.tile_reader import TileReader, choose_tiles, read_tiles
from finetune.data.tokenizer import VocabTokenizer, build_tokenizer
from tests.helpers.files import random_tiles, refused, write_h5, write_json, write_slides

D = 6
COUNTS = {"c1": (4, 9, 2), "c2": (5,), "c3": (3, 3)}  # tiles of the slides of each case


@pytest.fixture
def config(tmp_path) -> DataConfig:
    """Three cases of several slides and seven plain slides."""
    sizes = {f"{case}-{n}": count for case, counts in COUNTS.items() for n, count in enumerate(counts)}
    write_slides(tmp_path / "h5", sizes | {f"s{i}": i + 1 for i in range(7)}, D)
    labels = {case: {"text": [f"胃腺癌{case}", f"癌在胃{case}", "腺癌"][:len(counts)], "slides": [f"{case}-{n}.h5" for n in range(len(counts))]}
              for case, counts in COUNTS.items()}
    write_json(tmp_path / "labels.json", labels | {f"s{i}": f"肠腺癌s{i}胃" for i in range(7)})
    return DataConfig(embeddings_dir=str(tmp_path / "h5"), labels_file=str(tmp_path / "labels.json"), image_dim=D, val_split=0.2)


def case_of(folder: Path, *counts: int, case_id: str = "c") -> Case:
    return join_slides(case_id, [inspect_slide(write_h5(folder / f"{case_id}{n}.h5", random_tiles(count, D, n)), None, D)
                                 for n, count in enumerate(counts)])


def tiles_of(*counts: int) -> np.ndarray:
    return np.concatenate([random_tiles(count, D, n) for n, count in enumerate(counts)])


# --- tiles -----------------------------------------------------------------------------------------------------------

def test_the_tiles_of_a_case_are_those_of_its_slides_one_after_the_other(tmp_path):
    case, wanted = case_of(tmp_path, 4, 9, 2), tiles_of(4, 9, 2)
    assert case.num_tiles == 15 and np.array_equal(read_tiles(case), wanted)
    for rows in ([0, 3, 4, 14], [5, 6], [13], list(range(15))):
        assert np.array_equal(read_tiles(case, np.array(rows)), wanted[rows])


@pytest.mark.parametrize(("counts", "most", "shares"), [
    ((100, 100), 20, [10, 10]), ((3, 100, 100), 43, [3, 20, 20]), ((100, 3, 2), 15, [10, 3, 2]), ((50, 50, 50), 4, [1, 1, 2]),
    ((9, 9, 9), 2, [0, 1, 1]), ((100, 1), 50, [49, 1])])
def test_H16_a_cap_samples_evenly_over_the_slides_of_a_case(tmp_path, counts, most, shares):
    case = case_of(tmp_path, *counts)
    ends, seen = np.cumsum([0, *counts]), set()
    for seed in range(2):
        for epoch in range(3):
            rows = choose_tiles(case, most, seed, epoch)
            assert len(rows) == most and np.all(np.diff(rows) > 0)
            assert np.histogram(rows, ends)[0].tolist() == shares
            assert np.array_equal(rows, choose_tiles(case, most, seed, epoch)), "a function of seed, epoch and id"
            assert np.array_equal(TileReader(most, seed)(case, epoch), tiles_of(*counts)[rows])
            seen.add(tuple(rows))
    assert len(seen) > 1 and choose_tiles(case, sum(counts), 0, 0) is None


def test_a_slide_of_a_case_that_cannot_be_used_is_named(tmp_path):
    write_slides(tmp_path, {"a": 3, "b": 2}, D)
    (tmp_path / "b.h5").write_bytes(b"")
    files = [[str(tmp_path / "a.h5")], [str(tmp_path / "b.h5")]]
    with refused("b.h5", "empty file"):
        open_case("c", files, None, D)
    with refused("b.h5", "1 other files have this name"):
        open_case("c", [files[0], files[1] * 2], None, D)
    assert isinstance(open_case("a", files[:1], None, D), SlideFile) and open_case("c", files[:1], None, D).slide_id == "c"


# --- the slide cache -------------------------------------------------------------------------------------------------

def test_a_cached_case_is_of_all_its_files_in_their_order(tmp_path):
    cache = SlideCache.of(tmp_path / "cache", "a" * 64, "fp32", 1, D)
    case = case_of(tmp_path, 4, 9)
    paths = {cache.path(case), cache.path(Case("c", case.parts[::-1])), *map(cache.path, case.parts)}
    write_h5(tmp_path / "c1.h5", random_tiles(9, D, 7))
    changed = Case("c", (case.parts[0], inspect_slide(tmp_path / "c1.h5", None, D)))
    assert len(paths | {cache.path(changed)}) == 5
    assert cache.path(Case("other", changed.parts)) == cache.path(changed), "the id does not change what is encoded"
    encode = lambda tiles, mask: (tiles * mask[..., None]).sum(1, keepdim=True)  # noqa: E731
    assert cache.fill([changed, case.parts[0]], encode) == 2
    wanted = np.concatenate([random_tiles(4, D), random_tiles(9, D, 7)]).sum(0)
    assert np.allclose(cache(changed), wanted, atol=1e-5) and np.allclose(cache(case.parts[0]), random_tiles(4, D).sum(0), atol=1e-5)


# --- texts -----------------------------------------------------------------------------------------------------------

def test_the_texts_of_a_sample_take_turns_over_the_epochs():
    texts = ([1, 5, 2], [1, 6, 6, 2], [1, 7, 2])
    sample = Sample(SlideFile("s", "s.h5", "k", 1), texts[0], ("a", "b", "c"), texts)
    turns = [sample.at(epoch, 42).token_ids for epoch in range(30)]
    assert turns[:3] == turns[3:6] and {tuple(t) for t in turns[:3]} == {tuple(t) for t in texts}
    assert turns == [sample.at(epoch, 42).token_ids for epoch in range(30)] and sample.most_tokens == 3
    firsts = {tuple(sample.at(0, seed).token_ids) for seed in range(20)}
    assert len(firsts) == 3, "which one comes first depends on the seed"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_holds_the_text_of_its_epoch(tmp_path, workers):
    samples = [Sample(case_of(tmp_path, 3, 2, case_id=f"c{i}"), [1, 5, 2], ("a", "b"), ([1, 5, 2], [1, 6, 7, 2])) for i in range(4)]
    batches = BatchLoader(samples, BatchOrder([(5, s.most_tokens) for s in samples], 2, 42, shuffle=True), TileReader(None, 42), 0,
                      workers=workers)
    for epoch in range(2):
        seen = {i: row[row > 0].tolist() for (batch,) in batches.epoch(epoch) for i, row in zip(batch.ids, batch.labels, strict=True)}
        assert seen == {s.slide.slide_id: s.at(epoch, 42).token_ids[1:] for s in samples}
    batches.close()


# --- from the labels -------------------------------------------------------------------------------------------------

def test_cases_are_joined_and_keep_all_their_references(config):
    data = prepare_data(config, 42)
    samples = {s.slide.slide_id: s for s in data.train + data.validation}
    assert set(samples) == {*COUNTS, *(f"s{i}" for i in range(7))}
    for case, counts in COUNTS.items():
        sample = samples[case]
        assert [p.num_tiles for p in sample.slide.parts] == list(counts) and sample.references[0] == f"胃腺癌{case}"
        assert len(sample.references) == len(counts)
    for sample in data.train:
        assert [data.tokenizer.decode(ids) for ids in sample.choices] == list(sample.references)
    for sample in data.validation:
        assert len(sample.choices) == 1, "validation is on the first text"
        assert sample.at(5, 42).token_ids == sample.at(6, 7).token_ids == sample.token_ids, "the same each epoch"


def test_a_case_with_a_bad_slide_is_skipped_entirely(config, tmp_path, log_lines):
    (tmp_path / "h5" / "c1-1.h5").write_bytes(b"")
    with refused("c1-1.h5", "empty file"):
        prepare_data(config, 42)
    config.on_bad = "skip"
    data = prepare_data(config, 42)
    assert "c1" not in {s.slide_id for s in data.slides} and len(data.slides) == 9
    assert any(line.startswith("1 cases are left out") and "c1" in line for line in log_lines)


def test_test_cases_are_used_for_nothing(config, tmp_path):
    write_json(tmp_path / "split.json", {**dict.fromkeys(COUNTS, "train"), **dict.fromkeys([f"s{i}" for i in range(5)], "test"),
                                         "s5": "val", "s6": "train"})
    config.split_file = str(tmp_path / "split.json")
    data = prepare_data(config, 42)
    assert data.test_ids == [f"s{i}" for i in range(5)] and [s.slide_id for s in data.slides] == ["c1", "c2", "c3", "s6", "s5"]
    train_texts = [f"{t}" for s in data.train for t in s.references]
    assert data.tokenizer.pieces == VocabTokenizer.build(train_texts).pieces
    assert not {"1", "5"} & {p for p in data.tokenizer.pieces if p.startswith("s")}
    before = data.fingerprint
    write_json(tmp_path / "split.json", {**dict.fromkeys(COUNTS, "train"), **dict.fromkeys([f"s{i}" for i in range(4)], "test"),
                                         "s4": "val", "s5": "val", "s6": "train"})
    assert prepare_data(config, 42).fingerprint != before
    (tmp_path / "h5" / "s3.h5").write_bytes(b"")  # after its header was read
    with refused("s3.h5", "1 bad files"):
        scan_contents(data)  # --check also reads what a later --split test needs


@pytest.mark.parametrize(("labels", "words"), [
    ({"c9": {"text": "胃", "slides": ["c1-0", "c1-1"]}}, "c1"), ({"c9": {"text": "胃", "slides": ["s0"]}}, "s0")])
def test_J12_a_slide_in_two_cases_is_refused_across_the_split(config, tmp_path, labels, words):
    content = json.loads((tmp_path / "labels.json").read_text(encoding="utf-8")) | labels
    write_json(tmp_path / "labels.json", content)
    write_json(tmp_path / "split.json", dict.fromkeys(content, "train") | {"c9": "test", "s6": "val"})
    config.split_file = str(tmp_path / "split.json")
    with refused("is one file with the ids", "'c9'", words, "in test and in training"):
        prepare_data(config, 42)


def test_plain_labels_give_what_they_always_gave(tmp_path):
    """Fingerprint and split of runs that were started before there were cases: golden values."""
    write_slides(tmp_path / "h5", {f"s{i}": i + 1 for i in range(10)}, D)
    write_json(tmp_path / "labels.json", {f"s{i}": f"{'胃肠'[i % 2]}腺癌，大小{i}cm。" for i in range(10)})
    data = prepare_data(DataConfig(embeddings_dir=str(tmp_path / "h5"), labels_file=str(tmp_path / "labels.json"), image_dim=D,
                                   val_split=0.2), 42)
    assert [s.slide.slide_id for s in data.train] == split_ids([f"s{i}" for i in range(10)], 0.2, 42)[0]
    assert data.fingerprint == "75c8c150afb09cd17402a260f798e02eb880168fb297eddb99e89005bf756c88"


def test_a_model_trains_on_cases_and_captions_them(tmp_path):
    """The scripts' way with cases, references and a named split; a run without the cache sees the same tiles."""
    from finetune.config.schema import Config, apply_overrides
    from finetune.data.labels import load_labels
    from finetune.inference.captioner import Captioner
    from finetune.inference.cases import select_slides
    from finetune.inference.options import InferenceOptions
    from finetune.training.run import train

    rng = np.random.default_rng(0)
    for name in ("a0", "a1", "b0", "b1", "b2", "c0", "d0", "e0"):
        write_h5(tmp_path / "h5" / f"{name}.h5", rng.standard_normal((3, 2560)).astype("f2"))
    labels = {"a": {"text": ["胃癌", "胃的癌"], "slides": ["a0", "a1"], "split": "train"}, "b": {"text": "肠癌", "slides": ["b0", "b1", "b2"],
              "split": "train"}, "c0": {"text": "胃", "split": "train"}, "d0": {"text": "肠", "split": "val"}, "e0": {"text": "癌", "split": "test"}}
    settings = {"data.embeddings_dir": tmp_path / "h5", "data.labels_file": write_json(tmp_path / "labels.json", labels),
                "training.output_dir": tmp_path / "run", "training.log_dir": tmp_path / "logs", "prism.weights": "random-tiny",
                "data.views": 1, "training.epochs": 2, "training.batch_size": 3, "training.workers": 0, "model.dim": 16, "model.unimodal_depth": 1,
                "model.multimodal_depth": 1, "model.dim_latents": 8, "model.num_img_queries": 2, "model.heads": 2,
                "model.dim_head": 8, "training.precision": "fp32", "data.tokenizer": "bpe:300", "data.normalize": "true"}
    losses = {}
    for cache in ("auto", "null"):
        settings |= {"data.latents_cache": cache, "training.output_dir": tmp_path / f"run_{cache}"}
        assert train(apply_overrides(Config(), [f"{k}={v}" for k, v in settings.items()])) == 0
        losses[cache] = (tmp_path / f"run_{cache}" / "metrics.jsonl").read_text(encoding="utf-8")
        content = torch.load(tmp_path / f"run_{cache}" / "best_model.pth", weights_only=True)
        assert content["data"]["validation_ids"] == ["d0"] and content["data"]["test_ids"] == ["e0"]
    captioner = Captioner.load(tmp_path / "run_auto" / "best_model.pth")
    assert captioner.tokenizer.to_dict() == build_tokenizer("bpe:300", ["胃癌", "胃的癌", "肠癌", "胃"], True).to_dict()
    chosen = select_slides(captioner, InferenceOptions(embeddings_dir=str(tmp_path / "h5")), load_labels(tmp_path / "labels.json")[0])
    assert {i: [Path(p[0]).stem for p in slides] for i, slides in chosen.items()} == {
        "a": ["a0", "a1"], "b": ["b0", "b1", "b2"], "c0": ["c0"], "d0": ["d0"], "e0": ["e0"]}
    assert list(select_slides(captioner, InferenceOptions(embeddings_dir=str(tmp_path / "h5"), split="test"), None)) == ["e0"]
    first, second = ([json.loads(line)["loss"] for line in text.splitlines()] for text in losses.values())
    assert first == pytest.approx(second, rel=1e-4)
