"""The flags of inference.py: parsing, flags without effect, incompatible flags."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest

from finetune.config.flags import Parser
from finetune.inference.options import InferenceOptions, add_inference_flags
from prism import GenerationOptions
from tests.helpers.files import refused


def parsed(*flags: str) -> InferenceOptions:
    parser = Parser(prog="inference.py")
    add_inference_flags(parser)
    return InferenceOptions.from_flags(parser.parse_args(list(flags)))


def one_slide(*flags: str) -> InferenceOptions:
    return parsed("--checkpoint", "c.pth", "--embeddings_file", "a.h5", *flags)


def test_decoding_options_come_from_the_flags_of_their_names():
    given = {"max_length": "30", "num_beams": "4", "temperature": ".5", "top_k": "5", "top_p": "0.9", "seed": "3",
             "repetition_penalty": "1.2", "no_repeat_ngram_size": "3", "length_penalty": "-1"}
    options = one_slide(*(part for name, text in given.items() for part in (f"--{name}", text))).generation(640)
    assert dataclasses.asdict(options) == {"do_sample": False, **{name: float(text) for name, text in given.items()}}
    assert type(options.num_beams) is int


def test_the_defaults_of_the_flags_are_those_of_the_search():
    assert one_slide().generation(640) == GenerationOptions(max_length=640)
    assert one_slide() == InferenceOptions(checkpoint="c.pth", embeddings_file="a.h5")


@pytest.mark.parametrize(("flags", "value"), [([], False), (["--do_sample"], True), (["--do-sample", "true"], True),
                                              (["--do_sample", "false"], False)])
def test_do_sample_is_a_switch(flags, value):
    assert one_slide(*flags).do_sample is value


def test_texts_may_be_given_at_once_or_one_by_one():
    assert one_slide("--text", "胃癌", "a-b c", "--text", "x, y").text == ("胃癌", "a-b c", "x, y")


@pytest.mark.parametrize(("flags", "mode"), [("--embeddings_dir d", "caption"), ("--serve", "serve"), ("--embeddings_file f --explain d", "explain")])
def test_the_mode_follows_from_the_flags(flags, mode):
    assert parsed("--prism_only", *flags.split()).mode == mode


@pytest.mark.parametrize(("flags", "words"), [
    (["--do_sample", "--num_beams", "2"], ["--do_sample", "--num_beams 1"]),
    (["--do_sample", "maybe"], ["--do_sample", "'maybe'", "true or false"]),
    (["--max_length", "1"], ["--max_length", "at least 2"]), (["--num_beams", "0"], ["--num_beams", "at least 1"]),
    (["--temperature", "0"], ["--temperature", "at least 0.01"]), (["--temperature", "1e-300"], ["--temperature", "at least 0.01"]),
    (["--temperature", "1e300"], ["--temperature", "at most 100"]), (["--temperature", "nan"], ["--temperature"]),
    (["--repetition_penalty", "1e-300"], ["--repetition_penalty", "at least 0.01"]),
    (["--repetition_penalty", "1e300"], ["--repetition_penalty", "at most 100"]), (["--top_p", "1.1"], ["--top_p", "at most 1"]),
    (["--top_p", "1.5"], ["--top_p"]), (["--top_p", "0"], ["--top_p", "above 0"]), (["--top_k", "-1"], ["--top_k", "at least 0"]),
    (["--repetition_penalty", "0"], ["--repetition_penalty"]), (["--seed", "x"], ["--seed", "whole number"]),
    (["--nearest", "1001"], ["--nearest", "at most 1000"]), (["--nearest", "-1"], ["--nearest", "at least 0"]),
    (["--abstain_below", "1.1"], ["--abstain_below", "at most 1"]), (["--abstain_below", "nan"], ["--abstain_below"]),
    (["--abstain_below", "0.5", "0.6"], ["--abstain_below", "two thresholds for all"]),
    (["--abstain_below", "organ=0.5", "organ=0.6", "--template", "t"], ["two thresholds of field organ"]),
    (["--abstain_below", "organ=x", "--template", "t"], ["--abstain_below", "'x'"]), (["--abstain_below", "organ"], ["--abstain_below", "'organ'"]),
    (["--abstain_below", "organ=0.5"], ["--abstain_below", "only --template and --choices give fields"]),
    (["--thumbnail_scale", "-1"], ["--thumbnail_scale", "above 0"]), (["--thumbnail_scale", "wide"], ["--thumbnail_scale", "'wide'"]),
    (["--embeddings_dir", "d"], ["not allowed with", "--embeddings_file"]), (["--prism_only"], ["not allowed with", "--checkpoint"]),
    (["--split", "dev"], ["--split", "'dev'"]), (["--text", "a", " "], ["--text: is empty"]),
    (["--findings", "breast"], ["--findings: needs --labels_file"]), (["--classes_file", "c"], ["--classes_file: needs --prompts"]),
    (["--port", "80"], ["--port: does nothing without --serve; leave it out"]), (["--thumbnail", "t.png"], ["--thumbnail: does nothing without --explain"]),
    (["--explain", "d", "--text", "a"], ["--text: does nothing with --explain"]), (["--explain", "d", "--nearest", "2"], ["--nearest: does nothing with --explain"]),
    (["--learning_rte", "1"], ["inference.py", "unrecognized", "rte"]),
])
def test_a_bad_inference_flag_is_refused(flags, words):
    with refused(*words):
        one_slide(*flags)


@pytest.mark.parametrize(("flags", "words"), [
    ("--checkpoint c", "one of --embeddings_file, --embeddings_dir, --serve is required"), ("--serve", "one of --checkpoint, --prism_only is required"),
    ("--checkpoint c --serve --output a.jsonl", "--output: does nothing with --serve; leave it out"), ("--checkpoint c --serve --findings breast", "--findings: does nothing with --serve"),
    ("--checkpoint c --serve --labels_file l.json", "--labels_file: does nothing with --serve"), ("--checkpoint c --serve --explain d", "--explain: does nothing with --serve"),
    ("--checkpoint c --embeddings_dir d --explain e", "--explain: is for one slide"),
    ("--checkpoint c --serve --nearest 2 --port 80 --num_beams 2", None), ("--checkpoint c --embeddings_file x.h5 --explain d --thumbnail t", None)])
def test_a_flag_that_is_missing_or_would_be_ignored_is_refused(flags, words):
    with refused(words) if words else contextlib.nullcontext():
        parsed(*flags.split())


@pytest.mark.parametrize("text", ["0", "65536", "-1", "8o", "", "٣"])
def test_an_unusable_port_is_refused(text):
    with refused("--port"):
        parsed("--checkpoint", "c.pth", "--serve", "--port", text)


def test_help_gives_meaning_and_default_of_each_flag(capsys):
    with pytest.raises(SystemExit) as ended:
        parsed("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0 and "--num_beams NUM_BEAMS" in text and "(default 7860)" in text
    assert all(f"--{field.name} " in text and field.metadata["help"] in text for field in dataclasses.fields(InferenceOptions))
