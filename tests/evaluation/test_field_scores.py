"""Scores of fields against scikit-learn's numbers; coverage and thresholds against brute force."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter

import numpy as np
import pytest

from finetune.evaluation.coverage import FEWEST, Selection, coverage_lines
from finetune.evaluation.field_scores import FieldScores, field_lines
from finetune.templates.template import Template
from tests.helpers.files import ROOT

GOLDEN = json.loads((ROOT / "tests/golden/fields.json").read_text(encoding="utf-8"))
TEMPLATE = Template.from_dict({"text": "胃癌[，{分级}]。", "slots": {"分级": {"values": GOLDEN["values"], "optional": True}}})


def scored(said: list, true: list, probability: list) -> FieldScores:
    captions, references = ([TEMPLATE.render({"分级": value}) for value in values] for values in (said, true))
    return FieldScores.of(TEMPLATE, captions, [["随便写的。", text] for text in references],
                          [{"分级": {value: p}} if value else {} for value, p in zip(said, probability, strict=True)])


def test_the_scores_are_scikit_learns():
    (field,) = scored(GOLDEN["said"], GOLDEN["true"], GOLDEN["probability"]).fields
    found = {name: statistic(np.arange(len(field.said))) for name, statistic in field.statistics().items()}
    assert found == pytest.approx({name: GOLDEN[name] for name in found}) and len(found) == 5
    assert int(field.stated.sum()) == GOLDEN["slides"] < len(GOLDEN["said"])


def test_the_confusion_table_counts_every_pair_and_intervals_hold_the_value():
    result = scored(GOLDEN["said"], GOLDEN["true"], GOLDEN["probability"]).to_dict()
    assert result["slides"] == 80 and result["captions_off_template"] == result["references_off_template"] == 0
    field = json.loads(json.dumps(result, allow_nan=False))["fields"]["分级"]
    pairs = Counter(zip([v or "" for v in GOLDEN["true"]], [v or "" for v in GOLDEN["said"]], strict=True))
    assert field["confusion"] == {t: {s: pairs[t, s] for s in row} for t, row in field["confusion"].items()}
    assert sum(sum(row.values()) for row in field["confusion"].values()) == 80
    for name in ("accuracy", "macro_f1", "auroc", "auroc_right"):
        value, low, high = field[name]
        assert low < value < high and high - low < 0.45, name
    assert any(line.startswith("分级") and f"{GOLDEN['accuracy']:.3f} [" in line for line in field_lines(result))


def test_known_probabilities_of_other_values_count_and_unknown_ones_share_the_rest():
    text = "胃癌，高分化。"
    (field,) = FieldScores.of(TEMPLATE, [text] * 2, [[text]] * 2, [{"分级": {"高分化": 0.5, "中分化": 0.3}}, {"分级": {"高分化": 0.7}}]).fields
    assert field._spread() == pytest.approx(np.array([[0.5, 0.3, 0.1, 0.1], [0.7, 0.1, 0.1, 0.1]]))


def test_a_withheld_field_is_not_compared():
    texts = ["胃癌，高分化。", "胃癌，中分化。", "胃癌，低分化。"]
    (field,) = FieldScores.of(TEMPLATE, texts, [[texts[0]]] * 3, [{"分级": {"高分化": 0.9}}, {}, {}], [set(), {"分级"}, set()]).fields
    assert (field.said, field.true) == (["高分化", "低分化"], ["高分化"] * 2) and field.probabilities[0] == 0.9


def test_texts_off_the_template_count_as_what_they_are():
    scores = FieldScores.of(TEMPLATE, ["胃癌，高分化。", "不知道", "胃癌，高分化。"], [["胃癌，高分化。"], ["胃癌，中分化。"], ["别的"]])
    assert (scores.captions_off, scores.references_off, scores.rows.tolist()) == (1, 1, [0, 1])
    result = scores.to_dict()["fields"]["分级"]
    assert result["accuracy"][0] == 0.5 and result["confusion"] == {"高分化": {"高分化": 1}, "中分化": {"": 1}}
    assert result["auroc"] == result["ece"] == [None, None, None], "no probabilities are known"


def test_a_value_that_is_a_dash_is_not_the_same_as_none():
    template = Template.from_dict({"text": "HER2{her2}[，{grade}]", "slots": {"her2": ["+", "-"], "grade": {"values": ["-"], "optional": True}}})
    result = FieldScores.of(template, ["HER2-，-", "HER2+"], [["HER2-"], ["HER2-，-"]]).to_dict()["fields"]
    assert result["grade"]["confusion"] == {"-": {"": 1}, "": {"-": 1}}
    assert result["her2"]["confusion"] == {"-": {"+": 1, "-": 1}}


def test_no_slide_or_one_value_has_no_scores_and_no_crash():
    nothing = FieldScores.of(TEMPLATE, ["x"], [["y"]]).to_dict()
    assert nothing["slides"] == 0 and nothing["fields"]["分级"]["accuracy"] == [None, None, None]
    alike = scored(["高分化"] * 3, ["高分化"] * 3, [0.9] * 3).to_dict()["fields"]["分级"]
    assert alike["accuracy"] == [1, 1, 1] and alike["auroc"][0] is None is alike["auroc_right"][0] and alike["ece"][0] == pytest.approx(0.1)


def selection(count: int, seed: int, levels: int = 1000) -> Selection:
    rng = np.random.default_rng(seed)
    confidence = rng.integers(0, levels, count) / levels
    return Selection("captions", confidence, rng.random(count) < 0.3 + 0.6 * confidence)


@pytest.mark.parametrize("seed", range(6))
def test_points_and_thresholds_are_those_of_brute_force(seed):
    one = selection(60, seed, levels=[1000, 20][seed % 2])
    for coverage in (1.0, 0.75, 0.5):
        point = one.at_coverage(coverage)
        kept = one.confidence >= point.threshold
        assert (point.answered, point.right) == (kept.sum(), one.right[kept].sum()) and kept.mean() >= coverage
        assert all((one.confidence >= t).mean() < coverage for t in set(one.confidence) if t > point.threshold)
    for wanted in (0.6, 0.8, 0.9, 1.0):
        allowed = [t for t in set(one.confidence) if (kept := one.confidence >= t).sum() >= FEWEST and one.right[kept].mean() >= wanted]
        chosen = one.for_accuracy(wanted)
        assert (chosen and chosen.threshold) == (min(allowed) if allowed else None)
        if chosen:  # what is printed keeps the same slides as --abstain_below does: confidence < threshold is withheld
            short = one.short_threshold(chosen)
            assert ((one.confidence >= short) == (one.confidence >= chosen.threshold)).all() and len(str(short)) <= 6
    best = one.most_accurate()
    assert best.accuracy == max(one.right[k].mean() for t in one.confidence if (k := one.confidence >= t).sum() >= FEWEST)


def test_a_threshold_is_judged_on_slides_that_did_not_choose_it():
    one = selection(200, 1)
    order = np.random.default_rng(0).permutation(200)
    answered = right = 0
    for fold in np.array_split(order, 10):
        rest = [i for i in range(200) if i not in set(fold.tolist())]
        allowed = [t for t in one.confidence[rest] if (k := one.confidence[rest] >= t).sum() >= 10 and one.right[rest][k].mean() >= 0.8]
        threshold = 0 if allowed and (one.confidence[rest] >= min(allowed)).all() else min(allowed, default=2)
        for i in fold:
            if one.confidence[i] >= threshold:
                answered, right = answered + 1, right + int(one.right[i])
    assert one.on_others(0.8) == (answered, right)
    right = Selection("captions", np.linspace(0.5, 0.9, 30), np.ones(30, bool))
    assert right.on_others(0.9) == (30, 30), "where no threshold is needed, none withholds the least confident of a fold"
    noise = Selection("captions", np.random.default_rng(0).random(200), np.random.default_rng(1).random(200) < 0.7)
    chosen, (answered, right) = noise.for_accuracy(0.8), noise.on_others(0.8)
    assert chosen.accuracy >= 0.8 > right / answered, "confidence says nothing here: on other slides the threshold does not hold"


@pytest.mark.parametrize(("right", "answered", "low", "high"), [(10, 10, 0.7225, 1.0), (95, 100, 0.8883, 0.9785), (1, 2, 0.0945, 0.9055)])
def test_the_interval_of_a_share_is_wilsons(right, answered, low, high):
    # scipy 1.17: binomtest(right, answered).proportion_ci(method="wilson")
    one = Selection("x", np.ones(answered), np.arange(answered) < right)
    assert one.points[0].interval() == pytest.approx((low, high), abs=1e-4)


def test_the_lines_say_threshold_count_and_interval_or_that_it_is_not_reached():
    one = selection(80, 3)
    point = one.for_accuracy(0.7)
    reached, few = one.to_dict(0.7), selection(5, 0).to_dict(0.7)
    assert json.loads(json.dumps(reached, allow_nan=False))["chosen"]["threshold"] == one.short_threshold(point)
    lines = coverage_lines({"captions": reached, "分级": few}, 0.7)
    assert "100%" in lines[0] and f"{one.right.mean():.3f}" in lines[1]
    assert f"{point.right} of {point.answered} are right" in lines[-2] and "95 % interval" in lines[-2]
    assert "too few answers" in lines[-1]
    none = {name: Selection(name, np.zeros(0), np.zeros(0, bool)).to_dict(0.7) for name in ("organ", "grade")}
    lines = coverage_lines({"captions": reached} | none, 0.7)
    assert lines[-1].startswith("organ, grade: no threshold, as no answer has a probability") and "too few" not in "".join(lines)
    (*_, said) = coverage_lines({"captions": Selection("captions", np.linspace(0.5, 1, 30), np.ones(30, bool)).to_dict(0.9)}, 0.9)
    assert "90.0% right needs no threshold: 30 of 30 are right" in said
    never = Selection("captions", np.linspace(0, 1, 30), np.arange(30) % 3 > 0)
    (*_, said) = coverage_lines({"captions": never.to_dict(0.99)}, 0.99)
    assert "99.0% right is not reached; best from" in said
    assert all(math.isfinite(row["accuracy"]) for row in itertools.chain(reached["coverage"], few["coverage"]))
    assert Selection("captions", np.zeros(0), np.zeros(0, bool)).to_dict(0.9)["chosen"] is None
