"""The comparison of captions with looking up, after training."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from finetune.common.device import Precision
from finetune.common.score_table import NEAREST_TEXT, PROBE_TEXT
from finetune.data.batch import Sample
from finetune.data.slides import SlideFile
from finetune.evaluation.scoring import Answers, evaluate
from finetune.models.training_texts import TrainingTexts
from finetune.pages.field_table import read_fields
from finetune.pages.held_out import read_held_out
from finetune.templates.template import Template
from finetune.training import held_out
from finetune.training.held_out import caption_held_out, compare_held_out, log_comparison
from tests.helpers.training import CPU, TOKENIZER, a_batch, tiny_model

REFERENCES = [[f"slide {i} is well differentiated"] for i in range(20)]
RIGHT = [texts[0] for texts in REFERENCES]
HALF = RIGHT[:10] + ["nothing"] * 10


@pytest.mark.parametrize(("captions", "probe", "warned"), [(RIGHT, HALF, False), (HALF, RIGHT, True), (HALF, HALF, True),
                                                           (RIGHT, RIGHT, False)])
def test_the_line_names_all_and_no_better_than_looking_up_is_a_warning(log_lines, captions, probe, warned):
    log_comparison(evaluate(Answers(captions, REFERENCES), "nothing", {NEAREST_TEXT: ["x"] * 20, PROBE_TEXT: probe}))
    share = {id(RIGHT): "1.00", id(HALF): "0.50"}
    assert log_lines[0] == (f"held-out slides: exact text {share[id(captions)]}, nearest training text 0.00, linear probe "
                            f"{share[id(probe)]}, most common 0.00 (20 slides)")
    assert len(log_lines) == 1 + warned and ("no better than looking up" in log_lines[-1]) == warned


def test_where_no_text_is_exact_another_score_is_told(log_lines):
    longer = [f"{text} and more" for text in RIGHT]
    log_comparison(evaluate(Answers(longer, REFERENCES), "nothing", {PROBE_TEXT: ["nothing"] * 20}))
    assert log_lines[0].startswith("held-out slides: ROUGE-L 0.8") and "linear probe 0.00, most common 0.00" in log_lines[0]


def test_few_slides_give_no_warning(log_lines):
    log_comparison(evaluate(Answers(HALF[8:13], REFERENCES[8:13]), "nothing", {PROBE_TEXT: RIGHT[8:13]}))
    assert len(log_lines) == 1


def test_the_slides_are_captioned_and_the_file_is_what_the_report_reads(tmp_path, log_lines):
    model, batches = tiny_model().eval(), [a_batch(1, 3), a_batch(2, 2)]
    texts = TrainingTexts.of_index({"texts": [["甲乙"], ["丙"]], "embeddings": torch.eye(8)[:2]}, TOKENIZER, 9)
    samples = [Sample(SlideFile(i, f"{i}.h5", "x", 1), [1, 2], ("甲乙",)) for b in reversed(batches) for i in b.ids]
    slides = caption_held_out(model, Precision("fp32", CPU, "test"), texts, samples, batches)
    compare_held_out(tmp_path, slides, texts, [{"confidence": 0.5, "unusual": False}] * 5)
    assert slides.is_right.tolist() == [caption == "甲乙" for caption in slides.answers.captions]
    scores = json.loads((tmp_path / "held_out.json").read_text(encoding="utf-8"))
    assert scores["slides"] == 5 and scores["baselines"]["most_common_text"]["exact_match"] == 1
    columns = read_held_out(tmp_path / "held_out.json").columns
    assert [english for _, (_, english) in columns] == ["captions", "nearest training text", "most common training text", "shuffled slides"]
    captions = [json.loads(line) for line in (tmp_path / "held_out_captions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all((line["confidence"], line["unusual"]) == (0.5, False) for line in captions)
    assert sorted(line["id"] for line in captions) == sorted(sample.slide.slide_id for sample in samples)
    assert np.mean([line["scores"]["exact_match"] for line in captions]) == pytest.approx(scores["exact_match"])
    assert "甲" not in (tmp_path / "held_out.json").read_text(encoding="utf-8"), "label texts are private"
    assert not (tmp_path / "held_out_fields.json").exists()


def test_the_fields_of_the_captions_are_scored_where_the_texts_follow_a_template(tmp_path, log_lines):
    model, batch = tiny_model().eval(), a_batch(1, 3)
    texts = TrainingTexts.of_index({"texts": [["甲乙"], ["丙"]], "embeddings": torch.eye(8)[:2]}, TOKENIZER, 9)
    samples = [Sample(SlideFile(i, f"{i}.h5", "x", 1), [1, 2], ("甲乙",)) for i in batch.ids]
    template = Template.of_choices(["甲乙", "丙"])
    slides = caption_held_out(model, Precision("fp32", CPU, "test"), texts, samples, [batch])
    compare_held_out(tmp_path, slides, texts, template=template)
    table = read_fields(tmp_path / "held_out_fields.json")
    captions = [json.loads(line)["caption"] for line in (tmp_path / "held_out_captions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert table.slides == 3 and table.captions_off == sum(caption not in ("甲乙", "丙") for caption in captions)
    assert table.rows[0].scores["accuracy"][0] == np.mean([caption == "甲乙" for caption in captions])


@pytest.mark.parametrize(("words", "used"), [(["right one", "wrong"], True), (["wrong", "wrong"], False)])
def test_reranking_is_used_only_where_it_makes_the_captions_better(tmp_path, monkeypatch, log_lines, words, used):
    model, batch = tiny_model().eval(), a_batch(1, 2)
    probe = SimpleNamespace(token_ids=range(40), text_scores=lambda features, texts: np.zeros((len(features), len(texts))))
    texts = TrainingTexts(["甲乙", "丙"], None, None, probe, TOKENIZER, 9)
    monkeypatch.setattr(held_out, "rerank", lambda *args: words)
    samples = [Sample(SlideFile(i, f"{i}.h5", "x", 1), [1, 2], ("right one",)) for i in batch.ids]
    slides = caption_held_out(model, Precision("fp32", CPU, "test"), texts, samples, [batch])
    compare_held_out(tmp_path, slides, texts)
    assert slides.uses_rerank is used and slides.is_right.tolist() == [used, False]
    assert ("inference.py re-ranks" in log_lines[0]) == used
    assert json.loads((tmp_path / "held_out.json").read_text(encoding="utf-8"))["exact_match"] == (0.5 if used else 0)
    probe.token_ids = range(39)
    assert caption_held_out(model, Precision("fp32", CPU, "test"), texts, samples, [batch]).uses_rerank is False
