"""Lines fit the terminal, are coloured only there, and say the same in a file."""

from __future__ import annotations

import io
import logging
import random
import re
import unicodedata

import pytest

from finetune.common import log, terminal
from finetune.common.terminal import columns_of, shortened, wrapped


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("CI", "NO_COLOR", "TERM", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


def plain_width(text: str) -> int:
    """Counted character by character, as a terminal places them."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in ("W", "F") else 1 for c in text)


def test_random_texts_are_broken_at_spaces_only_and_fit():
    rng = random.Random(0)
    for _ in range(500):
        words = ["".join(rng.choices("ab切片，é", k=rng.randint(0, 12))) for _ in range(rng.randint(1, 20))]
        text, width, indent = " ".join(words), rng.randint(34, 60), rng.randint(0, 8)
        lines = wrapped(text, width, indent).split("\n")
        assert re.sub(" +", " ", " ".join(lines)).strip() == re.sub(" +", " ", text).strip()
        assert all(line.startswith(" " * indent) for line in lines[1:])
        assert all(plain_width(line) <= width for line in lines), (lines, width)
        assert columns_of(text) == plain_width(text)
        assert plain_width(shortened(text, width)) <= width and (plain_width(text) > width or shortened(text, width) == text)


def test_a_path_that_is_wider_than_the_window_stays_whole():
    path = "/data/" + "x" * 100
    assert path in wrapped(f"files are in {path} here", 40).split("\n")


@pytest.mark.parametrize(("setting", "value"), [("NO_COLOR", "1"), ("CI", "true"), ("TERM", "dumb")])
def test_colour_is_for_terminals_that_want_it(monkeypatch, setting, value):
    assert terminal.styled("best", "green", Terminal()) == "\033[32mbest\033[0m"
    assert terminal.styled("best", "green", io.StringIO()) == "best"
    monkeypatch.setenv(setting, value)
    assert terminal.styled("best", "green", Terminal()) == "best"


def test_the_width_is_asked_for_and_a_pipe_has_none(monkeypatch):
    assert terminal.width_of(Terminal()) == 80, "a terminal that does not say"
    monkeypatch.setenv("COLUMNS", "132")
    assert terminal.width_of(Terminal()) == 132 and terminal.width_of(io.StringIO()) is None


def test_the_console_has_notices_and_warnings_and_the_file_has_all(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setattr("sys.stderr", shown := Terminal())
    handlers, level = list(log.logger.handlers), log.logger.level
    try:
        kept = log.log_to_console()
        log.logger.info("a detail")
        log.notice("%s", "names \x1b[2J " + "words " * 9, style="green", indent=4)
        log.log_to_file(kept, tmp_path)
        log.logger.warning("something is odd here, see what can be done")
    finally:
        for handler in list(log.logger.handlers):
            log.logger.removeHandler(handler)
            handler.close()
        log.logger.handlers[:] = handlers
        log.logger.setLevel(level)
    lines = shown.getvalue().splitlines()
    assert lines[0].startswith("\033[32mnames \\x1b[2J words") and lines[1].startswith("    words")
    assert "\033[33mWARNING\033[0m something is odd" in shown.getvalue() and "a detail" not in shown.getvalue()
    assert all(plain_width(re.sub("\033\\[\\d+m", "", line)) <= 30 for line in lines)
    written = (tmp_path / "training.log").read_text(encoding="utf-8").splitlines()
    assert [line.split(" ", 2)[2].split()[0] for line in written] == ["INFO", "NOTICE", "WARNING"]
    assert "\033" not in "".join(written) and written[1].endswith("words " * 9)
    assert logging.getLevelName("INFO") == logging.INFO


def test_without_a_file_the_console_has_all(monkeypatch):
    monkeypatch.setattr("sys.stderr", shown := io.StringIO())
    handlers, level = list(log.logger.handlers), log.logger.level
    try:
        log.log_to_console(details=True)
        log.logger.info("a detail")
    finally:
        log.logger.handlers[:] = handlers
        log.logger.setLevel(level)
    assert shown.getvalue() == "a detail\n"
