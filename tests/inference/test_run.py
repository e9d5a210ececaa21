"""The optional fields of a record."""

from __future__ import annotations

import contextlib
import csv
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from finetune.config.schema import Config
from finetune.data.labels import Label
from finetune.data.tokenizer import VocabTokenizer
from finetune.inference.cases import select_slides
from finetune.inference.ground_truth import GroundTruth, load_prompts, load_usable_labels
from finetune.inference.nearest import TrainingSlides, texts_to_rerank_with
from finetune.inference.options import InferenceOptions
from finetune.inference.records import write_csv
from finetune.inference.run import complete_record
from finetune.models.training_texts import SlideVectors, TrainingTexts
from tests.helpers.files import refused, write_json

INDEX = {"ids": ["a", "b", "c"], "texts": [["x"], ["y", "z"], ["y"]], "fingerprint": "f", "step": 3,
         "embeddings": torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])}


LETTERS = VocabTokenizer(list("xyz"))


def captioner_of(about) -> SimpleNamespace:
    model = SimpleNamespace(decoder=SimpleNamespace(dim_latents=2))
    return SimpleNamespace(checkpoint=about, config=Config(), tokenizer=LETTERS, model=model, form=None)


def record(confidence: float) -> dict:
    return {"id": "s", "caption": "text", "confidence": confidence, "finished": True, "error": None}


def test_the_nearest_come_with_their_texts_and_the_first_of_them_gives_the_baseline():
    training = TrainingSlides(INDEX, TrainingTexts.of_index(INDEX, LETTERS, 9))
    completed = record(0.9)
    complete_record(completed, np.array([0.0, 1.0], dtype="f4"), SimpleNamespace(), InferenceOptions(nearest=2), None, training)
    assert [(n["id"], n["texts"], round(n["similarity"], 6)) for n in completed["nearest"]] == [
        ("c", ["y"], 1.0), ("b", ["y", "z"], 0.8)]
    assert training.texts.common() == "y"


@pytest.mark.parametrize(("confidence", "caption"), [(0.49, None), (0.5, "text")])
def test_a_caption_below_the_threshold_is_withheld(confidence, caption):
    completed = record(confidence)
    complete_record(completed, np.zeros(2), SimpleNamespace(), InferenceOptions(abstain_below=("0.5",)), None, None)
    assert completed["caption"] == caption and completed.get("abstained", False) == (caption is None)


@pytest.mark.parametrize(("about", "index", "words"), [
    (SimpleNamespace(data={"fingerprint": "f"}, progress={"step": 4}), INDEX, "of these weights"),
    (SimpleNamespace(data={"fingerprint": "f"}, progress={"step": 3}), INDEX | {"embeddings": None}, "contrastive"),
    (SimpleNamespace(data={"fingerprint": "g"}, progress={"step": 3}), INDEX, "of these weights")])
def test_nearest_slides_need_an_index_of_the_very_weights(tmp_path, about, index, words):
    from finetune.checkpoints.format import write_pth

    write_pth(tmp_path, ["nearest.pt"], {"format_version": 1, **index})
    checkpoint, captioner = str(tmp_path / "best_model.pth"), captioner_of(about)
    with refused("--nearest", words):
        TrainingSlides.load(checkpoint, captioner, searchable=True)
    if about.data["fingerprint"] == "f":
        captioner.model.decoder.dim_latents = 3
        with refused("nearest.pt", "of this model") if index["embeddings"] is not None else contextlib.nullcontext():
            TrainingSlides.load(checkpoint, captioner, searchable=False)
        captioner.model.decoder.dim_latents = 2
    training = TrainingSlides.load(checkpoint, captioner, searchable=False)
    assert (training is None) == (about.data["fingerprint"] == "g")
    assert TrainingSlides.load(None, SimpleNamespace(checkpoint=None), searchable=False) is None


@pytest.mark.parametrize(("rerank", "calibration", "probe", "sampling", "is_on"), [
    ("auto", {"rerank": True}, True, False, True), ("auto", {"rerank": False}, True, False, False),
    ("auto", None, True, False, False), ("auto", {"rerank": True}, False, False, False),
    ("auto", {"rerank": True}, True, True, False), ("true", None, True, True, True),
    ("false", {"rerank": True}, True, False, False)])
def test_captions_are_reranked_where_that_was_better_or_wanted(rerank, calibration, probe, sampling, is_on):
    captioner = captioner_of(SimpleNamespace(calibration=calibration))
    texts = SimpleNamespace(probe=object() if probe else None)
    options = InferenceOptions(rerank=rerank, do_sample=sampling)
    assert texts_to_rerank_with(options, captioner, TrainingSlides(INDEX, texts)) is (texts if is_on else None)


def test_reranking_needs_a_probe():
    options = InferenceOptions(rerank="true")
    for training in (None, TrainingSlides(INDEX, TrainingTexts.of_index(INDEX, LETTERS, 9))):
        with refused("--rerank", "no nearest.pt with a linear probe"):
            texts_to_rerank_with(options, captioner_of(None), training)


@pytest.mark.parametrize("text", ["a: [x]", "[x, y]", "a: [x]\nb: []", "a: x\nb: y"])
def test_prompts_of_another_form_are_refused(tmp_path, text):
    path = tmp_path / "prompts.yaml"
    path.write_text(text, encoding="utf-8")
    with refused("prompts.yaml", "holds no prompts"):
        load_prompts(str(path))
    path.write_text("", encoding="utf-8")
    with refused("prompts.yaml: empty", "write class: [prompt, ...]"):
        load_prompts(str(path))
    path.write_text('{"癌": ["胃癌"], "无": ["正常", "no tumor"]}', encoding="utf-8")
    assert load_prompts(str(path)) == {"癌": ["胃癌"], "无": ["正常", "no tumor"]}


def test_an_unusable_label_or_class_is_reported_and_never_dropped_silently(tmp_path, log_lines):
    some = write_json(tmp_path / "some.json", {"a": "text", "b": 5})
    assert list(load_usable_labels(some)) == ["a"] and "1 labels of" in log_lines[-1] and "'b'" in log_lines[-1]
    with refused("none.json", "'a'"):
        load_usable_labels(write_json(tmp_path / "none.json", {"a": 1, "b": 2}))


def test_missing_held_out_slides_are_reported(tmp_path, log_lines):
    (tmp_path / "a.h5").touch()
    captioner = SimpleNamespace(held_out={"val": ["a", "case_of_two"], "test": []}, config=Config())
    assert list(select_slides(captioner, InferenceOptions(embeddings_dir=str(tmp_path), split="val"), None)) == ["a"]
    assert "1 of 2 slides of --split val" in log_lines[-1] and "--labels_file" in log_lines[-1]


def test_a_failed_first_slide_takes_no_column_from_the_others(tmp_path):
    good = record(0.5) | {"id": "b", "error": None, "similarity": {"text": 0.25}}
    bad = {"id": "a", "caption": None, "similarity": {}, "probability": {}, "confidence": None, "finished": None,
           "error": "broken"}
    with open(tmp_path / "o.csv", "wb") as file:
        write_csv(lambda: iter([bad, good]), file)
    rows = list(csv.DictReader((tmp_path / "o.csv").read_text(encoding="utf-8-sig").splitlines()))
    assert [r["similarity: text"] for r in rows] == ["", "0.25"]


def test_a_model_that_names_no_held_out_slides_says_so(tmp_path):
    (tmp_path / "a.h5").touch()
    with refused("--split test", "names no such slides"):
        select_slides(SimpleNamespace(held_out={"val": ["a"], "test": []}, config=Config()), InferenceOptions(embeddings_dir=str(tmp_path), split="test"), None)


def test_classes_of_other_slides_are_reported(log_lines):
    captioner = SimpleNamespace(class_probabilities=lambda images, prompts: np.full((len(images), 2), 0.5),
                                embed_texts=lambda texts: np.ones((len(texts), 2)))
    for classes, told in (({"other": "x"}, True), ({"s": "x"}, False)):
        truth = GroundTruth({"s": Label(("text",), ("s",))}, {"x": ["a"], "y": ["b"]}, classes, None)
        truth.answers(captioner, [record(0.9)], {"s": SlideVectors(*[np.ones((1, 2))] * 3)}, 100)
        assert any("has a class" in line for line in log_lines) == told
        log_lines.clear()
