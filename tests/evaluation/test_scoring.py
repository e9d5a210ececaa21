"""Intervals, baselines, retrieval and classification against brute force."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from finetune.evaluation.findings import FindingDictionary
from finetune.evaluation.retrieval import Cosines
from finetune.evaluation.scoring import (
    CAPTIONS,
    COMMON,
    SHUFFLED,
    Answers,
    auroc,
    classification_statistics,
    evaluate,
)

TEXTS = ["胃腺癌，低分化，可见坏死。", "胃腺癌，高分化，未见坏死。", "乳腺癌，高分化，未见坏死。"]
REFERENCES = [[TEXTS[i % 3 if i % 4 else 0]] for i in range(40)]
RIGHT = [r[0] for r in REFERENCES]


def test_a_perfect_captioner_beats_both_baselines_and_a_blind_one_neither():
    perfect, blind = evaluate(Answers(RIGHT, REFERENCES)), evaluate(Answers([TEXTS[0]] * 40, REFERENCES))
    for column in (COMMON, SHUFFLED):
        assert perfect.differences[column]["bleu_4"].low > 0.05
        assert tuple(blind.differences[column]["bleu_4"]) == (0, 0, 0)
    assert perfect.columns[CAPTIONS]["rouge_l"] == pytest.approx((1, 1, 1))


def test_the_interval_of_a_share_is_about_the_binomial_one_and_the_same_every_time():
    captions = [r if i < 30 else "错" for i, r in enumerate(RIGHT)]
    value, low, high = evaluate(Answers(captions, REFERENCES)).columns[CAPTIONS]["exact_match"]
    half = 1.96 * math.sqrt(0.75 * 0.25 / 40)
    assert value == 0.75 and low == pytest.approx(0.75 - half, abs=0.03) and high == pytest.approx(0.75 + half, abs=0.03)
    assert evaluate(Answers(captions, REFERENCES)).columns[CAPTIONS]["exact_match"] == (value, low, high)


def test_no_slide_keeps_its_own_answer_when_slides_are_shuffled():
    for count in (2, 3, 10):
        other = Answers([str(i) for i in range(count)], [["x"]] * count,
                        similarity=Cosines(np.arange(count)[:, None], np.ones((1, 1), int)))
        shuffled = other.shuffled()
        assert sorted(shuffled.captions) == sorted(other.captions) and all(c != str(i) for i, c in enumerate(shuffled.captions))
        assert [str(i) for i in shuffled.similarity[:][:, 0]] == shuffled.captions, "all of a slide's answers move together"


def test_the_training_text_is_the_baseline_where_it_is_known():
    assert evaluate(Answers(RIGHT, REFERENCES), "无关。").columns[COMMON]["exact_match"].value == 0
    assert evaluate(Answers(RIGHT, REFERENCES)).columns[COMMON]["exact_match"].value == RIGHT.count(TEXTS[0]) / 40


def test_a_report_is_a_table_and_strict_json():
    report = evaluate(Answers(RIGHT, REFERENCES, findings=FindingDictionary.load(["gastric"])))
    assert any(line.startswith("bleu_4") and "1.0000 [1.0000, 1.0000]" in line for line in report.lines())
    summary = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert summary["slides"] == 40 and summary["exact_match"] == 1 and summary["phrase_accuracy"] == [1, 1, 1]
    assert summary["findings"]["necrosis"]["present"] == RIGHT.count(TEXTS[0])
    assert summary["intervals"]["distinct_share"] == [None, None], "a resample repeats slides"
    assert "tok:zh" in summary["signature"] and "bootstrap:1000" in summary["signature"]


def test_one_slide_has_scores_but_no_shuffled_ones():
    assert set(evaluate(Answers(["a"], [["a"]])).columns) == {CAPTIONS, COMMON}


def test_auroc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 5, 60).astype(float), rng.random(60) < 0.3
    pairs = [(p > n) + (p == n) / 2 for p in scores[positive] for n in scores[~positive]]
    assert auroc(scores, positive) == pytest.approx(np.mean(pairs))


def test_classification_counts_each_class_the_same_and_leaves_out_what_is_unknown():
    odds = np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.7, 0.3], [0.1, 0.9], [0.0, 1.0]])
    scores = classification_statistics(odds, np.array([0, 0, 0, 1, 1, -1]))
    assert scores["zero_shot_balanced_accuracy"](np.arange(6)) == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert scores["zero_shot_auroc"](np.arange(6)) == pytest.approx(5 / 6)
    assert math.isnan(scores["zero_shot_auroc"](np.array([0, 1, 5]))), "one class only"
    report = evaluate(Answers([""] * 6, class_probabilities=odds, true_classes=np.array([0, 0, 0, 1, 1, -1])))
    assert set(report.columns) == {CAPTIONS, SHUFFLED} and "bleu_1" not in report.to_dict()
