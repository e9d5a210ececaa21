"""Labels from tables: the cases, texts, slides and splits of rows, the same from every format."""

from __future__ import annotations

import pytest

from finetune.data.columns import ColumnNames
from finetune.data.labels import Label, load_labels
from tests.helpers.files import refused, write_json
from tests.helpers.tables import write_csv, write_records, write_xlsx

HEADER = ["序号", "病理号", "姓名", "临床诊断", "镜下所见", "病理诊断", "切片号", "数据划分"]
ROWS = [
    ["1", "2301001", "张三", "胃癌？", "腺体异型", "（胃窦）低分化腺癌，\n浸润至浆膜层。", "2301001-A1.svs", "训练"],
    ["2", "2301001", "张三", "胃癌？", "腺体异型", "（胃窦）低分化腺癌，\n浸润至浆膜层。", "2301001-A2.svs", "训练"],
    ["3", "0023", "李四", "肠癌", "同上", "直肠腺癌", r"D:\扫描\0023.kfb", "val"],
    ["4", "S23/77", "王五", "息肉", "", "管状腺瘤；低级别", "a.svs；b.svs", "测试集"]]
WANTED = {"2301001": Label(("（胃窦）低分化腺癌，\n浸润至浆膜层。",), ("2301001-A1.svs", "2301001-A2.svs"), "train"),
          "0023": Label(("直肠腺癌",), ("扫描/0023.kfb",), "val"),
          "S23/77": Label(("管状腺瘤；低级别",), ("a.svs", "b.svs"), "test")}


FORMATS = [pytest.param(lambda p, rows: write_xlsx(p / "t.xlsx", 报告=rows), id="xlsx"),
           pytest.param(lambda p, rows: write_csv(p / "t.csv", rows, "gbk"), id="GBK CSV"),
           pytest.param(lambda p, rows: write_csv(p / "t.csv", rows, "utf-16"), id="UTF-16 CSV"),
           pytest.param(lambda p, rows: write_csv(p / "t.csv", rows, "utf-8-sig"), id="UTF-8 CSV"),
           pytest.param(lambda p, rows: write_csv(p / "t.tsv", rows, delimiter="\t"), id="TSV"),
           pytest.param(lambda p, rows: write_records(p / "t.jsonl", rows), id="JSONL"),
           pytest.param(lambda p, rows: write_records(p / "t.json", rows), id="JSON list")]


@pytest.mark.parametrize("write", FORMATS)
def test_one_table_gives_equal_labels_in_every_format(tmp_path, write, log_lines):
    labels, problems = load_labels(write(tmp_path, [HEADER, *ROWS]))
    assert list(labels.items()) == list(WANTED.items()) and not problems
    assert any("id = 病理号, text = 病理诊断, slide = 切片号, split = 数据划分" in line and "临床诊断" in line for line in log_lines)
    assert any("4 rows, 3 cases, of which 2 have several slides and 0 several texts" in line for line in log_lines)


def test_a_table_and_the_json_of_its_cases_are_equal(tmp_path):
    as_json = {"2301001": {"text": ROWS[0][5], "slides": ["2301001-A1.svs", "2301001-A2.svs"], "split": "train"},
               "0023": {"text": "直肠腺癌", "slides": ["扫描/0023.kfb"], "split": "val"},
               "S23/77": {"text": "管状腺瘤；低级别", "slides": ["a.svs", "b.svs"], "split": "test"}}
    assert load_labels(write_json(tmp_path / "l.json", as_json)) == load_labels(write_xlsx(tmp_path / "t.xlsx", 报告=[HEADER, *ROWS]))


@pytest.mark.parametrize("write", FORMATS)
@pytest.mark.parametrize(("rows", "wanted"), [
    pytest.param([["id", "text"], ["a", "x"], ["b", "y"]], {"a": Label(("x",), ("a",)), "b": Label(("y",), ("b",))}, id="plain"),
    pytest.param([["id", "text"], ["a", "x"], ["b", "y"], ["a", "z"], ["a", "x"]], {"a": Label(("x", "z"), ("a",)), "b": Label(("y",), ("b",))},
                 id="rows are texts"),
    pytest.param([["id", "text", "slide"], ["a", "x", "s1"], ["a", "", "s2"], ["a", "x", "s1"]], {"a": Label(("x",), ("s1", "s2"))},
                 id="rows are slides, the text once"),
    pytest.param([["id", "text", "slide"], ["a", "x", "s1"], ["a", "y", "s1"]], {"a": Label(("x", "y"), ("s1",))}, id="texts of one slide"),
    pytest.param([["filename", "report"], ["d/a.svs", "x"], [r"E:\e\b.tif", "y"]], {"a": Label(("x",), ("d/a.svs",)), "b": Label(("y",), ("e/b.tif",))},
                 id="files are cases"),
    pytest.param([["filename", "report"], ["c1/s.svs", "x"], ["c2/s.svs", "y"]],
                 {"c1/s.svs": Label(("x",), ("c1/s.svs",)), "c2/s.svs": Label(("y",), ("c2/s.svs",))}, id="files of one name"),
    pytest.param([["case_mapping", "diagnosis", "conclusion"], ["histai/HISTAI-breast/case_7", "?", "x"]],
                 {"case_7": Label(("x",), ("histai/HISTAI-breast/case_7",))}, id="HISTAI"),
    pytest.param([["PATIENT", "FILENAME", "report"], ["p", "sub/a.h5", "x"], ["p", "sub/b.h5", "x"]], {"p": Label(("x",), ("sub/a", "sub/b"))},
                 id="STAMP"),
])
def test_rows_become_cases(tmp_path, write, rows, wanted):
    assert load_labels(write(tmp_path, rows)) == (wanted, {})


@pytest.mark.parametrize(("rows", "wanted"), [
    ([["id", "text", "slide"], ["a", "x", "s1"], ["a", "y", "s2"]], {"a": "its 2 rows have different texts and different slides; "
     "if each slide has its own text, set data.id_column=slide"}),
    ([["id", "text"], ["a", ""]], {"a": "empty text"}), ([["id", "text"], ["", "x"]], {"row 3": "no id in column 'id'"}),
    ([["id", "text"], ["a", "#N/A"]], {"a": "#N/A is an error of Excel"}),
    ([["id", "text", "split"], ["a", "x", "train"], ["a", "y", "test"]], {"a": "is in test and in train"}),
    ([["id", "text", "split"], ["a", "x", "fold1"]], {"a": "split 'fold1', expected train, val, test"})])
def test_a_case_whose_rows_make_no_label_is_a_problem_of_its_own(tmp_path, rows, wanted):
    rows = [rows[0], ["good", "x", "s0" if "slide" in rows[0] else "train"][:len(rows[0])], *rows[1:]]
    labels, problems = load_labels(write_csv(tmp_path / "t.csv", rows))
    assert list(labels) == ["good"] and problems == wanted


def test_slides_with_texts_of_their_own_are_cases_once_the_slide_is_the_id(tmp_path):
    path = write_csv(tmp_path / "t.csv", [["id", "text", "slide"], ["a", "x", "s1"], ["a", "y", "s2"]])
    assert load_labels(path, ColumnNames(id="slide"))[0] == {"s1": Label(("x",), ("s1",)), "s2": Label(("y",), ("s2",))}


def test_lists_in_a_record_are_all_texts_and_slides_of_its_case(tmp_path):
    path = write_json(tmp_path / "t.json", [{"id": "a", "report": ["x", "y"], "image_path": ["s1.pt", "s2.pt", "s3.pt"]}])
    assert load_labels(path) == ({"a": Label(("x", "y"), ("s1", "s2", "s3"))}, {})


def test_named_columns_and_encoding_are_used(tmp_path):
    path = write_csv(tmp_path / "t.csv", [["k", "n", "é"], ["1", "a", "x"]], "cp1252")
    with refused("t.csv:1", "cp1252"):
        load_labels(path)
    with refused("t.csv", "no column is known as the id; its columns: k, n, é"):
        load_labels(path, encoding="cp1252")
    assert load_labels(path, ColumnNames(id="n", text="é"), "cp1252") == ({"a": Label(("x",), ("a",))}, {})


def test_the_same_errors_as_of_json(tmp_path):
    for rows, words in (([["id", "text"], ["../x", "y"]], "not a file name"), ([["id", "text"], ["a.h5", "y"], ["a", "y"]], "two ids name the slide 'a'")):
        with refused("t.csv", words):
            load_labels(write_csv(tmp_path / "t.csv", rows))
