"""The error line, and its handling by the scripts."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.common.errors import UserError, run_script
from finetune.common.visible import visible
from tests.helpers.files import ROOT


def exit_code(main, capsys) -> tuple[int, list[str]]:
    with pytest.raises(SystemExit) as ended:
        run_script(main)
    return ended.value.code, capsys.readouterr().err.splitlines()


def fail_with(error: BaseException):
    def main():
        raise error
    return main


def test_an_error_reads_where_what_and_fix():
    assert UserError(Path("a/b.h5"), "0 tiles", "extract again").line() == "a/b.h5: 0 tiles; extract again"
    assert str(UserError("--lr", "bad", "mend")) == "--lr: bad; mend"


@pytest.mark.parametrize(("raw", "shown"), [
    pytest.param("a\nb\r\tc", "a\\nb\\r\\tc", id="newlines"),
    pytest.param("\x1b[31mred", "\\x1b[31mred", id="ansi"),
    pytest.param("abc\u202ecba", "abc\\u202ecba", id="right-to-left"),
    pytest.param("\u2028x\x00", "\\u2028x\\x00", id="line separator and NUL"),
    pytest.param("\udc80", "\\udc80", id="lone surrogate"),
    pytest.param("胃腺癌 a b", "胃腺癌 a b", id="plain text stays"),
])
def test_control_characters_are_escaped_so_that_an_error_stays_one_line(raw, shown):
    assert visible(raw) == shown
    assert UserError(raw, "x", "y").line() == f"{shown}: x; y"


def test_an_endless_value_does_not_flood_the_terminal():
    assert UserError("f", "x" * 294, "y").line() == "f: " + "x" * 294 + "; y"
    assert UserError("f", "x" * 295, "y").line() == "f: " + "x" * 291 + "...; y", "the fix stays"
    assert len(UserError("f" * 999, "x", "mend").line()) == 300
    assert UserError("f", "x" * 999, "y" * 999).line() == "f: " + "x" * 144 + "...; " + "y" * 148


def test_an_error_survives_the_way_from_a_loader_process():
    error = pickle.loads(pickle.dumps(UserError("f.h5", "NaN", "mend", ["one", "two"])))
    assert (error.where, error.what, error.fix, error.details) == ("f.h5", "NaN", "mend", ("one", "two"))


@pytest.mark.parametrize(("result", "code"), [(None, 0), (0, 0), (2, 2), (143, 143)])
def test_a_script_exits_with_what_main_returns(result, code, capsys):
    assert exit_code(lambda: result, capsys) == (code, [])


def test_a_user_error_is_one_line_and_exit_code_2(capsys):
    code, lines = exit_code(fail_with(UserError("f.h5", "0 tiles", "mend")), capsys)
    assert (code, lines) == (2, ["error: f.h5: 0 tiles; mend"])


def test_details_follow_the_error_line_indented_and_on_one_line_each(capsys):
    code, lines = exit_code(fail_with(UserError("d", "bad", "mend", ["a\nb", "c" * 999])), capsys)
    assert code == 2 and lines[:2] == ["error: d: bad; mend", "  a\\nb"]
    assert len(lines) == 3 and len(lines[2]) == 302


def test_control_c_exits_130_without_a_traceback(capsys):
    assert exit_code(fail_with(KeyboardInterrupt()), capsys) == (130, [])


def test_debug_brings_the_traceback_back(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--debug"])
    with pytest.raises(UserError):
        run_script(fail_with(UserError("f", "x", "y")))


def test_a_bug_is_not_dressed_up_as_a_user_error():
    with pytest.raises(ZeroDivisionError):
        run_script(fail_with(ZeroDivisionError()))


def test_chinese_prints_as_utf8_in_a_c_locale():
    code = ("from finetune.common.errors import *\n"
            "def main():\n print('胃腺癌')\n raise UserError('标签.json', '空', '改\\udc80')\nrun_script(main)")
    code = "exec(" + ascii(code) + ")"  # a C locale cannot take it as an argument otherwise
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, timeout=60)
    assert result.returncode == 2 and result.stdout.decode("utf-8") == "胃腺癌\n"
    assert result.stderr.decode("utf-8") == "error: 标签.json: 空; 改\\udc80\n"
