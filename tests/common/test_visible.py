"""One rule for the characters that people see, in every output."""

from __future__ import annotations

import csv
import io
import json
import logging
import unicodedata

import pytest

from finetune.common.errors import UserError, say
from finetune.common.log import log_to_console, logger
from finetune.common.visible import json_text, spreadsheet_cell, visible, visible_values
from finetune.inference.records import new_record, print_record, write_csv, write_json

DECEIVING = ["\x1b", "\x00", "\x07", "\r", "\x85", "\u200b", "\u202e", "\u2066", "\u2028", "\u2029", "\ufeff", "\U000e0041",
             "\ue000", "\udc80"]
HARMLESS = "胃腺癌\u3000a b\xa0é ＝ ① 𠮷 |`<&"


def deceives(text: str) -> bool:
    return any(unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp", "Cs", "Co", "Cn") for c in text)


@pytest.mark.parametrize("character", DECEIVING, ids=lambda c: f"U+{ord(c):04X}")
def test_A02_no_output_shows_a_character_that_deceives(character, capsys):
    text = f"a{character}b"
    shown = visible(text)
    assert shown == f"a{character.encode('unicode_escape', 'backslashreplace').decode()}b"
    record = new_record(text, caption=text, confidence=0.5, finished=True) | {
        "similarity": {text: 0.5}, "probability": {text: 0.5}, "classes": {text: 0.1},
        "nearest": [{"id": text, "similarity": 0.5, "texts": [text]}]}
    print_record(record, brief=False)
    print_record(record, brief=True)
    say(text)
    file = io.BytesIO()
    write_csv(lambda: iter([record]), file)
    outputs = [capsys.readouterr().out, file.getvalue().decode("utf-8-sig"), UserError(text, text, text).line(),
               *visible_values([text])]
    for output in outputs:
        assert shown in output and not deceives(output.replace("\r\n", "").replace("\n", "").replace("\t", "")), output


@pytest.mark.parametrize("character", DECEIVING, ids=lambda c: f"U+{ord(c):04X}")
def test_A02_json_keeps_what_a_character_stands_for_on_one_line(character):
    value = {f"k{character}": [f"a{character}b", "胃"]}
    text = json_text(value)
    assert json.loads(text) == value and not deceives(text) and "胃" in text and len(text.splitlines()) == 1


def test_A02_a_log_line_shows_no_character_that_deceives(capsys):
    log_to_console()
    logger.warning("file %s", "a\u202e\x1bb")
    logging.getLogger("prism_coca").handlers[0].flush()
    assert "a\\u202e\\x1bb" in capsys.readouterr().err


def test_plain_text_stays_as_it_is():
    assert visible(HARMLESS) == HARMLESS and spreadsheet_cell(HARMLESS) == HARMLESS
    assert visible("a\nb\tc", keep="\n") == "a\nb\\tc"


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "＝", "＋", "－", "＠", "﹦", "﹢", "\u3000=", "  ＝", "\xa0@"])
def test_A02_a_cell_is_no_formula(start):
    cell = f"{start}cmd|'/c calc'!A0"
    assert spreadsheet_cell(cell) == f"'{cell}"


@pytest.mark.parametrize("start", ["\r=", "\t=", "\n=", "\u200b=", "\ufeff="])
def test_A02_what_hides_a_formula_is_shown_and_disarms_it(start):
    assert spreadsheet_cell(f"{start}1+1").startswith("\\")


@pytest.mark.parametrize("value", [None, 0.5, -0.5, 3, "-", ""])
def test_numbers_stay_numbers_in_a_cell(value):
    assert spreadsheet_cell(value) == (value if value != "-" else "'-")


def test_a_csv_has_one_line_per_record_and_the_header_is_disarmed_too():
    record = new_record("=id", caption="a\nb\r\nc", confidence=0.5, finished=True) | {"similarity": {"x\u2028y": -0.25}}
    file = io.BytesIO()
    write_csv(lambda: iter([record, record]), file)
    text = file.getvalue().decode("utf-8-sig")
    assert len(text.splitlines()) == 3
    header, row, _ = csv.reader(io.StringIO(text))
    assert header[3] == "similarity: x\\u2028y" and row[:2] == ["'=id", "a\\nb\\r\\nc"] and float(row[3]) == -0.25


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_A05_json_is_valid_where_a_number_is_not_finite(number):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    record = new_record("a", caption="b", confidence=number, finished=True) | {"similarity": {"x": number, "y": 0.5}}
    file = io.BytesIO()
    write_json(lambda: iter([record]), file)
    (read,) = json.loads(file.getvalue(), parse_constant=refuse)
    assert read["confidence"] is None and read["similarity"] == {"x": None, "y": 0.5}
