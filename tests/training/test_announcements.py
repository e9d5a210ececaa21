"""What a person at the terminal reads: one block at the start, a line for each epoch, the answer at the end."""

from __future__ import annotations

import html
import io
import itertools
import json
import re
import shlex
from pathlib import Path

import pytest

from finetune.common.progress import clock_text
from finetune.config.flags import Parser
from finetune.config.schema import Config, apply_overrides
from finetune.inference.options import InferenceOptions, add_inference_flags
from finetune.training import announcements, epoch_times, run
from finetune.training.epoch_times import EpochTimes
from finetune.training.run_log import RunLog
from finetune.training.state import TrainState
from tests.helpers import kill_runs

COLOUR = re.compile("\033\\[\\d+m")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> tuple[Path, str, str]:
    """A folder with a run that was stopped after two of four epochs and resumed, and what two terminals showed."""
    base = tmp_path_factory.mktemp("terminal")
    kill_runs.make_data(base)
    (base / "here").mkdir()
    outputs = []
    for epochs, resumed in ((2, None), (4, "auto")):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(base / "here")
            for name in ("CI", "NO_COLOR", "TERM"):
                patch.delenv(name, raising=False)
            patch.setenv("COLUMNS", "80")
            patch.setattr("finetune.models.build.load_prism", kill_runs.tiny_prism)
            patch.setattr("sys.stderr", terminal := Terminal())
            pairs = [*kill_runs.SETTINGS, f"training.epochs={epochs}", "training.monitor=val_rouge_l"]
            assert run.train(apply_overrides(Config(), pairs), resumed) == 0
            outputs.append(terminal.getvalue())
    return base / "here", *outputs


def lines_of(output: str) -> list[str]:
    """The lines that stay: a progress bar is drawn over after a carriage return."""
    return [line.split("\r")[-1] for line in output.split("\n")]


def test_the_start_is_one_block_that_says_what_trains_on_what(shown):
    folder, first, _ = shown
    plain = [COLOUR.sub("", line) for line in lines_of(first)]
    start = plain.index("training a slide captioner")
    block = list(itertools.takewhile(lambda line: line.startswith("  "), plain[start + 1:]))
    rows = {line[2:13].strip(): line[13:] for line in block if line[2:13].strip()}
    assert list(rows) == ["data", "slides", "texts", "model", "training", "device", "files"]
    about = json.loads((folder / "run" / "events.jsonl").read_text(encoding="utf-8").splitlines()[0])["about"]
    assert about["slides"] in rows["slides"] and f"vocabulary of {about['vocabulary']}" in rows["texts"]
    assert "dim 16" in rows["model"] and rows["training"].startswith("2 epochs of ") and "run (report.html" in rows["files"]


def test_each_epoch_has_one_line_of_the_numbers_in_the_metrics(shown):
    folder, first, second = shown
    records = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = [COLOUR.sub("", line) for line in lines_of(first + second)]
    epochs = [line for line in lines if re.match(r"epoch +\d+/\d+  ", line)]
    assert len(epochs) == len(records) == 4
    for line, record in zip(epochs, records, strict=True):
        total = 2 if record["epoch"] < 3 else 4
        assert line.startswith(f"epoch {record['epoch']}/{total}  loss {record['loss']:.3f}  val {record['val_loss']:.3f}  "
                               f"val ROUGE-L {record['val_rouge_l']:.3f}  0:0"), line
        assert line.endswith("best") == record["best"] and (" left" in line) == (record["epoch"] % 2 == 1)
        assert len(line) <= 79


def test_lines_fit_and_the_end_says_the_sentence_of_the_report_and_where_it_is(shown):
    folder, _, second = shown
    lines = [COLOUR.sub("", line) for line in lines_of(second)]
    assert all(len(line) <= 80 for line in lines)
    end = " ".join(" ".join(lines[next(i for i, line in enumerate(lines) if line.startswith("finished:")):]).split())
    page = html.unescape((folder / "run" / "report.html").read_text(encoding="utf-8"))
    sentence = re.search(r'class="lead">.*?lang="en">(.*?)</span>', page, re.S)[1]
    assert " ".join(sentence.split()) in end and sentence.startswith("On 4 held-out slides")
    assert "report run/report.html" in end and "python inference.py --checkpoint run --embeddings_dir ../h5" in end


def test_a_resumed_run_says_so_and_only_the_terminal_has_colours_and_bars(shown):
    folder, first, second = shown
    assert "resumed from" not in first and "resumed from last_model.pth, after epoch 2 of 4" in second
    assert "\033[32mepoch" in first + second and "%|" in first
    log = (folder / "logs" / "training.log").read_text(encoding="utf-8")
    assert "\033" not in log and "\r" not in log and "%|" not in log
    assert log.count("  val_bleu_4 ") == 4 and "effective batch" in log and "effective batch" not in first


def test_the_estimate_is_said_once_and_in_words(tmp_path, monkeypatch, log_lines):
    log, state = RunLog(tmp_path), TrainState()
    now = [0.0]
    monkeypatch.setattr(epoch_times.time, "monotonic", lambda: now[0])
    monkeypatch.setenv("CI", "1")
    with log.epoch_bar(state, 100, 40) as bar:
        for _ in range(30):
            now[0] += 3.0
            log.step(bar, {"num_slides": 8.0, "loss": 1.0, "lr": 0.1})
    assert log_lines == ["an epoch of 100 steps takes about 5:00, the 40 to come 3:20:00, and validation (3 s a step, measured on "
                         "the first)"]


def test_the_first_steps_tell_how_long_an_epoch_takes_and_the_first_of_them_does_not_count(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(epoch_times.time, "monotonic", lambda: now[0])
    times = EpochTimes()
    times.begin(whole=True)
    estimates = []
    for seconds in [30.0] + [2.0] * 12:
        now[0] += seconds
        estimates.append(times.step())
    assert estimates == [None] * 10 + [2.0] + [None] * 2 and times.left(3) is None
    now[0] += 6.0  # validation
    assert times.training_seconds == 54 and times.end() == 60 and times.left(3) == 180
    times.begin(whole=False)
    now[0] += 5
    times.end()
    assert times.left(1) == 60, "the rest of an epoch that was interrupted says little of a whole one"


def test_slow_steps_are_enough_after_a_minute(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(epoch_times.time, "monotonic", lambda: now[0])
    times = EpochTimes()
    times.begin(whole=True)
    found = []
    for _ in range(3):
        now[0] += 70
        found.append(times.step())
    assert found == [None, 70.0, None]


@pytest.mark.parametrize(("seconds", "text"), [(6.6, "0:07"), (754, "12:34"), (11_100, "3:05:00")])
def test_times_are_short(seconds, text):
    assert clock_text(seconds) == text


@pytest.mark.parametrize(("argv", "program"), [("train_finetune.py", "python inference.py"), ("prism-coca train", "prism-coca caption")])
def test_the_command_for_captions_is_the_one_that_is_there_and_a_shell_takes_it(monkeypatch, argv, program):
    monkeypatch.setattr("sys.argv", [argv])
    config = apply_overrides(Config(), ["training.output_dir=my run", "data.embeddings_dir=切片/a;b"])
    words = shlex.split(announcements._caption_command(config, has_validation=False))
    assert " ".join(words[:2]) == program and words[2:] == ["--checkpoint", "my run", "--embeddings_dir", "切片/a;b", "--output", "captions.jsonl"]


def test_the_command_for_captions_scores_the_validation_slides_as_the_run_read_their_labels(monkeypatch):
    monkeypatch.setattr("sys.argv", ["train_finetune.py"])
    config = apply_overrides(Config(), ["training.output_dir=run", "data.embeddings_dir=e", "data.labels_file=表 1.xlsx", "data.id_column=切片号",
                                        "data.encoding=gbk"])
    words = shlex.split(announcements._caption_command(config, has_validation=True))[2:]
    parser = Parser()
    add_inference_flags(parser)
    options = InferenceOptions.from_flags(parser.parse_args(words))
    assert (options.labels_file, options.id_column, options.text_column, options.encoding, options.split) == ("表 1.xlsx", "切片号", None, "gbk", "val")
    assert options.embeddings_dir == "e" and options.output == "captions.jsonl"
