"""Which column is which, by the names that hospitals and tools use."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.data.columns import ColumnNames, Columns, find_columns, simple_name
from tests.helpers.files import refused

TABLE = Path("/t.xlsx")


@pytest.mark.parametrize(("header", "wanted"), [
    pytest.param("id report image_path split", Columns("id", "report", "image_path", "split"), id="HistGen"),
    pytest.param("id report", Columns("id", "report"), id="REG"),
    pytest.param("PATIENT FILENAME report", Columns("PATIENT", "report", "FILENAME"), id="STAMP"),
    pytest.param("case_id slide_id Diagnosis", Columns("case_id", "Diagnosis", "slide_id"), id="CLAM"),
    pytest.param("id subtype text", Columns("id", "text"), id="PatchGastric"),
    pytest.param("slide_id caption", Columns("slide_id", "caption", id_is_slide=True), id="slides without cases"),
    pytest.param("filename text", Columns("filename", "text", id_is_slide=True), id="files without cases"),
    pytest.param("序号 病理号 姓名 性别 年龄 送检科室 送检部位 临床诊断 肉眼所见 镜下所见 病理诊断 报告医师 报告日期",
                 Columns("病理号", "病理诊断"), id="a pathology system"),
    pytest.param("住院号 姓名 病理号 切片编号 诊断 备注", Columns("病理号", "诊断", "切片编号"), id="case before patient"),
    pytest.param("住院号 镜下所见 文件名", Columns("住院号", "镜下所见", "文件名"), id="patient and microscopy if nothing else"),
    pytest.param("编号 报告内容 切片 数据划分", Columns("编号", "报告内容", "切片", "数据划分"), id="with a split"),
    pytest.param("病理号(新) 病理诊断：", Columns("病理号(新)", "病理诊断："), id="remarks and colons"),
    pytest.param("ＩＤ Final_Diagnosis", Columns("ＩＤ", "Final_Diagnosis"), id="full width"),
])
def test_the_columns_of_hospitals_and_tools_are_known(header, wanted):
    assert find_columns(header.split(" "), TABLE) == wanted


@pytest.mark.parametrize(("header", "words"), [
    ("姓名 年龄 备注", ["no column is known as the id", "姓名, 年龄, 备注", "data.id_column"]),
    ("id a b", ["no column is known as the text", "id, a, b", "data.text_column"]),
    ("病理号 病例号 诊断", ["'病理号' and '病例号' may both be the id", "data.id_column"]),
    ("id report caption", ["'report' and 'caption' may both be the text", "data.text_column"]),
    ("id 诊断 诊断_(2)", ["'诊断' and '诊断_(2)' may both be the text"]),
    ("id text " + " ".join(f"c{i}" for i in range(30)) + " text_(2)", ["may both be the text"]),
    (" ".join(f"c{i}" for i in range(30)), ["c19 and 10 more"])])
def test_an_ambiguous_table_lists_its_columns(header, words):
    with refused("t.xlsx", *words):
        find_columns(header.split(" "), TABLE)


def test_named_columns_win(header="病理号 病例号 镜下所见 病理诊断 split 文件"):
    columns = header.split(" ")
    named = ColumnNames(id="病例号", text="镜下所见")
    assert find_columns(columns, TABLE, named) == Columns("病例号", "镜下所见", "文件", "split")
    assert find_columns(["Case ID", "Text"], TABLE, ColumnNames(id="case_id")) == Columns("Case ID", "Text")
    with refused("t.xlsx", "has no column '结论'", "病理号, 病例号", "data.text_column"):
        find_columns(columns, TABLE, ColumnNames(id="病例号", text="结论"))


def test_names_differ_in_what_does_not_matter_only():
    assert len({simple_name(name) for name in ("病理号", "病 理 号", "病理号：", "病理号（新）", " 病理号\n")}) == 1
    assert simple_name("（备注）") == "备注" and simple_name("Slide_ID") == simple_name("slide id") == "slideid"
