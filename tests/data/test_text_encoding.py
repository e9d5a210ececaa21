"""Text files in the encodings of hospitals: read as they were written, or refused; never read wrongly."""

from __future__ import annotations

import contextlib
import random

import pytest

from finetune.common.errors import UserError
from finetune.data.text_encoding import decode, read_text
from tests.helpers.files import ROOT, refused

ZH = "病理号,病理诊断\n2301,（胃窦）低分化腺癌，大小3×2cm，浸润至浆膜层。\n"
# One line of a table by a native of each encoding; as GB18030 most of them decode without an error.
FOREIGN = {
    "big5": "編號,診斷\n1,胃竇低分化腺癌，浸潤至漿膜層\n", "euc_kr": "번호,진단\n1,위 선암 저분화 침윤 림프절 전이\n",
    "euc_jp": "番号,診断\n1,胃低分化腺癌の浸潤\n", "shift_jis": "番号,診断\n1,胃低分化腺癌の浸潤\n",
    "cp1251": "номер,диагноз\n1,Аденокарцинома желудка\n", "cp1253": "id,t\n1,αδενοκαρκίνωμα στομάχου\n",
    "cp1250": "id,opis\n1,rak żołądka, naciek błony mięśniowej\n", "cp1254": "id,tanı\n1,mide adenokarsinomu, orta dereceli şüpheli\n",
    "cp1252": "id,texte\n1,Carcinome infiltré de l’œsophage, métastases\n", "latin-1": "id,Größe\n1,Größe 3 cm, Überwachung\n"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "gbk",
                                      "gb18030", "gb2312"])
def test_the_encodings_of_excel_and_of_hospitals_are_recognised(tmp_path, encoding):
    (tmp_path / "t.csv").write_bytes(ZH.encode(encoding))
    assert read_text(tmp_path / "t.csv") == ZH


def test_a_mark_of_gb18030_and_its_four_byte_characters_are_read(tmp_path):
    text = ZH * 5 + "䶮\n"
    (tmp_path / "t.csv").write_bytes(b"\x84\x31\x95\x33" + text.encode("gb18030"))
    assert read_text(tmp_path / "t.csv") == text
    (tmp_path / "t.csv").write_bytes(text.encode("gb18030"))
    assert read_text(tmp_path / "t.csv") == text


@pytest.mark.parametrize("encoding", FOREIGN)
def test_text_of_other_encodings_is_refused_and_read_once_they_are_named(tmp_path, encoding):
    path, text = tmp_path / "t.csv", FOREIGN[encoding]
    path.write_bytes(text.encode(encoding))
    line = next(number for number, line in enumerate(text.splitlines(), start=1) if not line.isascii())
    with refused(f"t.csv:{line}", "neither UTF-8 nor certainly GB18030", "data.encoding"):
        read_text(path)
    assert read_text(path, encoding) == text


def test_the_line_is_shown_in_each_reading(tmp_path):
    (tmp_path / "t.csv").write_bytes("id,texto\n1,INFLAMAÇÃO\n".encode("cp1252"))
    with refused("t.csv:2", "gb18030: '1,INFLAMA敲O'", "cp1252: '1,INFLAMAÇÃO'"):
        read_text(tmp_path / "t.csv")


@pytest.mark.parametrize("text", ["Größe", "ÇÃO", "é", "5 µm", "“x”", "±°", "naïveté créée", "½", "CRÔNICA", "ß", "¿Qué?", "±2", "ø 3"])
@pytest.mark.parametrize("around", ["{}", "id,t\n1,{}\n", "a {} b", "{}{}"])
def test_short_accented_texts_are_never_taken_for_chinese(tmp_path, text, around):
    with pytest.raises(UserError):
        decode(around.format(text, text).encode("cp1252"), tmp_path)


@pytest.mark.parametrize("text", ["id,t\n1,infiltré\n", "β-catenin", "рак", "5 µm ± 2", "naïveté", "腺癌", "é", "x", "", "癌\0", "“”"])
def test_utf_8_is_utf_8(tmp_path, text):
    assert decode(text.encode(), tmp_path) == text


def phrases() -> list[str]:
    """Chinese phrases of 2 to 12 characters, of the documentation of this project."""
    text = "".join(p.read_text(encoding="utf-8") for p in sorted((ROOT / "docs").glob("*.md")))
    hanzi = "".join(c for c in text if "\u4e00" <= c <= "\u9fff")
    rng = random.Random(0)
    return [hanzi[at:at + rng.randint(2, 12)] for at in rng.sample(range(len(hanzi) - 12), 3000)]


def test_short_tables_in_gbk_are_read_rightly_or_refused(tmp_path):
    """Two to twelve characters beside ASCII: one in a few hundred is also valid UTF-8."""
    also_utf8 = num_refused = 0
    for phrase in phrases():
        raw = f"id,text\n1,{phrase}\n".encode("gbk")
        try:
            raw.decode("utf-8")
            also_utf8 += 1
        except UnicodeDecodeError:
            pass
        try:
            assert decode(raw, tmp_path) == raw.decode("gbk")
        except UserError:
            num_refused += 1
    assert also_utf8 > 3 and num_refused < 0.2 * 3000, "these are not about pathology, and far shorter than a table"


@pytest.mark.parametrize("phrase", ["取模", "取模取模"])
def test_characters_that_are_latin_letters_in_utf8_are_not_read_as_these(tmp_path, phrase):
    raw = f"id,text\n1,{phrase}\n".encode("gbk")
    assert raw.decode("utf-8").isprintable() or "\u0221" in raw.decode("utf-8"), "the trap: valid UTF-8, too"
    with contextlib.suppress(UserError):
        assert decode(raw, tmp_path) == raw.decode("gbk")
    assert decode("id,text\n1,naïveté à Évry\n".encode(), tmp_path) == "id,text\n1,naïveté à Évry\n"


HANGUL = ("가각간갈감갑강개거건검게격견결경계고공과관교구국군규균그극근금기길김나난남내너노논눈뉴는니다단당대더도동두드등디라란람래량러레려력련령로루류르른를리린림마만"
          "말매머면명모목무문물미민바반발방배백변별병보복본부분불비빈사산상생서석선설성세소속손송수술스습시신실심아악안암압앙애액약양어언얼여역연염영예오온와완외요용우운")
KANJI = "胃癌細胞診断組織標本検査臓器粘膜浸潤転移陽性陰性腫瘍切除断端静脈侵襲節郭清中分化高低腺管状乳頭印環未熟良悪"


@pytest.mark.parametrize(("encoding", "signs"), [("euc_kr", HANGUL), ("euc_jp", KANJI), ("big5", "胃癌診斷組織標本檢查黏膜浸潤轉移陽性腫瘤淋巴結")])
def test_text_of_other_east_asian_encodings_is_never_read_as_chinese(tmp_path, encoding, signs):
    """Random text: every pair of bytes of these is a pair of GB18030, too. A real table has far more characters."""
    rng = random.Random(0)
    for _ in range(1000):
        text = "".join(rng.choices(signs, k=rng.randint(24, 60)))
        with pytest.raises(UserError):
            decode(f"id,t\n1,{text}\n".encode(encoding), tmp_path)


@pytest.mark.parametrize(("raw", "words"), [
    pytest.param((ZH * 30).encode()[:-2] + b"\xff\n", [":60", "UTF-8 but for some bytes"], id="UTF-8 with a broken byte"),
    pytest.param((ZH * 30).encode("gbk")[:-1] + b"\xff\n1,a\n", [":60", "GB18030 but for some bytes"], id="GBK with a broken byte"),
    pytest.param(b"\xff\xfea", [":1", "begins with the mark of utf-16"], id="mark of UTF-16, odd length"),
    pytest.param(b"\xef\xbb\xbf" + ZH.encode("gbk"), [":1", "begins with the mark of utf-8"], id="mark of UTF-8 before GBK"),
])
def test_a_damaged_file_names_its_line(tmp_path, raw, words):
    (tmp_path / "t.csv").write_bytes(raw)
    with refused("t.csv", *words):
        read_text(tmp_path / "t.csv")


def test_a_named_encoding_is_used_strictly(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(ZH.encode("gb18030"))
    assert read_text(path, "gb2312") == read_text(path, "GBK") == ZH, "systems write GB18030 under these names"
    with refused("t.csv:1", "not utf-8 (byte 0)", "data.encoding"):
        read_text(path, "utf-8")
    for name in ("gb-18030-x", "base64", "\0"):
        with refused("data.encoding", "unknown encoding"):
            read_text(path, name)


def test_what_is_not_there_or_too_large_is_refused(tmp_path):
    with refused("no.csv", "cannot be read (No such file or directory)"):
        read_text(tmp_path / "no.csv")
    with open(tmp_path / "t.csv", "wb") as file:
        file.truncate((1 << 30) + 1)  # sparse: takes no room
    with refused("t.csv", "1.1 GB is not a labels file"):
        read_text(tmp_path / "t.csv")
