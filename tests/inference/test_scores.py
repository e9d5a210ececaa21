"""What is printed about answers whose truth is known, and what a program reads of it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from finetune.data.labels import Label
from finetune.evaluation.field_scores import FieldScores
from finetune.evaluation.scoring import Answers, evaluate
from finetune.inference.closing import show_scores
from finetune.inference.ground_truth import GroundTruth
from finetune.inference.options import InferenceOptions
from finetune.inference.records import new_record, print_record
from finetune.inference.scores import Scored
from finetune.inference.sources import slide_source
from finetune.templates.template import Template
from tests.helpers.files import refused

TEMPLATE = Template.from_dict({"text": "胃腺癌，{grade}，{necrosis}坏死。", "slots": {"grade": ["高分化", "低分化"], "necrosis": ["未见", "可见"]}})


def scored(with_fields: bool) -> Scored:
    """40 captions, the less confident ones wrong in their grade; one says the same with other words."""
    true = [TEMPLATE.render({"grade": ["高分化", "低分化"][i % 2], "necrosis": ["未见", "可见"][i % 3 == 0]}) for i in range(40)]
    confidence = np.linspace(0.995, 0.6, 40)
    said = [t if i < 25 else t.replace("高", "X").replace("低", "高").replace("X", "低") for i, t in enumerate(true)]
    said[1] = "胃腺癌，坏死：无，低分化"
    records = [{"id": str(i), "caption": c, "confidence": float(confidence[i])} for i, c in enumerate(said)]
    fields = None
    if with_fields:
        fields = FieldScores.of(TEMPLATE, said, [[t] for t in true], [{"grade": {g: float(p) for g in ("高分化", "低分化") if g in c}, "necrosis": {n: 1.0 for n in ("未见", "可见") if n in c}}
                                                                     for c, p in zip(said, confidence, strict=True)])
    return Scored(evaluate(Answers(said, [[t] for t in true])), records, fields, records)


def test_coverage_and_threshold_of_captions_and_fields_are_printed_and_in_the_summary(capsys, log_lines):
    show_scores(scored(True), 0, None, InferenceOptions(split="val", wanted_accuracy=0.9))
    printed = capsys.readouterr().out
    summary = json.loads(printed.split("summary: ")[1])
    captions = summary["selective"]["captions"]
    assert list(summary["selective"]) == ["captions", "grade", "necrosis"]
    assert (captions["chosen"]["answered"], captions["chosen"]["right"]) == (27, 25), "all of 25, and 2 wrong ones"
    assert captions["coverage"][0]["accuracy"] == summary["acceptable_match"] == 25 / 40 > summary["exact_match"]
    assert f"captions: 90.0% right needs a threshold of {captions['chosen']['threshold']}: 25 of 27 are right" in printed
    assert summary["fields"]["fields"]["grade"]["accuracy"][0] == pytest.approx(24 / 40) and "captions (40 slides)" in printed
    assert summary["fields"]["captions_off_template"] == 1
    assert summary["selective"]["necrosis"]["chosen"]["answered"] == 39, "the caption off the template has no probability"
    assert any("chosen and judged on the same slides" in line and "--split test" in line for line in log_lines)


def test_a_slot_that_is_called_captions_does_not_take_the_place_of_the_captions():
    plain = scored(True)
    grade, necrosis = plain.fields.fields
    found = replace(plain, fields=replace(plain.fields, fields=[replace(grade, name="captions"), necrosis]))
    before, after = plain.to_dict(0.9)["selective"], found.to_dict(0.9)["selective"]
    assert list(after) == ["captions", "field: captions", "necrosis"]
    assert (after["captions"], after["field: captions"]) == (before["captions"], before["grade"])


def test_the_fields_of_an_unusual_slide_have_no_confidence():
    found = scored(True)
    found.records[0]["unusual"] = True
    before, after = scored(True).selections()[1], found.selections()[1]
    assert before.confidence[0] == 0.995 and after.confidence[0] == 0 and (after.confidence[1:] == before.confidence[1:]).all()


def test_withheld_captions_and_a_threshold_that_is_not_reached_are_said(capsys, log_lines):
    show_scores(scored(False), 3, None, InferenceOptions(wanted_accuracy=1.0))
    printed = capsys.readouterr().out
    assert "fields" not in json.loads(printed.split("summary: ")[1])
    assert any("3 captions withheld" in line for line in log_lines)
    show_scores(None, 2, None, InferenceOptions())
    assert json.loads(capsys.readouterr().out.split("summary: ")[1]) == {"slides": 0, "abstained": 2}


def test_the_wanted_accuracy_needs_labels():
    with refused("--wanted_accuracy", "--labels_file"):
        InferenceOptions(checkpoint="x", embeddings_dir="y", wanted_accuracy=0.9).check()
    with refused("--reg_keywords", "add --reg2025"):
        InferenceOptions(checkpoint="x", embeddings_dir="y", labels_file="z", reg_keywords="a:b").check()


def test_a_record_says_how_its_caption_agrees_with_its_references(capsys):
    truth = GroundTruth(labels={"a": Label(("胃腺癌，未见坏死。", "胃腺癌"), ("a",), None), "b": Label(("慢性胃炎。",), ("b",), None)})
    for slide, caption, match, words in (("a", "胃腺癌", (True, True, True), "match exact"), ("a", "胃腺癌，坏死：无", (False, True, True), "match acceptable"),
                                         ("a", "胃腺癌，可见坏死", (False, False, True), "match other"), ("b", "胃腺癌", (False, False, False), "DANGEROUS")):
        record = new_record(slide, caption, confidence=0.5)
        truth.add_match(record)
        assert tuple(record["match"].values()) == match
        print_record(record, brief=False)
        assert words in capsys.readouterr().out
    for record in (new_record("a", None), new_record("unknown", "胃腺癌")):
        truth.add_match(record)
        assert "match" not in record


def test_other_references_make_another_record():
    files = [["slide.h5"]]
    assert slide_source(files) == slide_source(files, ()) != slide_source(files, ("x",)) != slide_source(files, ("y",))
