"""What a job of a folder shows: what it does, a line a slide, how it went, scores that fit; all of them in a file."""

from __future__ import annotations

import io
import json

import pytest

from finetune.config.flags import Parser
from finetune.evaluation.scoring import Answers, evaluate
from finetune.inference import closing
from finetune.inference.closing import show_scores, table_lines
from finetune.inference.options import InferenceOptions, add_inference_flags
from finetune.inference.run import run_inference
from finetune.inference.scores import Scored


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def report():
    answers = Answers(["胃腺癌，高分化。", "未见癌。", "胃腺癌。"], [["胃腺癌，高分化。"], ["胃腺癌。"], ["胃腺癌。"]])
    return evaluate(answers, "胃腺癌。", {"nearest_training_text": ["未见癌。"] * 3, "linear_probe": ["胃腺癌。"] * 3})


def scored() -> Scored:
    return Scored(report(), [{"confidence": 0.5}] * 3)


def infer(*flags: object) -> int:
    parser = Parser()
    add_inference_flags(parser)
    return run_inference(InferenceOptions.from_flags(parser.parse_args([str(flag) for flag in flags])))


def test_a_folder_ends_with_what_was_done_and_where_it_is(run_with_coords, tmp_path, log_lines, capsys):
    output = tmp_path / "captions.csv"
    assert infer("--checkpoint", run_with_coords / "run", "--embeddings_dir", run_with_coords / "embeddings", "--labels_file",
                 run_with_coords / "labels.json", "--text", "胃腺癌", "--output", output, "--abstain_below", 0.001) == 0
    assert log_lines[[line.startswith("captioning") for line in log_lines].index(True)].startswith(
        f"captioning 12 slides of {run_with_coords / 'embeddings'} with run/best_model.pth, epoch 25; cpu")
    end = [line.split() for line in log_lines[-3:]]
    assert " ".join(end[0]).startswith("12 of 12 slides captioned in 0:")
    assert end[1:] == [["captions", str(output)], ["scores", str(tmp_path / "captions.scores.json")]]
    printed = capsys.readouterr().out.splitlines()
    assert sum((line.startswith("s") and "  1.00  " in line) or "  0." in line for line in printed[:12]) == 12
    scores = json.loads((tmp_path / "captions.scores.json").read_text(encoding="utf-8"))
    assert scores["slides"] == 12 and scores["abstained"] == 0 and set(scores["intervals"]) >= {"bleu_4"}
    row = next(line.split() for line in printed if line.startswith("bleu_4 "))
    assert float(row[1]) == pytest.approx(scores["bleu_4"], abs=1e-4)


def test_one_slide_is_shown_with_all_that_is_known_of_it(run_with_coords, log_lines, capsys):
    assert infer("--checkpoint", run_with_coords / "run", "--embeddings_file", run_with_coords / "embeddings" / "s1.h5",
                 "--text", "胃腺癌", "未见癌") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("s1\tcaption: ") and printed.count("similarity ") == 2 and "captioning" not in " ".join(log_lines)


def test_programs_get_json_and_terminals_a_table_that_fits(monkeypatch, tmp_path, capsys):
    show_scores(scored(), 0, None, InferenceOptions())
    assert json.loads(capsys.readouterr().out.split("summary: ")[1])["slides"] == 3
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout", terminal := Terminal())
    show_scores(scored(), 0, None, InferenceOptions())
    show_scores(scored(), 2, tmp_path / "x.scores.json", InferenceOptions())
    assert "summary" not in terminal.getvalue() and "\\n" not in terminal.getvalue()
    assert all(len(line) <= 80 for line in terminal.getvalue().splitlines() if not line.startswith("tok:"))
    assert json.loads((tmp_path / "x.scores.json").read_text(encoding="utf-8"))["abstained"] == 2


@pytest.mark.parametrize("width", [80, 100, 300])
def test_a_narrow_table_has_every_score_of_every_column(width):
    found = report()
    lines = table_lines(found, width)
    assert max(map(len, lines)) <= width
    scores = next(line for line in lines if line.startswith("rouge_l")).split()
    values = [float(value) for value in scores[1:] if value[0].isdigit() and value[-1].isdigit()]
    expected = [column["rouge_l"].value for column in found.columns.values()]
    assert values == pytest.approx(expected, abs=6e-4)


def test_a_scores_file_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(closing.UserError, match="cannot be written"):
        show_scores(scored(), 0, tmp_path / "no" / "x.scores.json", InferenceOptions())
