"""Progress without a terminal: log lines that say what, how far, at what rate and how long it still takes."""

from __future__ import annotations

import re
import sys
import threading
import time
import types

import pytest

from finetune.common import progress as module
from finetune.common.progress import LoggedProgress, progress
from finetune.config.schema import Config, apply_overrides
from finetune.training import run
from tests.helpers import kill_runs

LINE = re.compile(r"(?P<name>.+): (?P<done>\S+) of (?P<total>\S+) (?P<unit>\w+)s \((?P<percent>\d+)%\)(?P<rest>.*)")


def test_a_line_is_less_than_a_minute_after_the_one_before():
    assert module._SECONDS < 60


def test_a_line_says_how_far_at_what_rate_and_how_long_still(monkeypatch):
    clock = iter([0.0, 10.0])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    shown = LoggedProgress(None, "epoch 1/3", 140, "step", initial=100)
    shown.update(20)
    shown.set_postfix_str("loss=1.5")
    assert shown.line() == "epoch 1/3: 120 of 140 steps (86%), 2.0 steps/s, 00:10 left, loss=1.5", "the rate is of this start"


@pytest.mark.parametrize(("seconds", "done", "rest"), [
    (30.0, 0, "after 00:30"), (100.0, 4, "25.0 s/slide, 2:40:00 left"), (1.0, 250_000, "250k slides/s")])
def test_rates_are_readable_at_any_speed(monkeypatch, seconds, done, rest):
    clock = iter([0.0, seconds])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    total = 1_000_000 if done > 1000 else 388
    shown = LoggedProgress(None, "encoding", total, "slide")
    shown.update(done)
    assert rest in shown.line()


def test_work_that_stands_still_has_lines_and_finished_work_has_none(monkeypatch, log_lines):
    monkeypatch.setattr(module, "_SECONDS", 0.01)
    with LoggedProgress(None, "encoding slides", 5, "tile"):
        _wait_until(lambda: len(log_lines) >= 3)
    assert all(LINE.match(line)["done"] == "0" for line in log_lines)
    _wait_until(lambda: not [t for t in threading.enumerate() if t.name == "progress"])
    count = len(log_lines)
    time.sleep(0.05)
    assert len(log_lines) == count


def test_items_pass_through_and_an_error_in_the_work_ends_the_lines(monkeypatch):
    monkeypatch.setattr(sys, "stderr", types.SimpleNamespace(isatty=lambda: False))
    assert list(progress(iter("abc"), "reading", 3, "file")) == ["a", "b", "c"]

    def work():
        for item in progress(iter("abc"), "reading", 3, "file"):
            raise ValueError(item)

    with pytest.raises(ValueError, match="a"):
        work()
    _wait_until(lambda: not [t for t in threading.enumerate() if t.name == "progress"])


def test_a_terminal_has_a_bar_and_ci_has_lines(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("CI", raising=False)
    with progress(None, "x", 1, "step") as bar:
        assert not isinstance(bar, LoggedProgress)
    monkeypatch.setenv("CI", "1")
    assert isinstance(progress(None, "x", 1, "step"), LoggedProgress)


def test_each_part_of_a_run_without_a_terminal_is_in_its_log(tmp_path, monkeypatch):
    kill_runs.make_data(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("CI", "1")
    monkeypatch.setattr("finetune.models.build.load_prism", kill_runs.tiny_prism)
    update = LoggedProgress.update
    monkeypatch.setattr(LoggedProgress, "update", lambda self, count=1: (update(self, count), module.logger.info(self.line())))
    assert run.train(apply_overrides(Config(), [*kill_runs.SETTINGS, "training.epochs=2",
                                               "training.monitor=last"])) == 0
    written = (tmp_path / "here" / "logs" / "training.log").read_text(encoding="utf-8")
    parts = {match["name"] for line in written.splitlines() if (match := LINE.fullmatch(line.partition(" INFO ")[2]))}
    assert {"indexing", "encoding slides", "epoch 1/2", "epoch 2/2", "validation of epoch 1", "validation of epoch 2",
            "calibrating", "writing nearest.pt", "comparing with looking up"} <= parts


def _wait_until(condition) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)
