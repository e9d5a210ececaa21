"""The Chinese of the pages: every warning that a training can give, and the faults of uploaded files."""

from __future__ import annotations

import ast
import re
import string

import pytest

from finetune.common.errors import BadSlide
from finetune.common.score_table import SCORES
from finetune.data.slides import inspect_slide
from finetune.pages.chinese import FAULTS, WARNINGS, fault_in_words, warning_in_chinese
from finetune.pages.score_notes import NOTES
from tests.helpers.files import ROOT, random_tiles, write_h5

ROOMS = ("training", "data", "models")  # what warns while a model is trained
SPECIFIER = re.compile(r"%[-+ #0]*\d*(?:\.\d+)?[a-z]")


def formats() -> set[str]:
    """The formats of all warnings in the code of a training."""
    found = set()
    for room in ROOMS:
        for path in (ROOT / "finetune" / room).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                is_warning = isinstance(node, ast.Call) and ast.unparse(node.func) == "logger.warning"
                if is_warning and isinstance(node.args[0], ast.Constant) and node.args[0].value not in ("%s", "%s and are skipped"):
                    found.add(node.args[0].value)
    return found


def test_a_training_warns_in_chinese_too():
    untranslated = [form for form in sorted(formats()) if warning_in_chinese(SPECIFIER.sub("7", form.replace("%%", "\0")).replace("\0", "%")).isascii()]
    assert len(formats()) > 20 and len(untranslated) < 0.1 * len(formats()), untranslated


@pytest.mark.parametrize("form", WARNINGS)
def test_each_value_of_a_warning_has_its_place(form):
    text = form.replace("%%", "\0")
    values = [f"<{number}>" for number in range(len(SPECIFIER.findall(text)))]
    for value in values:
        text = SPECIFIER.sub(value, text, count=1)
    chinese = warning_in_chinese(text.replace("\0", "%"))
    assert all(value in chinese for value in values) and re.search("[\u4e00-\u9fff]", chinese)


def test_a_warning_that_is_not_known_stays_as_it_is():
    assert warning_in_chinese("something new") == "something new"


def test_faults_name_no_key_of_the_config_and_no_flag():
    for chinese, english in FAULTS.values():
        assert not re.search(r"data\.|--|upload", chinese + english)
        assert {field for _, field, _, _ in string.Formatter().parse(chinese)} <= {None, "0", "1", "2"}


@pytest.mark.parametrize(("make", "chinese"), [
    (lambda path: write_h5(path, random_tiles(5, 1024, 0)), "图块特征是 1024 维，这个模型需要 2560 维：请用同一个图块编码器的特征"),
    (lambda path: path.write_bytes(b"no HDF5"), "不是 HDF5 文件"), (lambda path: path.write_bytes(b""), "文件是空的，请重新复制"),
    (lambda path: write_h5(path, random_tiles(5, 2560, 0), key="coords"), "没有图块特征；文件里只有：coords")])
def test_what_is_wrong_with_a_file_is_said_in_words(tmp_path, make, chinese):
    make(tmp_path / "x.h5")
    with pytest.raises(BadSlide) as fault:
        inspect_slide(str(tmp_path / "x.h5"), None, 2560)
    assert fault_in_words(fault.value.what)[0] == chinese


def faults() -> set[str]:
    """What the readers of slide files say is wrong, with 7 for each value."""
    found = set()
    for name in ("h5_files", "pt_files"):
        tree = ast.parse((ROOT / "finetune" / "data" / f"{name}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "BadSlide" and isinstance(node.args[0], (ast.Constant, ast.JoinedStr)):
                pieces = node.args[0].values if isinstance(node.args[0], ast.JoinedStr) else [node.args[0]]
                found.add("".join(piece.value if isinstance(piece, ast.Constant) else "7" for piece in pieces))
    return found


def test_what_can_be_wrong_with_a_file_is_known_in_chinese():
    of_folders = {"is empty", "is the file of one slide"}
    unknown = [fault for fault in sorted(faults() - of_folders) if fault_in_words(fault)[0].startswith("不能用")]
    assert len(faults()) > 15 and len(unknown) < 0.1 * len(faults()), unknown


def test_a_fault_that_is_not_known_is_passed_on():
    assert fault_in_words("odd") == ("不能用：odd", "odd")


def test_every_score_has_a_line_of_explanation():
    assert set(NOTES) == set(SCORES)
