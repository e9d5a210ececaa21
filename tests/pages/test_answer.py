"""The sentence on top of the report: what it says in each case."""

from __future__ import annotations

import math

import pytest

from finetune.pages.answer import answer
from finetune.pages.held_out import Cell, HeldOut

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
