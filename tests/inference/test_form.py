"""--template and --choices from flags to records, with Prism's own decoder and letters as tokens."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from finetune.common.errors import UserError
from finetune.inference.captioner import Captioner
from finetune.inference.form import read_choices
from finetune.inference.options import InferenceOptions
from finetune.inference.run import run_inference
from finetune.inference.serve import answer
from finetune.templates.template import Template
from tests.helpers.files import random_tiles, refused, write_h5

TEMPLATE = """
text: "{organ}, {type}[, grade {grade}]."
slots:
  organ: [breast, stomach]
  type: [ductal carcinoma, in situ]
  grade: {values: ["1", "2"], only_if: {type: [ductal carcinoma]}}
"""


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("form")
    for number in range(3):
        write_h5(folder / "embeddings" / f"s{number}.h5", random_tiles(5, 2560, seed=number))
    (folder / "t.yaml").write_text(TEMPLATE, encoding="utf-8")
    (folder / "c.txt").write_text("benign\n\n in situ \n", encoding="gb18030")
    return folder


@pytest.fixture(autouse=True, scope="module")
def loaded_once():
    """One random model for all runs."""
    captioner = Captioner.of_prism("random-tiny", "cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Captioner, "of_prism", lambda *_: captioner)
        yield


def run(folder, name, **options):
    """The records of all slides."""
    output = folder / name
    options = {"template": str(folder / "t.yaml")} | options
    assert run_inference(InferenceOptions(
        prism_only=True, prism="random-tiny", embeddings_dir=str(folder / "embeddings"), output=str(output),
        latents_cache="null", **options).check()) == 0
    growing = output if output.suffix == ".jsonl" else output.with_name(f"{name}.jsonl")
    return [json.loads(line) for line in growing.read_text(encoding="utf-8").splitlines()]


def test_records_and_csv_have_the_fields_of_the_caption(slides):
    template = Template.from_file(slides / "t.yaml")
    for beams in (1, 3):
        found = run(slides, f"a{beams}.csv", num_beams=beams)
        with open(slides / f"a{beams}.csv", encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        for record, row in zip(found, rows, strict=True):
            values = {name: field["value"] for name, field in record["fields"].items()}
            assert template.parse(record["caption"]) == values and record["finished"] is True
            assert record["confidence"] == pytest.approx(np.prod([f["probability"] for f in record["fields"].values()]))
            for name, field in record["fields"].items():
                assert row[f"field: {name}"] == (field["value"] or "") and float(row[f"probability: {name}"]) == field["probability"]
                assert field["probability"] + sum(field.get("alternatives", {}).values()) == pytest.approx(1, abs=0.03)


def test_a_field_below_the_threshold_is_withheld_with_its_probability_kept_and_so_is_the_caption(slides):
    full = run(slides, "b.jsonl")
    probabilities = sorted(f["probability"] for r in full for f in r["fields"].values())
    threshold = probabilities[len(probabilities) // 2]
    withheld = run(slides, "c.jsonl", abstain_below=(str(threshold),))
    for record, before in zip(withheld, full, strict=True):
        for name, field in record["fields"].items():
            old = before["fields"][name]
            assert field["probability"] == old["probability"]
            if old["probability"] < threshold:
                assert field["value"] is None and field["abstained"] and "alternatives" not in field
            else:
                assert field == old
        assert (record["caption"] is None) == (before["confidence"] < threshold)
    run(slides, "c.csv", abstain_below=(str(threshold),))
    with open(slides / "c.csv", encoding="utf-8-sig", newline="") as file:
        for row, record in zip(csv.DictReader(file), withheld, strict=True):
            told = {name: row.get(f"withheld: {name}", "false") == "true" for name in record["fields"]}
            assert told == {name: "abstained" in field for name, field in record["fields"].items()}
            assert all(not row[f"field: {name}"] for name in told if told[name])
    assert sum("abstained" in f for r in withheld for f in r["fields"].values()) == sum(p < threshold for p in probabilities) > 0


def test_a_field_has_a_threshold_of_its_own_and_is_scored_though_all_captions_are_withheld(slides, log_lines):
    (slides / "k.json").write_text(json.dumps({f"s{i}": "breast, in situ." for i in range(3)}), encoding="utf-8")
    full = run(slides, "k.jsonl")
    found = run(slides, "l.jsonl", labels_file=str(slides / "k.json"), abstain_below=("organ=1", "type=0"))
    for record, before in zip(found, full, strict=True):
        assert record["caption"] is None and record["abstained"] and record["fields"]["organ"]["value"] is None
        assert {**record["fields"], "organ": before["fields"]["organ"]} == before["fields"], "others are as they were"
    summary = json.loads((slides / "l.scores.json").read_text(encoding="utf-8"))
    right = [record["fields"]["type"]["value"] == "in situ" for record in full]
    assert summary["slides"] == 0 and summary["abstained"] == 3 and list(summary["selective"]) == ["organ", "type", "grade"]
    assert summary["fields"]["fields"]["type"]["accuracy"][0] == pytest.approx(np.mean(right), abs=1e-6)
    assert summary["fields"]["fields"]["organ"]["slides"] == 0
    with refused("--abstain_below", "stage is not a field of the template"):
        run(slides, "l.jsonl", abstain_below=("0.5", "stage=0.5"))


def test_labels_and_a_resumed_run_change_neither_probabilities_nor_calibration(slides, log_lines, monkeypatch):
    labels = {f"s{i}": "breast, in situ." for i in range(3)}
    (slides / "m.json").write_text(json.dumps(labels), encoding="utf-8")
    values = ["a", *(f"bcdefghij{one}qrstuv{two}" for one in "klmnop" for two in "wxyz")]
    form = {"text": "breast, {type}.", "slots": {"type": ["in situ", *values]}}  # some values too improbable to count
    (slides / "m.yaml").write_text(json.dumps(form), encoding="utf-8")
    options = {"template": str(slides / "m.yaml"), "field_temperature": 5.0}
    plain = run(slides, "m.jsonl", **options)
    labelled = run(slides, "n.jsonl", labels_file=str(slides / "m.json"), **options)
    assert [r["fields"] for r in labelled] == [r["fields"] for r in plain]
    lines = [line for line in log_lines if "field probabilities: " in line]
    scores = (slides / "n.scores.json").read_text(encoding="utf-8")
    for done in (3, 1):  # all, and a part: the rest was captioned by an earlier command
        kept = (slides / "n.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:done]
        (slides / "n.jsonl").write_text("".join(kept), encoding="utf-8")
        assert run(slides, "n.jsonl", labels_file=str(slides / "m.json"), resume=True, **options) == labelled
        assert (slides / "n.scores.json").read_text(encoding="utf-8") == scores
    lines = [line for line in log_lines if "field probabilities: " in line]
    assert len(lines) == 3 and len({line.split("field probabilities: ")[1] for line in lines}) == 1 and "of 3 slides" in lines[0]


def test_references_off_the_template_are_named(slides, log_lines):
    labels = {"s0": "breast, in situ. ", "s1": "breast, in situ. x", "s2": "stomach, in situ."}
    (slides / "o.json").write_text(json.dumps(labels), encoding="utf-8")
    run(slides, "o.jsonl", labels_file=str(slides / "o.json"))
    off = [line for line in log_lines if "do not follow the template" in line]
    print(off)
    assert len(off) == 1 and "such as 'breast, in situ. " in off[0]


def test_the_temperature_divides_log_probabilities_and_changes_no_choice(slides):
    plain, warm = run(slides, "d.jsonl"), run(slides, "e.jsonl", field_temperature=2.0)
    for one, other in zip(plain, warm, strict=True):
        assert one["caption"] == other["caption"]
        organ = {name: record["fields"]["organ"] for name, record in (("plain", one), ("warm", other))}
        p, q = organ["plain"]["probability"], organ["warm"]["probability"]
        assert np.log(q / (1 - q)) == pytest.approx(np.log(p / (1 - p)) / 2, rel=1e-2)


def test_a_choice_is_one_of_the_texts_and_its_probability_that_among_them(slides):
    for record in run(slides, "f.jsonl", template=None, choices=str(slides / "c.txt")):
        assert record["caption"] == record["fields"]["text"]["value"] and record["caption"] in ("benign", "in situ")
        assert record["confidence"] == record["fields"]["text"]["probability"] >= 0.5


def test_the_page_answers_with_the_fields_of_the_record(slides):
    options = InferenceOptions(prism_only=True, serve=True, template=str(slides / "t.yaml")).check()
    captioner = Captioner.from_options(options)
    found = answer(captioner, slides / "embeddings" / "s1.h5", [], options.generation(captioner.trained_length), None)
    record = next(record for record in run(slides, "j.jsonl") if record["id"] == "s1")
    assert found["fields"] == record["fields"] and found["caption"] == record["caption"]


def test_the_labels_of_a_run_calibrate_its_fields(slides, log_lines):
    labels = {f"s{i}": "breast, in situ." for i in range(3)}
    (slides / "labels.json").write_text(json.dumps(labels), encoding="utf-8")
    found = run(slides, "g.jsonl", labels_file=str(slides / "labels.json"))
    right = {"organ": "breast", "type": "in situ", "grade": None}
    wrong = sum(r["fields"][name]["value"] != value for r in found for name, value in right.items())
    (line,) = [line for line in log_lines if "field probabilities: " in line]
    assert f"{wrong} of " in line and "not calibrated, as that needs 20 slides" in line


@pytest.mark.parametrize(("options", "words"), [
    ({"choices": "c.txt"}, ["--choices", "not allowed with --template"]),
    *(({name: value}, [f"--{name}: does nothing with --template"]) for name, value in {
        "max_length": 20, "do_sample": True, "temperature": 0.5, "top_k": 3, "top_p": 0.5, "repetition_penalty": 1.1,
        "no_repeat_ngram_size": 2, "length_penalty": 2.0, "seed": 1, "rerank": "true"}.items()),
    ({"template": None, "field_temperature": 2.0}, ["--field_temperature: needs --template or --choices"]),
    ({"template": "auto"}, ["--template", "Prism itself has no training texts"]),
    ({"template": None, "choices": "one.txt"}, ["one.txt", "two or more texts"])])
def test_what_makes_no_sense_with_a_template_is_one_line(slides, options, words, monkeypatch):
    monkeypatch.chdir(slides)
    (slides / "one.txt").write_text("benign\n", encoding="utf-8")
    with refused(*words):
        run(slides, "h.jsonl", **options)


@pytest.mark.parametrize(("text", "slots", "words"), [
    ("{a}.", {"a": ["乳腺", "b"]}, ["slot a", "no token for '乳' of '乳腺'"]),
    ("胃{a}.", {"a": ["a", "b"]}, ["the text", "no token for '胃'"]),
    ("{a}.", {"a": ["in  situ", "in situ"]}, ["slot a", "cannot tell 'in situ' from 'in  situ'"]),
    ("{a}" * 1 + ".", {"a": ["x" * 2000, "y"]}, ["up to 2003 tokens", "positions"])])
def test_values_that_the_model_cannot_write_are_named_before_anything_is_decoded(slides, tmp_path, text, slots, words):
    (tmp_path / "bad.yaml").write_text(json.dumps({"text": text, "slots": slots}, ensure_ascii=False), encoding="utf-8")
    with refused(str(tmp_path / "bad.yaml") if "tokens" not in words[0] else "--template", *words):
        run(slides, "i.jsonl", template=str(tmp_path / "bad.yaml"))


def test_choices_are_read_from_lines_and_lists(tmp_path):
    (tmp_path / "c.json").write_text('["a, b", "no"]', encoding="utf-8")
    (tmp_path / "c.txt").write_text("a, b\nno\n", encoding="utf-16")
    for name in ("c.json", "c.txt"):
        assert read_choices(str(tmp_path / name)).slots["text"].values == ("a, b", "no")
    (tmp_path / "c.txt").write_text("a\nb\na\n", encoding="utf-8")
    with pytest.raises(UserError, match="lists 'a' twice"):
        read_choices(str(tmp_path / "c.txt"))


def test_fields_are_scored_with_the_probabilities_of_the_records(slides):
    labels = {f"s{i}": f"breast, {kind}." for i, kind in enumerate(["in situ", "in situ", "ductal carcinoma, grade 1"])}
    (slides / "truth.json").write_text(json.dumps(labels), encoding="utf-8")
    found = run(slides, "j.jsonl", labels_file=str(slides / "truth.json"))
    summary = json.loads((slides / "j.scores.json").read_text(encoding="utf-8"))
    true = [Template.from_file(slides / "t.yaml").parse(text) for text in labels.values()]
    for name in ("organ", "type"):
        right = [record["fields"][name]["value"] == fields[name] for record, fields in zip(found, true, strict=True)]
        gaps = [record["fields"][name]["probability"] for record in found]
        assert summary["fields"]["fields"][name]["accuracy"][0] == pytest.approx(np.mean(right), abs=1e-6)
        assert summary["selective"][name]["slides"] == 3 and summary["fields"]["fields"][name]["ece"][0] <= max(gaps)
    assert summary["fields"]["captions_off_template"] == 0 and list(summary["selective"])[:2] == ["captions", "organ"]
