"""report.html from files written here by hand; rendering is tested in test_browser.py."""

from __future__ import annotations

import base64
import json
import math
import random
import re
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pytest

from finetune.common.log import log_to_console, log_to_file, logger
from finetune.config.schema import Config
from finetune.config.yaml_file import dump_yaml
from finetune.pages import caption_table
from finetune.pages.charts import epoch_ticks, line_chart, thin, ticks
from finetune.pages.run_report import view, write_report
from finetune.training.run_log import RunLog
from finetune.training.state import TrainState
from tests.helpers.files import ROOT
from tests.helpers.pages import HOSTILE, lines, make_run


class Page(HTMLParser):
    """Tags with their attributes, and the text outside of style and script."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags, self.text, self._raw = [], "", False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._raw = tag in ("script", "style")

    def handle_data(self, data):
        self.text += "" if self._raw else data


SHOWN = HOSTILE.replace("\u202e", "\\u202e")  # what turns text around is seen, not obeyed
CHARACTERS = [chr(0x4e00 + i) for i in range(3000)]


def all_charts(folder: Path) -> list:
    found = view(folder)
    return found["first_charts"] + found["charts"]


def names_of(chart) -> list[str]:
    return [line.name[1] for line in chart.lines]


def unpacked(table) -> dict:
    """What captions.js reads from the page."""
    return json.loads(zlib.decompress(base64.b64decode(table.packed)))


def test_the_page_holds_what_the_files_say_and_only_as_text(tmp_path):
    page = Page(write_report(make_run(tmp_path / "run")))
    assert not {tag for tag, _ in page.tags} & {"img", "iframe", "object", "embed", "link", "base", "form", "a", "audio", "video"}
    assert sum(tag == "script" and "type" not in attrs for tag, attrs in page.tags) == 1
    assert not any(name.startswith("on") or name in ("src", "href", "style") for _, attrs in page.tags for name in attrs)
    for words in ("9 training, 3 validation", "abc123", "odd file", "× 3", "\\u202e{{ 7*7 }}"):
        assert words in page.text, words
    assert "\u202e" not in page.text
    points = [attrs for tag, attrs in page.tags if tag == "circle"]
    assert len(points) == 6 * (3 + 2 + 1 + 1 + 2)  # the losses' six curves but one, lr, a score, speed and memory


def test_nothing_in_it_asks_for_the_network_and_the_paths_of_this_disk_are_left_out(tmp_path):
    text = write_report(make_run(tmp_path / "run")).read_text(encoding="utf-8")
    assert not re.search(r"https?://|url\(|@import|fetch\(|XMLHttp", text)
    assert "somebody" not in text and "secret" not in text and ">embeddings<" in text


@pytest.mark.parametrize(("text", "shown"), [
    ("skipped /home/me/My Slides/a b.h5: empty file; copy it again", "skipped a b.h5: empty file; copy it again"),
    ("C:\\Users\\me\\x.h5 and \\\\server\\share\\y.h5", "x.h5 and y.h5"), ("error: ~/runs/1: no space", "error: 1: no space"),
    ("/a/b is not /c/d", "b is not d"), ("3/4 of and/or, https://hf.co/a/b, paige-ai/Prism, \\u202e", None)])
def test_paths_in_warnings_and_in_the_fault_that_ended_a_run_lose_their_folders(tmp_path, text, shown):
    folder = make_run(tmp_path / "run")
    lines(folder / "events.jsonl", [{"kind": "start"}, {"kind": "warning", "text": text}, {"kind": "end", "status": text}])
    seen = view(folder)
    assert [(w.english, w.count) for w in seen["state"].warnings] == [(shown or text, 1)] and seen["state"].status == (shown or text)


def test_a_tokenizer_from_a_folder_is_named_without_it(tmp_path):
    folder = make_run(tmp_path / "run")
    config = Config()
    config.data.tokenizer = "hf:/home/somebody/tokenizers/mine"
    (folder / "config.yaml").write_text(dump_yaml(config), encoding="utf-8")
    assert ("tokenizer", "hf:mine", True) in dict(view(folder)["config"])["data"]


def test_a_rank_that_is_1_so_far_is_no_share(tmp_path):
    folder = make_run(tmp_path / "run")
    lines(folder / "metrics.jsonl", [{"epoch": 1, "val_image_to_text_median_rank": 1.0, "val_cider": 0.5, "val_bleu_4": 0.5}])
    charts = {chart.title[1]: chart for chart in all_charts(folder)}
    assert names_of(charts["how close captions are to references"]) == ["BLEU-4"] == names_of(charts["BLEU-1 to BLEU-4"])
    assert charts["CIDEr"].y_label[1] == "0-10" and charts["median rank of retrieval"].y_label[1] == "rank"


def test_old_and_new_names_of_a_score_are_one_curve_with_its_label(tmp_path):
    caption = {"epoch": 6, "id": "a", "caption": "x", "references": ["y"], "scores": {"meteor": 0.25}}
    folder = make_run(tmp_path / "run", captions=[caption])
    lines(folder / "metrics.jsonl", [{"epoch": 1, "val_meteor": 0.1}, {"epoch": 2, "val_token_alignment": 0.3}])
    (chart,) = [c for c in all_charts(folder) if c.title[1] == "how close captions are to references"]
    (line,) = chart.lines
    assert line.name[1] == "token alignment" and len(line.points) == 2
    (score,) = unpacked(view(folder)["captions"])["scores"]
    assert score["name"][1] == "token alignment" and score["values"] == [0.25]


def test_numbers_too_large_to_draw_are_left_out(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "metrics.jsonl").write_text('{"epoch": 1, "loss": 1%s, "val_loss": 1%s, "lr": 1e308, "best": true}\n{"epoch": 2, "loss": 2, "lr": -1e308}\n'
                                          '{"epoch": 1%s}\n' % (("0" * 400,) * 3))
    assert Page(write_report(folder)) and view(folder)["epochs"][0] == 2
    assert (view(folder)["best"].epoch, view(folder)["best"].score) == (1, None)


def test_captions_come_worst_first_without_those_of_earlier_epochs(tmp_path):
    found = view(make_run(tmp_path / "run"))["captions"]
    rows = unpacked(found)
    assert rows["ids"] == [SHOWN, "near", "good"] and rows["right"] == [0, 0, 1] and rows["confidence"] == [0.2, None, 0.9]
    assert [rows["texts"][i] for i in rows["captions"]] == [f"肺癌{SHOWN}", "胃腺癌，低分化", "胃腺癌，高分化"]
    assert [[rows["texts"][i] for i in of_row] for of_row in rows["references"]] == [["胃腺癌，高分化", "肺癌"], ["胃腺癌，高分化"], ["胃腺癌，高分化"]]
    assert (found.epoch, found.num_captions, found.num_right, found.num_rows) == (6, 3, 1, 3)


def test_a_run_without_captions_per_epoch_shows_those_of_its_end(tmp_path):
    folder = make_run(tmp_path / "run", captions=[])
    lines(folder / "held_out_captions.jsonl", [{"epoch": 4, "id": "a", "caption": "x", "references": ["x"], "scores": {}, "confidence": None}])
    assert view(folder)["captions"].num_right == 1


def test_the_caption_of_an_unusual_slide_says_why_it_is(tmp_path):
    folder = make_run(tmp_path / "run", captions=[])
    line = {"epoch": 4, "caption": "x", "references": ["x"], "scores": {}, "confidence": 0.5}
    why = "all its tiles are zero; far from the training slides in Prism's space (0.9, limit 0.3)"
    lines(folder / "held_out_captions.jsonl", [line | {"id": "a", "unusual": False}, line | {"id": "b", "unusual": True, "unusual_reason": why},
                                               line | {"id": "c"}])
    assert unpacked(view(folder)["captions"])["unusual"] == [None, ["所有图块都是 0；在 Prism 的空间里离训练切片远（0.9，界限 0.3）", why], None]


def test_the_retrieval_matrix_frames_the_highest_of_each_row(tmp_path):
    found = view(make_run(tmp_path / "run"))["retrieval"]
    assert found["rows"] == [[(0.9, 9, True), (0.1, 0, False)], [(0.5, 4, True), (0.3, 2, False)]] and found["first"] == 1


def test_the_page_says_first_how_the_captions_compare_with_looking_up(tmp_path):
    found = view(make_run(tmp_path / "run"))
    chinese, english = found["answer"].sentence
    assert english == "On 40 held-out slides 50\u00a0% of the captions are right word for word (95\u00a0% interval 35\u00a0% to 65\u00a0%): not clearly " \
        "better than looking up a training text (at best 12\u00a0%, by linear probe)."
    assert chinese.startswith("在 40 张留出的切片上，50\u00a0% 的描述与参考一字不差（95\u00a0% 区间 35\u00a0% 至 65\u00a0%），看不出优于")
    assert [(f.heading[1], f.cell.value, f.cell.low) for f in found["answer"].figures[1:]] == [("linear probe", 0.125, -0.375)]
    page = Page(write_report(tmp_path / "run"))
    text = page.text
    assert text.index("held-out slides 50\u00a0%") < text.index("曲线") < text.index("abc123")
    assert "[-0.375, 0.500]" in text and any(attrs.get("id") == "held_out" for _, attrs in page.tags)


def test_the_fields_of_a_template_are_a_table_with_confusions_in_place_of_those_by_position(tmp_path):
    folder = make_run(tmp_path / "run", captions=[{"epoch": 6, "id": i, "caption": f"胃癌，{c}", "references": [f"胃癌，{r}"], "scores": {}}
                                                  for i, (c, r) in enumerate([("高", "高"), ("高", "低"), ("低", "低")])])
    assert "文本各项" in Page(write_report(folder)).text
    grade = {"slides": 4, "accuracy": [0.75, 0.25, 1.0], "macro_f1": [0.7, None, None], "auroc": [None, None, None],
             "confusion": {"高": {"高": 2, "": 1}, "低": {"低": 1}}}
    (folder / "held_out_fields.json").write_text(json.dumps({"slides": 4, "captions_off_template": 1, "references_off_template": 0,
                                                             "fields": {HOSTILE: grade}}), encoding="utf-8")
    fields = view(folder)["fields"]
    assert [name for name, _ in fields.columns] == ["accuracy", "macro_f1"]
    assert fields.confusions[0].values == ["高", "低", "…"] and fields.confusions[0].counts == [[2, 0, 1], [0, 1, 0], [0, 0, 0]]
    page = Page(write_report(folder))
    assert "0.750 [0.250, 1.000]" in page.text and SHOWN in page.text and "文本各项" not in page.text
    assert any(attrs.get("id") == "field_scores" for _, attrs in page.tags)


def test_random_weights_and_known_texts_are_banners_and_the_next_step(tmp_path):
    folder = make_run(tmp_path / "run")
    assert [english.split(" (")[0] for _, english in view(folder)["banners"]] == [
        "Prism's weights are random", "All 3 validation texts also stand in training, word for word: the scores say whether the model picks the "
        "right known text, not whether it can write a new one."]
    assert "real weights" in view(folder)["answer"].next[1]
    start = {"kind": "start", "about": {"slides": "9 training, 4 validation", "validation texts that also stand in training": "1 / 4",
                                        "Prism": "paige-ai/Prism"}}
    lines(folder / "events.jsonl", [start])
    assert view(folder)["banners"] == []
    start["about"]["validation texts that also stand in training"] = "3 / 4"
    lines(folder / "events.jsonl", [start])
    assert ["3 of 4" in english for _, english in view(folder)["banners"]] == [True]


def test_the_top_of_the_page_has_the_monitored_score_and_the_run_time_over_all_starts(tmp_path):
    folder = make_run(tmp_path / "run")
    config = Config()
    config.training.monitor = "val_distinct_captions"
    (folder / "config.yaml").write_text(dump_yaml(config), encoding="utf-8")
    times = [("start", "10:00:00"), ("epoch", "10:01:00"), ("start", "12:00:00"), ("epoch", "12:00:30"), ("end", "12:01:00")]
    lines(folder / "events.jsonl", [{"kind": kind, "time": f"2026-01-01 {time}", "status": "finished"} for kind, time in times])
    found = view(folder)
    assert found["state"].seconds == 120 and found["state"].resumed == 1 and found["state"].status == "finished"
    assert (found["best"].epoch, found["best"].value) == (4, 0.25) and "不同描述" in found["best"].score[0]
    assert all(chart.mark is not None for chart in found["first_charts"])


def test_the_matrix_says_how_many_slides_it_leaves_out(tmp_path):
    assert "The matrix has the first 2 of 3 slides" in Page(write_report(make_run(tmp_path / "run"))).text


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "events.jsonl", "validation_captions.jsonl", "retrieval.json",
                                  "held_out.json", "held_out_fields.json"])
@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe{", b"[1, 2]\n{\"epoch\": \"x\"}\n", b"{\"epoch\": 1, \"best\": 1, \"loss\": [", b"[" * 100_000,
                                     b'{"epoch": 7, "kind": "epoch", "ids": 3, "loss": "high", "lr": NaN, "val_x": null, "caption": 5}\n'])
def test_a_missing_or_damaged_file_leaves_a_gap(tmp_path, name, content):
    folder = make_run(tmp_path / "run")
    (folder / name).unlink(missing_ok=True)
    if content is not None:
        (folder / name).write_bytes(content)
    assert Page(write_report(folder)).tags


def test_a_long_run_with_many_captions_gives_a_small_page_with_the_worst(tmp_path, monkeypatch):
    monkeypatch.setattr(caption_table, "_MAX_PACKED", 100_000)
    rng = random.Random(0)
    captions = [{"epoch": 1, "id": f"{i:04d}", "caption": "".join(rng.sample(CHARACTERS, 100)), "references": ["".join(rng.sample(CHARACTERS, 100))],
                 "scores": {"rouge_l": i / 3000}} for i in range(3000)]
    folder = make_run(tmp_path / "run", 3000, captions)
    assert write_report(folder).stat().st_size < 1_000_000
    found = view(folder)["captions"]
    assert found.num_captions == 3000 and 100 < found.num_rows < 1000 and len(found.packed) <= 100_000
    assert unpacked(found)["ids"] == [f"{i:04d}" for i in range(found.num_rows)]


def test_a_line_is_thinned_without_losing_a_spike_or_an_end():
    points = [(x, 1.0) for x in range(10_000)]
    points[4321], points[7000] = (4321, 99.0), (7000, -5.0)
    thinned = thin(points)
    assert len(thinned) <= 200 and thinned == sorted(thinned) and (thinned[0], thinned[-1]) == (points[0], points[-1])
    assert {(4321, 99.0), (7000, -5.0)} <= set(thinned)


@pytest.mark.parametrize(("low", "high", "expected"), [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0.13, 0.94, [0, 0.2, 0.4, 0.6, 0.8, 1]),
                                                       (-3e-5, 7e-5, [-4e-5, -2e-5, 0, 2e-5, 4e-5, 6e-5, 8e-5]),
                                                       (1, 1.0000000000000004, [0.9, 0.95, 1, 1.05, 1.1])])
def test_ticks_are_round_and_enclose_the_values(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize("last", [1, 2, 7, 50, 3001])
def test_ticks_of_epochs_are_whole_and_within(last):
    found = epoch_ticks(1, last)
    assert all(t == int(t) for t in found) and (last == 1 or (min(found) >= 1 and max(found) <= last and found))


def test_points_are_drawn_at_their_values():
    chart = line_chart(("", ""), ("", ""), {("甲", "a"): [(1, 0.0), (2, math.nan), (3, 10.0), (5, 5.0)], ("乙", "b"): [(1, math.inf)]},
                       marked_epoch=3)
    (x1, y1, *text), (x3, y3, *_), (x5, y5, *_) = chart.lines[0].points
    assert names_of(chart) == ["a"] and text == ["1", "0"] and x3 - x1 == pytest.approx(x5 - x3, abs=0.2) and chart.mark == x3
    assert (y1, y3) == (chart.bottom, chart.top) and y5 == pytest.approx((y1 + y3) / 2, abs=0.2)
    assert line_chart(("", ""), ("", ""), {("乙", "b"): [(1, math.nan)]}) is None


def test_an_epoch_writes_the_report_with_its_warnings(tmp_path):
    memory = log_to_console()
    logger.warning("before the files were open")
    log = RunLog(tmp_path, write_report=write_report)
    log.start(log_to_file(memory, tmp_path), {"slides": "4"})
    logger.warning("in the middle\nof it")
    log.epoch(TrainState(epoch=1), {"loss": 1.0}, 0.1, True)
    log.finish("finished")
    logger.warning("after the end")
    log_to_console()
    found = view(tmp_path)
    assert [w.english for w in found["state"].warnings] == ["before the files were open", "in the middle\\nof it"]
    assert found["state"].status == "finished" and found["about"] == [(("切片（训练、验证）", "slides"), ("4", "4"))]
    assert {"速度", "总损失"} <= {c.title[0] for c in all_charts(tmp_path)}


def test_a_report_that_cannot_be_written_is_a_warning(tmp_path, log_lines):
    (tmp_path / "report.html").mkdir()
    RunLog(tmp_path, write_report=write_report).epoch(TrainState(epoch=1), {"loss": 1.0}, 0.1, True)
    assert any("report.html could not be written" in line for line in log_lines)
    assert (tmp_path / "metrics.jsonl").exists() and not list(tmp_path.glob(".*tmp"))


def test_the_command_rebuilds_it_and_refuses_another_folder(tmp_path):
    folder = make_run(tmp_path / "run")
    for argument, code in ((folder, 0), (tmp_path, 2)):
        done = subprocess.run([sys.executable, "-m", "finetune.report", argument], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
        assert done.returncode == code, done.stderr
        assert (folder / "report.html").exists() if code == 0 else done.stderr.startswith(f"error: {tmp_path}: has no metrics.jsonl; ")
