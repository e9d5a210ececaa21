"""The sentence on top of the report: what it says in each case."""

from __future__ import annotations

import json
import math

import pytest

from finetune.pages.answer import answer
from finetune.pages.held_out import Cell, HeldOut, read_held_out

DONE = (10, "10")


def held_out(own: float, probe: float, low: float, high: float, slides: int = 50, score: str = "exact_match") -> HeldOut:
    cells = {"captions": {score: Cell(own, math.nan, own - 0.1, own + 0.1)}, "linear_probe": {score: Cell(probe, own - probe, low, high)},
             "shuffled_slides": {score: Cell(0.99, 0, 0, 0)}}
    return HeldOut(slides, cells)


@pytest.mark.parametrize(("found", "verdict", "what_next"), [
    (held_out(0.6, 0.4, 0.1, 0.3), "better than looking up", "worst captions"),
    (held_out(0.6, 0.5, -0.1, 0.3), "not clearly better than looking up", "model.size=small"),
    (held_out(0.3, 0.5, -0.3, -0.1), "worse than looking up", "model.size=small"),
    (held_out(0.6, 0.4, 0.1, 0.3, slides=9), "better than", "hold out more"),
    (held_out(1.0, 1.0, 0.0, 0.0), "as good as looking up", "worst captions")])
def test_the_verdict_is_that_of_the_paired_interval_with_the_best_look_up(found, verdict, what_next):
    said = answer(found, "finished", DONE, found.slides)
    assert verdict in said.sentence[1] and what_next in said.next[1] and len(said.figures) == 2
    assert "linear probe" in said.sentence[1] and "shuffled" not in said.sentence[1]


@pytest.mark.parametrize(("own", "probe", "advice"), [(0.3, 0.5, "model.size=small"), (0.6, 0.4, "")])
@pytest.mark.parametrize("state", [{"is_random": True}, {"all_seen": True}, {}], ids=["random", "all seen", "few slides"])
def test_worse_than_looking_up_is_always_followed_by_what_to_try(own, probe, advice, state):
    found = held_out(own, probe, own - probe - 0.1, own - probe + 0.1, slides=50 if state else 6)
    said = answer(found, "finished", DONE, found.slides, **state)
    assert ("model.size=small" in said.next[1]) == bool(advice) and ("model.size=small" in said.next[0]) == bool(advice)


def test_all_of_a_few_slides_right_is_not_certain(tmp_path):
    content = {"slides": 6, "exact_match": 1.0, "rouge_l": 1.0, "baselines": {"linear_probe": {"exact_match": 1.0, "rouge_l": 1.0}},
               "intervals": {"exact_match": [1.0, 1.0], "rouge_l": [1.0, 1.0]},
               "differences": {"linear_probe": {"exact_match": [0.0, 0.0, 0.0], "rouge_l": [0.0, 0.0, 0.0]}}}
    (tmp_path / "held_out.json").write_text(json.dumps(content), encoding="utf-8")
    found = read_held_out(tmp_path / "held_out.json")
    cell = found.cells["captions"]["exact_match"]
    assert (round(cell.low, 4), cell.high) == (0.6097, 1.0)  # 6 / (6 + z²)
    assert found.cells["captions"]["rouge_l"].low == 1.0
    said = answer(found, "finished", DONE, 6)
    assert "(95\u00a0% interval 61\u00a0% to 100\u00a0%): as good as looking up" in said.sentence[1]
    assert "（95\u00a0% 区间 61\u00a0% 至 100\u00a0%），等同于" in said.sentence[0]


def test_where_hardly_a_text_is_exact_another_score_is_shown():
    found = held_out(0.02, 0.01, 0.0, 0.1)
    for column in found.cells.values():
        column["rouge_l"] = Cell(0.5, 0.1, 0.05, 0.2)
    said = answer(found, "finished", DONE, 50)
    assert "ROUGE-L of 0.50" in said.sentence[1] and said.score == ("ROUGE-L", "ROUGE-L") and not said.is_share


@pytest.mark.parametrize(("status", "num_validation", "sentence", "what_next"), [
    ("finished", 0, "finished after 10", "data.val_split"), ("finished", 8, "finished after 10", "--split val"),
    ("", 8, "10 of 10 epochs", "--resume auto"), ("error: x.h5: 0 tiles; copy it", 8, "error: x.h5", "--resume auto")])
def test_without_a_comparison_it_says_how_the_run_stands(status, num_validation, sentence, what_next):
    said = answer(None, status, DONE, num_validation)
    assert sentence in said.sentence[1] and what_next in said.next[1] and said.figures == []


def test_numbers_of_an_earlier_end_are_named_so():
    assert answer(held_out(0.6, 0.4, 0.1, 0.3), "", (12, "20"), 50).sentence[1].startswith("Training runs (or was cut off): 12 of 20 epochs are done. When")


def test_known_texts_and_random_weights_come_before_other_advice():
    found = held_out(1.0, 0.4, 0.5, 0.7)
    assert "not in training" in answer(found, "finished", DONE, 50, all_seen=True).next[1]
    assert "real weights" in answer(found, "finished", DONE, 50, is_random=True, all_seen=True).next[1]
