"""Captions are as long as the model was trained for, and one that was cut is marked wherever it is shown."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace

import pytest

from finetune.checkpoints.format import Checkpoint
from finetune.checkpoints.hf_folder import write_folder
from finetune.config.flags import Parser
from finetune.inference.captioner import Captioner
from finetune.inference.explain import run_explain
from finetune.inference.options import InferenceOptions, add_inference_flags
from finetune.inference.run import run_inference
from finetune.inference.serve import answer
from tests.helpers.files import refused


def options(*flags: object) -> InferenceOptions:
    parser = Parser()
    add_inference_flags(parser)
    return InferenceOptions.from_flags(parser.parse_args(list(map(str, flags))))


def infer(run_with_coords, output, *flags: object) -> None:
    assert run_inference(options("--checkpoint", run_with_coords / "run", "--embeddings_dir",
                                 run_with_coords / "embeddings", "--labels_file", run_with_coords / "labels.json",
                                 "--output", output, *flags)) == 0


def test_the_length_is_the_one_of_the_training_in_every_kind_of_model(run_with_coords, tmp_path):
    content = Checkpoint.load(run_with_coords / "run" / "best_model.pth")
    content.config["data"]["max_seq_len"] = 640
    content.save(tmp_path, ["long.pth"])
    write_folder(tmp_path / "long.pth", tmp_path / "exported")
    for model in ("long.pth", "exported"):
        captioner = Captioner.load(tmp_path / model)
        assert options("--checkpoint", "c", "--serve").generation(captioner.trained_length).max_length == 640
    assert options("--checkpoint", "c", "--serve", "--max_length", 7).generation(640).max_length == 7
    prism = Captioner.of_prism("random-tiny")
    assert prism.trained_length == prism.model.decoder.max_positions == prism.model.decoder.text_decoder.config.max_position_embeddings


def test_I07_whole_captions_are_finished_and_cut_ones_are_marked_in_every_output(run_with_coords, tmp_path, log_lines, capsys):
    whole = {}
    for name, flags in (("whole", []), ("cut", ["--max_length", 6])):
        cut = sum(len(caption) + 2 > 6 for caption in whole.values())  # characters are tokens; begin and end token
        for suffix in ("jsonl", "json", "csv"):
            log_lines.clear()
            infer(run_with_coords, tmp_path / f"{name}.{suffix}", *flags)
            printed = capsys.readouterr().out
            assert len(re.findall(r"^s\d+  0\.\d\d \(cut\)  |^s\d+  1\.00 \(cut\)  ", printed, re.MULTILINE)) == cut
            warnings = [line for line in log_lines if "did not come to their end" in line]
            assert len(warnings) == (cut > 0) and all(w.startswith(f"{cut} of 12") and "128" in w for w in warnings)
            summary = json.loads((tmp_path / f"{name}.scores.json").read_text(encoding="utf-8"))
            assert f"captions:max_length {flags[1] if flags else 128},{cut} of 12 not finished" in summary["signature"]
        rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        assert json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8")) == rows
        with open(tmp_path / f"{name}.csv", encoding="utf-8-sig", newline="") as file:
            assert [r["finished"] for r in csv.DictReader(file)] == ["true" if r["finished"] else "false" for r in rows]
        whole = whole or {row["id"]: row["caption"] for row in rows}
        assert all(row["finished"] == (row["caption"] == whole[row["id"]]) for row in rows)
    assert 0 < cut < 12


def test_pages_mark_a_cut_caption(run_with_coords, tmp_path):
    slide = run_with_coords / "embeddings" / "s1.h5"
    captioner = Captioner.load(run_with_coords / "run")
    for length, finished in ((5, False), (60, True)):
        flags = options("--checkpoint", run_with_coords / "run", "--embeddings_file", slide, "--explain",
                        tmp_path / str(length), "--max_length", length)
        run_explain(flags)
        assert json.loads((tmp_path / str(length) / "explanation.json").read_text(encoding="utf-8"))["finished"] is finished
        page = (tmp_path / str(length) / "explanation.html").read_text(encoding="utf-8")
        assert ("cut at the maximum length" in page) is not finished
        assert answer(captioner, slide, [], flags.generation(0), None)["finished"] is finished


def test_the_folder_of_a_run_gives_its_best_model(run_with_coords, tmp_path, log_lines):
    run = run_with_coords / "run"
    assert replace(Captioner.load(run).checkpoint, path=None) == replace(Captioner.load(run / "best_model.pth").checkpoint, path=None)
    assert log_lines == [f"--checkpoint {run} is the folder of a run: taking its best_model.pth"]
    write_folder(run, tmp_path / "exported")
    assert Captioner.load(tmp_path / "exported").trained_length == 128
    for names, words in (([], "folder of finetune.export"), (["checkpoint_epoch_2.pth", "last_model.pth"], "last_model.pth")):
        for name in names:
            shutil.copy(run / "best_model.pth", tmp_path / name)
        with refused(tmp_path.name, "is neither an exported model nor a run with a best_model.pth", words):
            Captioner.load(tmp_path)


@pytest.mark.parametrize("flag", ["--nearest=2", "--rerank=true"])
def test_what_lies_beside_the_checkpoint_is_found_from_the_run_folder(run_with_coords, tmp_path, flag):
    outputs = []
    for checkpoint in ("run", "run/best_model.pth"):
        output = tmp_path / f"{len(outputs)}.jsonl"
        run_inference(options("--checkpoint", run_with_coords / checkpoint, "--embeddings_dir",
                              run_with_coords / "embeddings", "--output", output, flag))
        outputs.append(output.read_text(encoding="utf-8"))
    assert outputs[0] == outputs[1]
