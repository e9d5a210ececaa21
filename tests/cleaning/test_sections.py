"""Sections by headings and columns; one way of writing."""

from __future__ import annotations

import random
import unicodedata

import pytest

from finetune.cleaning.normalise import normalise, renumber
from finetune.cleaning.rules import Rules
from finetune.cleaning.sections import SectionFinder
from tests.helpers import reports

FINDER = SectionFinder(Rules.load().sections)


def split(text: str, section: str = "diagnosis") -> list[tuple[str, str]]:
    return [(part.section, part.text) for part in FINDER.split(normalise(text), section)]


@pytest.mark.parametrize(("text", "parts"), [
    ("胃腺癌。", [("diagnosis", "胃腺癌。")]),
    ("姓名：张伟\n肉眼所见：灰白组织。\n镜下所见：腺体异型。\n病理诊断：胃腺癌。",
     [("preamble", "姓名：张伟"), ("gross", "灰白组织。"), ("microscopic", "腺体异型。"), ("diagnosis", "胃腺癌。")]),
    ("【肉眼所见】灰白【镜下所见】异型。【诊断】腺癌。", [("gross", "灰白"), ("microscopic", "异型。"), ("diagnosis", "腺癌。")]),
    ("病 理 诊 断 ：腺癌", [("diagnosis", "腺癌")]),
    ("一、肉眼所见：灰白。\n二、病理诊断：\n（胃窦）腺癌", [("gross", "灰白。"), ("diagnosis", "（胃窦）腺癌")]),
    ("大体：灰白。镜下：异型。", [("gross", "灰白。"), ("microscopic", "异型。")]),
    ("FINAL DIAGNOSIS:\nStomach: adenocarcinoma.\nMICROSCOPIC DESCRIPTION\nAtypical glands.\nCOMMENT: none",
     [("diagnosis", "Stomach: adenocarcinoma."), ("microscopic", "Atypical glands."), ("comment", "none")]),
    ("CLINICAL HISTORY: pain. GROSS: tan tissue. DIAGNOSIS: carcinoma.",
     [("clinical", "pain."), ("gross", "tan tissue."), ("diagnosis", "carcinoma.")]),
    ("Final Diagnosis (A): tumor", [("diagnosis", "tumor")]),
    ("腺癌。免疫组化：CK(+)。2. 慢性胃炎。", [("diagnosis", "腺癌。免疫组化：CK(+)。2. 慢性胃炎。")]),  # the stains end with their sentence
    ("腺癌。\n免疫组化：CK(+)。", [("diagnosis", "腺癌。"), ("immunohistochemistry", "CK(+)。")]),
    ("符合临床诊断：腺癌", [("diagnosis", "符合临床诊断：腺癌")]),  # inside a sentence, no heading
    ("诊断明确，腺癌", [("diagnosis", "诊断明确，腺癌")]),
])
def test_headings_begin_sections(text, parts):
    assert split(text) == parts


def test_the_section_of_a_column_holds_until_a_heading():
    assert split("异型。诊断：腺癌", "microscopic") == [("microscopic", "异型。"), ("diagnosis", "腺癌")]


@pytest.mark.parametrize(("text", "expected"), [
    ("（胃窦）腺癌，Ⅱ级；大小３．５×２ｃｍ。", "（胃窦）腺癌，Ⅱ级；大小3.5×2cm。"),
    ("Ｋｉ－６７（＋３０％）", "Ki-67（+30%）"), ("３㎝×５㎜", "3cm×5mm"), ("腺癌\u3000\u00a0 Ⅲ级\u200b\ufeff", "腺癌 Ⅲ级"),
    ("a\r\nb\r\n\r\nc_x000D_\nd<br/>e", "a\nb\nc\nd\ne"), ("P&lt;0.05&nbsp;&amp;&nbsp;x", "P<0.05 & x"), ("腺癌 ，低分化", "腺癌，低分化"),
    ("⾼分化\uf9fe", "高分化茶"), ("e\u0301", "é"), ("\u202eabc\x00\x1b", "abc"), ("①胃癌 ≥5μm m²", "①胃癌 ≥5μm m²"),
])
def test_one_way_of_writing(text, expected):
    assert normalise(text) == expected == normalise(normalise(text))


@pytest.mark.parametrize(("text", "expected"), [
    ("1、胃炎。2）肠化。3.息肉。", "1. 胃炎。2. 肠化。3. 息肉。"), ("（1）胃炎；（3）肠化", "1. 胃炎；2. 肠化"), ("①胃炎\n②肠化", "1. 胃炎\n2. 肠化"), ("2. 腺癌。", "腺癌。"),
    ("大小1.5cm。2.5cm处", "大小1.5cm。2.5cm处"), ("1. 胃：1、炎；2. 肠", "1. 胃：1、炎；2. 肠"), ("3.胃。2.肠。", "3.胃。2.肠。"), ("12/15枚。1/12", "12/15枚。1/12"),
])
def test_lists_are_numbered_in_one_way(text, expected):
    assert renumber(text) == expected


def test_letters_and_digits_of_reports_survive():
    """Against NFKC: whatever normalise changes, no letter or digit of the text is lost or moved."""
    rng = random.Random(5)
    wide = {c: chr(ord(c) + 0xFEE0) for c in map(chr, range(0x21, 0x7F))}
    for _ in range(300):
        text = rng.choice([reports.clean_chinese, reports.clean_english])(rng).text
        noisy = "".join(wide.get(c, c) if rng.random() < 0.3 else c for c in text) + rng.choice(["\u200b", "\u3000", "\r\n", ""])
        kept = [c for c in unicodedata.normalize("NFKC", text) if c.isalnum()]
        assert [c for c in unicodedata.normalize("NFKC", normalise(noisy)) if c.isalnum()] == kept
