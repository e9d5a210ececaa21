"""Tables of reports: files as Excel, WPS, R, pandas and hospital systems write them, all as rows of texts."""

from __future__ import annotations

import csv
import datetime
import random
import zipfile
from pathlib import Path

import openpyxl
import pytest

from finetune.common import memory
from finetune.common.errors import UserError
from finetune.data import workbook
from finetune.data.tables import Table, read_table
from tests.helpers.files import refused, write_json
from tests.helpers.tables import write_csv, write_records, write_xlsx

HEADER = ["病理号", "病理诊断", "切片号"]
ROWS = [["2301001", "（胃窦）低分化腺癌，\n浸润至浆膜层。", "a.svs"], ["2301002", '大小5"×2"；切缘(-)', "b,c.svs"], ["0023", "直肠腺癌；中分化\t肠型", ""]]


def cells(table: Table) -> list[list[str]]:
    return [list(row.values()) for row in table.rows]


# --- the same table in each format -----------------------------------------------------------------------------------

@pytest.mark.parametrize("write", [
    pytest.param(lambda p, rows: write_xlsx(p / "t.xlsx", 报告=rows), id="xlsx"),
    pytest.param(lambda p, rows: write_csv(p / "t.csv", rows), id="CSV"),
    pytest.param(lambda p, rows: write_csv(p / "t.csv", rows, "utf-8-sig"), id="CSV of Excel"),
    pytest.param(lambda p, rows: write_csv(p / "t.csv", rows, "gb18030"), id="CSV of a Chinese Excel"),
    pytest.param(lambda p, rows: write_csv(p / "t.csv", rows, "utf-16", delimiter="\t"), id="Unicode text of Excel"),
    pytest.param(lambda p, rows: write_csv(p / "t.txt", rows, "utf-16", delimiter="\t"), id="Unicode text as .txt"),
    pytest.param(lambda p, rows: write_csv(p / "t.csv", rows, delimiter=";"), id="CSV of a German Excel"),
    pytest.param(lambda p, rows: write_csv(p / "t.csv", rows, lineterminator="\n", quoting=csv.QUOTE_ALL), id="CSV, all quoted"),
    pytest.param(lambda p, rows: write_csv(p / "t.csv", rows, delimiter="|"), id="CSV of bars"),
    pytest.param(lambda p, rows: write_csv(p / "t.tsv", rows, delimiter="\t"), id="TSV"),
    pytest.param(lambda p, rows: write_csv(p / "t.xls", rows, "gbk", delimiter="\t"), id="text called .xls"),
    pytest.param(lambda p, rows: write_records(p / "t.jsonl", rows), id="JSON lines"),
    pytest.param(lambda p, rows: write_records(p / "t.json", rows), id="JSON list of records"),
])
def test_one_table_is_the_same_in_every_format(tmp_path, write):
    table = read_table(write(tmp_path, [HEADER, *ROWS]))
    assert table.columns == tuple(HEADER) and cells(table) == ROWS and len(table.places) == 3


def test_random_tables_come_back_as_they_were(tmp_path):
    rng = random.Random(0)
    for number in range(30):
        # not at the ends of a cell: white space there is dropped
        signs = "胃癌，。“”；;,\t|\"'\n= +-@0123é²"
        rows = [["id", "text", "备注"], *([f"n{i}", *("x" + "".join(rng.choices(signs, k=rng.randrange(30))) + "。" for _ in "ab")]
                                         for i in range(rng.randint(1, 30)))]
        for write in (write_csv(tmp_path / f"{number}.csv", rows, delimiter=rng.choice(",;\t|")),
                      write_xlsx(tmp_path / f"{number}.xlsx", a=rows), write_records(tmp_path / f"{number}.jsonl", rows)):
            assert cells(read_table(write)) == rows[1:], write


# --- text ------------------------------------------------------------------------------------------------------------

def test_a_delimiter_that_excel_names_is_used(tmp_path):
    (tmp_path / "t.csv").write_text("sep=;\nid;text\na;x, y\n", encoding="utf-8")
    table = read_table(tmp_path / "t.csv")
    assert cells(table) == [["a", "x, y"]] and table.where(0).endswith("t.csv:3")


def test_texts_full_of_commas_do_not_decide_the_delimiter(tmp_path):
    (tmp_path / "t.csv").write_text("id;report\n" + "".join(f"{i};a, b, c\n" for i in range(9)), encoding="utf-8")
    assert read_table(tmp_path / "t.csv").columns == ("id", "report")


def test_titles_above_the_header_and_blank_lines_are_left_out(tmp_path):
    rows = [["××医院病理科", "", ""], ["导出日期：2024-05-31", "科室：病理", ""], ["", "", ""], HEADER, *ROWS, ["", "", ""]]
    for path in (write_csv(tmp_path / "t.csv", rows), write_xlsx(tmp_path / "t.xlsx", a=rows)):
        table = read_table(path)
        assert table.columns == tuple(HEADER) and cells(table) == ROWS
        assert int(table.places[0]) == 5, "as a spreadsheet numbers its rows"


def test_lines_are_numbered_as_an_editor_numbers_them(tmp_path):
    table = read_table(write_csv(tmp_path / "t.csv", [HEADER, *ROWS], lineterminator="\n"))
    assert [table.where(i).rpartition(":")[2] for i in range(3)] == ["2", "4", "5"], "the first text has a line break"


def test_what_keeps_excel_from_changing_an_id_is_dropped(tmp_path):
    (tmp_path / "t.csv").write_text('id,text\n"=""00123""",x\n\t00124 ,y\n', encoding="utf-8")
    assert cells(read_table(tmp_path / "t.csv")) == [["00123", "x"], ["00124", "y"]]


def test_columns_of_one_name_or_none_are_told_apart(tmp_path):
    rows = [["id", "备注", "备注", "", "text", ""], ["a", "1", "2", "3", "x", ""]]
    for path in (write_csv(tmp_path / "t.csv", rows), write_xlsx(tmp_path / "t.xlsx", a=rows)):
        assert read_table(path).rows == [{"id": "a", "备注": "1", "备注 (2)": "2", "column 4": "3", "text": "x"}]


@pytest.mark.parametrize(("content", "words"), [
    ("id,text\na,x\nb,y,z\nc\n", [":3", "2 rows have other numbers of cells than the 2 of the header in line 1: 3 (3), 4 (1)"]),
    ('id,text\na,"x\nb,y\n', [":2", "cells cannot be told apart"]), ('id,text\na,x\nb,"y" z\n', [":3", "cells cannot be told apart"]),
    ("", ["is empty"]), ("\n\n,,\n", ["is empty"]), ("id,text\n", ["has a header and no rows"])])
def test_a_table_whose_cells_are_not_certain_is_refused_by_line(tmp_path, content, words):
    (tmp_path / "t.csv").write_text(content, encoding="utf-8")
    with refused("t.csv", *words):
        read_table(tmp_path / "t.csv")


def test_empty_cells_behind_the_last_column_do_no_harm(tmp_path):
    (tmp_path / "t.csv").write_text("id,text\na,x,,\nb,y\n", encoding="utf-8")
    assert cells(read_table(tmp_path / "t.csv")) == [["a", "x"], ["b", "y"]]


def test_a_report_longer_than_the_csv_module_allows_is_read(tmp_path):
    text = "胃癌。" * 100_000
    assert cells(read_table(write_csv(tmp_path / "t.csv", [["id", "text"], ["a", text]]))) == [["a", text]]


# --- workbooks -------------------------------------------------------------------------------------------------------

def test_numbers_dates_and_zeros_are_what_excel_shows(tmp_path):
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append(["id", "text", "when", "n", "ok"])
    sheet.append([2301001.0, "x", datetime.datetime(2024, 5, 31), 1.5, True])
    sheet.append([123, "y", datetime.datetime(2024, 5, 31, 8, 30), 0.1, False])
    sheet.append(["00123", "z_x000D_\n", datetime.time(8, 30), 12345678901234, None])
    sheet["A3"].number_format = "000000"
    book.save(tmp_path / "t.xlsx")
    assert cells(read_table(tmp_path / "t.xlsx")) == [
        ["2301001", "x", "2024-05-31", "1.5", "TRUE"], ["000123", "y", "2024-05-31 08:30:00", "0.1", "FALSE"],
        ["00123", "z", "08:30:00", "12345678901234", ""]]


def with_formulas(path: Path, *, computed: bool) -> Path:
    """B2 is a formula, with or without the value that Excel would store: openpyxl itself stores none."""
    write_xlsx(path, a=[["id", "text"], ["a", '="胃"&"癌"'], ["b", "y"]])
    if computed:
        with zipfile.ZipFile(path) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        sheet = files["xl/worksheets/sheet1.xml"].decode()
        assert sheet.count("<v></v>") + sheet.count("<v />") + sheet.count("<v/>") == 1, sheet
        sheet = sheet.replace('<c r="B2">', '<c r="B2" t="str">')
        for empty in ("<v></v>", "<v />", "<v/>"):
            sheet = sheet.replace(empty, "<v>胃癌</v>")
        files["xl/worksheets/sheet1.xml"] = sheet.encode()
        with zipfile.ZipFile(path, "w") as archive:
            for name, raw in files.items():
                archive.writestr(name, raw)
    return path


def test_a_formula_is_its_last_value_and_refused_without_one(tmp_path):
    assert cells(read_table(with_formulas(tmp_path / "t.xlsx", computed=True))) == [["a", "胃癌"], ["b", "y"]]
    with refused("t.xlsx", "1 formulas of sheet 'a' have no value, such as B2", "save"):
        read_table(with_formulas(tmp_path / "t.xlsx", computed=False))


def test_merged_cells_belong_to_all_their_rows_and_titles_to_none(tmp_path):
    book = openpyxl.Workbook()
    sheet = book.active
    for row in (["2024年病理报告", None, None], ["病理号", "报告", None], [None, "病理诊断", "切片号"], ["a", "胃癌", "a1"], [None, None, "a2"],
                [None, None, "a3"], ["b", "肠癌", "b1"]):
        sheet.append(row)
    for merged in ("A1:C1", "A2:A3", "B2:C2", "A4:A6", "B4:B6"):
        sheet.merge_cells(merged)
    book.save(tmp_path / "t.xlsx")
    table = read_table(tmp_path / "t.xlsx")
    assert table.columns == ("病理号", "病理诊断", "切片号")
    assert cells(table) == [["a", "胃癌", "a1"], ["a", "胃癌", "a2"], ["a", "胃癌", "a3"], ["b", "肠癌", "b1"]]


def test_sheets_of_one_header_are_joined_and_others_left_out(tmp_path, log_lines):
    path = write_xlsx(tmp_path / "t.xlsx", 说明=[["由病理科导出", ""], ["2024", "x"]], 上半年=[HEADER, ROWS[0]], 下半年=[HEADER, *ROWS[1:]])
    table = read_table(path)
    assert cells(table) == ROWS and table.places == ["上半年:2", "下半年:2", "下半年:3"]
    assert any("read sheets '上半年', '下半年'; not read: '说明'" in line for line in log_lines)


def test_two_different_tables_in_one_workbook_are_refused(tmp_path):
    with refused("t.xlsx", "has several tables", "'a' (id, text)", "'b' (id, report)"):
        read_table(write_xlsx(tmp_path / "t.xlsx", a=[["id", "text"], ["1", "x"]], b=[["id", "report"], ["1", "x"]]))


def test_hidden_sheets_do_not_count(tmp_path):
    book = openpyxl.load_workbook(write_xlsx(tmp_path / "t.xlsx", a=[["id", "text"], ["1", "x"]], b=[["id", "report"], ["1", "x"]]))
    book["b"].sheet_state = "hidden"
    book.save(tmp_path / "t.xlsx")
    assert cells(read_table(tmp_path / "t.xlsx")) == [["1", "x"]]


@pytest.mark.parametrize(("name", "content", "words"), [
    ("t.xlsx", b"\xd0\xcf\x11\xe0" + bytes(600), ["old .xls workbook, or one with a password", "save it as .xlsx"]),
    ("t.xls", b"\xd0\xcf\x11\xe0" + bytes(600), ["old .xls workbook"]), ("t.xls", b"<html><table>", ["web page called .xls"]),
    ("t.xlsx", b"id,text\n", ["not an .xlsx workbook", "id,text"]), ("t.xlsx", b"", ["not an .xlsx workbook"])])
def test_what_is_no_workbook_says_what_it_is(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with refused(name, *words):
        read_table(tmp_path / name)


def test_a_damaged_or_hostile_workbook_is_refused(tmp_path):
    path = write_xlsx(tmp_path / "t.xlsx", a=[HEADER, *ROWS])
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    sheet = files["xl/worksheets/sheet1.xml"].decode()
    for number, (old, new) in enumerate([("</sheetData>", ""), ('r="1"', 'r="99999999999"'), ('r="C1"', 'r="XFD1"'), ("<row", "<!--")]):
        changed = files | {"xl/worksheets/sheet1.xml": sheet.replace(old, new, 1).encode()}
        with zipfile.ZipFile(tmp_path / f"{number}.xlsx", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, raw in changed.items():
                archive.writestr(name, raw)
        with pytest.raises(UserError) as caught:
            read_table(tmp_path / f"{number}.xlsx")
        assert f"{number}.xlsx" in caught.value.line()
    with refused("no.xlsx", "cannot be read (No such file"):
        read_table(tmp_path / "no.xlsx")


def with_parts(path: Path, **parts: str) -> Path:
    """A workbook of one row of names whose parts NAME.xml are replaced by what Excel would never write."""
    with zipfile.ZipFile(write_xlsx(path, a=[HEADER])) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    for name, text in parts.items():
        (whole,) = (entry for entry in files if entry.endswith(f"/{name}.xml"))
        files[whole] = text.encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, raw in files.items():
            archive.writestr(name, raw)
    return path


MAIN = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'


def sheet_of(cells: list[str], after: str = "") -> str:
    rows = "".join(f'<row r="{cell.lstrip("ABCL")}"><c r="{cell}"><v>1</v></c></row>' for cell in cells)
    return f"<worksheet {MAIN}><sheetData>{rows}</sheetData>{after}</worksheet>"


@pytest.mark.parametrize("parts", [
    pytest.param({"sheet1": sheet_of([f"ALL{row}" for row in range(1, 5)])}, id="a cell in a far column of each row"),
    pytest.param({"sheet1": sheet_of(["A1", "A4000"])}, id="a cell in a far row"),
    pytest.param({"sheet1": sheet_of(["ALL1", *(f"A{row}" for row in range(2, 9))], '<mergeCells><mergeCell ref="ALL1:ALL8"/></mergeCells>')},
                 id="a merged range in a far column")])
def test_few_cells_cannot_stand_for_many(tmp_path, monkeypatch, parts):
    monkeypatch.setattr(workbook, "_MAX_CELLS", 3900)
    with refused("t.xlsx", "has more than 3900 cells", "delete what is outside"):
        read_table(with_parts(tmp_path / "t.xlsx", **parts))
    monkeypatch.setattr(workbook, "_MAX_CELLS", 9000)
    assert workbook.read_workbook(tmp_path / "t.xlsx")[0].rows


def test_an_empty_merged_range_makes_no_cells(tmp_path):
    far = '<mergeCells><mergeCell ref="ZZZ1:ZZZ3"/></mergeCells>'
    (sheet,) = workbook.read_workbook(with_parts(tmp_path / "t.xlsx", sheet1=sheet_of(["A1", "B2", "A3"], far)))
    assert sheet.rows == [("1", ["1"]), ("2", ["", "1"]), ("3", ["1"])]


def test_a_small_file_that_unpacks_to_much_is_refused_unread(tmp_path):
    path = with_parts(tmp_path / "t.xlsx", sheet1=f"<worksheet {MAIN}><sheetData>{'<row/>' * 800_000}</sheetData></worksheet>")
    with refused("t.xlsx", "unpacks to 0.005 GB", "times its size"):
        read_table(path)


def test_a_workbook_larger_than_the_free_memory_is_refused(tmp_path, monkeypatch):
    path = write_xlsx(tmp_path / "t.xlsx", a=[HEADER, *ROWS])
    monkeypatch.setattr(memory, "free_memory", lambda: 10_000)
    with refused("t.xlsx", "its cells need", "are free"):
        read_table(path)


def test_a_sheet_of_several_names_is_refused(tmp_path):
    book = ('<workbook {} xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships"><sheets>'
            '<sheet name="a" sheetId="1" r:id="rId1"/><sheet name="b" sheetId="2" r:id="rId1"/></sheets></workbook>')
    with refused("t.xlsx", "not a readable workbook"):
        read_table(with_parts(tmp_path / "t.xlsx", workbook=book.format(MAIN)))


# --- JSON ------------------------------------------------------------------------------------------------------------

def test_records_may_lack_keys_and_hold_numbers_lists_and_nothing(tmp_path):
    table = read_table(write_json(tmp_path / "t.json", [
        {"id": 12, "report": " x\r\ny ", "image_path": ["a.pt", "b.pt"]}, {"id": 13.0, "report": None, "n": 1.5},
        {"id": "c", "report": ["x", "y"], "image_path": [], "n": float("nan")}]))
    assert table.columns == ("id", "report", "image_path", "n")
    assert cells(table) == [["12", "x\ny", "a.pt", ""], ["12", "x\ny", "b.pt", ""], ["13", "", "", "1.5"], ["c", "x", "", ""], ["c", "y", "", ""]]
    assert table.places == ["1", "1", "2", "3", "3"]


@pytest.mark.parametrize(("name", "content", "words"), [
    ("t.jsonl", '{"id": "a"}\n{"id": }\n', [":2:8", "not valid JSON"]), ("t.jsonl", '{"id": "a"}\n["b"]\n', [":2", "the record is a list"]),
    ("t.jsonl", "", ["no labels"]), ("t.json", "[]", ["no labels"]), ("t.json", '{"a": "x"}', ["top level is a dict"]),
    ("t.json", '[{"id": "a", "report": {"zh": "x"}}]', [":1", "'report' is a dict"]), ("t.jsonl", '{"id": "a", "id": "b"}', ["appears twice"])])
def test_records_that_are_not_records_are_refused_by_line(tmp_path, name, content, words):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with refused(name, *words):
        read_table(tmp_path / name)
