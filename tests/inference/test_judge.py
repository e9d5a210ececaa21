"""Judgements in the records: confidence and `unusual`, printed, written, and in the decision to abstain."""

from __future__ import annotations

import csv
import dataclasses
import io
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from finetune.data import tile_facts
from finetune.data.slides import inspect_slide
from finetune.data.tile_facts import TileFacts, facts_of, read_facts
from finetune.inference.captioner import Captioner
from finetune.inference.judge import Judge, judge_slides
from finetune.inference.nearest import judge_of
from finetune.inference.options import InferenceOptions
from finetune.inference.records import new_record, print_record, write_csv
from finetune.inference.run import complete_record
from finetune.models.caption_confidence import CaptionConfidence, evidence
from finetune.models.training_texts import SlideVectors, TrainingTexts
from finetune.models.unusual import Range, UsualSlides
from tests.helpers.training import TOKENIZER

FACTS = [TileFacts(30, False, False), TileFacts(30, False, False), TileFacts(3, False, False)]
CONFIDENCE = CaptionConfidence(0.5, np.array([1.0, 2.0]))


def a_judge(confidence: CaptionConfidence | None = CONFIDENCE) -> Judge:
    texts = TrainingTexts(["甲", "乙"] * 3, np.tile(np.eye(2, dtype="f4"), (3, 1)), None, None, TOKENIZER, 9)
    return Judge(texts, UsualSlides(20, {"contrastive": Range(0.1, 0.25)}), confidence)


def judged(judge: Judge) -> tuple[list[dict], SlideVectors]:
    """Three slides: as a training slide, between two of them, and of few tiles."""
    points = np.array([[1, 0], [0.6, 0.8], [0, 1]], "f4")
    points[1] = np.sqrt(0.5)  # 0.29 away from both
    slides = SlideVectors(points, np.ones((3, 2), "f4"), np.ones((3, 2), "f4"))
    found = judge.probabilities(["甲"] * 3, [[4]] * 3, np.full(3, -0.1), slides) if judge.confidence else [0.99] * 3
    records = [new_record(name, caption="甲", confidence=p, finished=True) for name, p in zip("abc", found, strict=True)]
    judge.judge_slides(records, slides, FACTS)
    return records, slides


def test_an_unusual_slide_has_its_reason_and_no_confidence():
    records, slides = judged(a_judge())
    expected = CONFIDENCE.probabilities(evidence(np.full(3, -0.1), [[4]] * 3, ["甲"] * 3, slides, a_judge().texts))[0]
    assert [(r["unusual"], r.get("unusual_reason")) for r in records] == [
        (False, None), (True, "far from the training slides in the contrastive space (0.293, limit 0.25)"),
        (True, "fewer tiles than any training slide (3, the fewest were 20)")]
    assert [r["confidence"] for r in records] == [pytest.approx(expected), 0.0, 0.0]
    assert [r["confidence"] for r in judged(a_judge(None))[0]] == [0.99, 0.0, 0.0], "else the tokens' mean probability"


@pytest.mark.parametrize(("below", "kept"), [(0.0, [True, True, True]), (0.01, [True, False, False])])
def test_an_unusual_slide_abstains_whenever_a_threshold_is_given_and_says_so(capsys, below, kept):
    for record in judged(a_judge())[0]:
        complete_record(record, np.zeros(2), SimpleNamespace(), InferenceOptions(abstain_below=(str(below),)), None, None)
        print_record(record, brief=False)
        assert (record["caption"] is not None) == kept.pop(0) != record.get("abstained", False)
    out = capsys.readouterr().out
    assert out.count("none, unusual slide") == (2 if below else 0) and "too low" not in out
    assert out.count("\tunusual: ") == 2 and "(3, the fewest were 20)" in out


def test_fields_of_an_unusual_slide_have_no_probability_and_no_other_values(capsys):
    records = [new_record(name, caption="甲", confidence=0.9, finished=True) | {"fields": {
        "organ": {"value": "甲", "probability": 0.9, "alternatives": {"乙": 0.1}}}} for name in "abc"]
    a_judge().judge_slides(records, judged(a_judge())[1], FACTS)
    assert [r["fields"]["organ"]["probability"] for r in records] == [0.9, 0, 0]
    assert ["alternatives" in r["fields"]["organ"] for r in records] == [True, False, False]
    for record in records:
        complete_record(record, np.zeros(2), SimpleNamespace(), InferenceOptions(abstain_below=("0.5",)), None, None)
        print_record(record, brief=False)
    out = capsys.readouterr().out
    assert out.count("field organ: none, unusual slide  probability 0.0000") == 2 and "organ: 甲  probability 0.9" in out


def test_without_a_judge_the_tiles_alone_are_judged():
    facts = [facts_of(tiles) for tiles in (np.zeros((9, 4)), np.ones((9, 4)), np.ones((1, 4)), np.eye(9), np.repeat(np.eye(2), [2, 7], axis=0) * [[1, 0]])]
    records = [new_record(name, caption="甲", confidence=0.9, finished=True) for name in "abcde"]
    judge_slides(None, records, None, facts)
    assert [r.get("unusual_reason") for r in records] == ["all its tiles are zero", "all its tiles are equal", "a single tile", None, "78% of its tiles are zero"]
    assert [r["confidence"] for r in records] == [0, 0, 0, 0.9, 0] and "unusual" not in records[3] and records[4]["unusual"]


def test_csv_has_the_judgement_where_there_is_one():
    for judge, header in ((a_judge(), ["unusual", "unusual_reason"]), (None, [])):
        records = judged(judge)[0] if judge else [new_record("a", caption="甲", confidence=0.5, finished=True)]
        records.append(new_record("bad", error="unreadable"))
        file = io.BytesIO()
        write_csv(lambda records=records: iter(records), file)
        rows = list(csv.reader(io.StringIO(file.getvalue().decode("utf-8-sig"))))
        assert rows[0] == ["id", "caption", "error", "confidence", "finished", *header]
        if judge:
            assert [row[5:] for row in rows[1:]] == [["false", ""], ["true", records[1]["unusual_reason"]],
                                                     ["true", records[2]["unusual_reason"]], ["", ""]]


def test_an_index_of_an_older_version_or_of_other_weights_judges_what_it_can():
    texts, numbers = a_judge().texts, {"unusual": {"least_tiles": 4}, "confidence": CONFIDENCE.to_dict() | {"auroc": 0.9}}
    assert Judge.of_index({"ids": ["a"]}, texts, same_weights=True) is None
    assert Judge.of_index(numbers, texts, same_weights=False).confidence is None
    full = Judge.of_index(numbers, texts, same_weights=True)
    assert full.to_dict() == {"unusual": {"least_tiles": 4}, "confidence": CONFIDENCE.to_dict()}
    assert Judge.of_index(numbers | {"confidence": None}, texts, same_weights=True).confidence is None


def test_where_nothing_can_be_judged_it_is_said_once(log_lines):
    of_run, of_prism = (SimpleNamespace(checkpoint=checkpoint) for checkpoint in (SimpleNamespace(), None))
    assert judge_of(of_run, None) is None and len(log_lines) == 1 and "only a single tile, and tiles that are zero or all equal, are noticed" in log_lines[0]
    assert judge_of(of_run, SimpleNamespace(judge=None)) is None and len(log_lines) == 2
    assert judge_of(of_prism, None) is None and len(log_lines) == 2, "Prism itself has no training slides"
    judge = a_judge()
    assert judge_of(of_run, SimpleNamespace(judge=judge)) is judge and len(log_lines) == 2


def test_token_probabilities_are_calibrated_unless_they_are_evidence():
    plain = Captioner(None, None, None, None, {}, temperature=1.7)
    temperatures = [dataclasses.replace(plain, judge=judge)._token_temperature for judge in (None, a_judge(None), a_judge())]
    assert temperatures == [1.7, 1.7, 1.0]


@pytest.mark.parametrize("chunks", [None, (4, 8)])
def test_the_facts_of_a_slide_that_is_not_read_otherwise_are_those_of_all_its_tiles(tmp_path, monkeypatch, chunks):
    rng = np.random.default_rng(0)
    late = np.ones((40, 8), "f2")
    late[39] = 2
    half = rng.standard_normal((300, 8))
    half[rng.permutation(300)[:150]] = 0
    read, seen = tile_facts.read_tiles, []
    monkeypatch.setattr(tile_facts, "read_tiles", lambda slide, rows=None, **how: seen.append(rows) or read(slide, rows, **how))
    for name, tiles in (("zero", np.zeros((40, 8))), ("one", np.ones((1, 8))), ("equal", np.ones((40, 8))), ("late", late), ("half", half),
                        ("usual", rng.standard_normal((40, 8))), ("few", rng.standard_normal((3, 8)))):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file.create_dataset("embeddings", data=tiles.astype("f2"), chunks=chunks if len(tiles) > 3 else None)
        seen.clear()
        assert read_facts(inspect_slide(tmp_path / f"{name}.h5", None, 8)) == facts_of(tiles), name
        assert len(seen) == (1 if name in ("usual", "few", "one", "half") else 2), "all tiles are read only where the first are equal"
