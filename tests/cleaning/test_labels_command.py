"""`python -m finetune.labels`: from a table to labels that training reads, and a summary; refusals."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.cleaning.rules import SHIPPED, Rules
from finetune.cleaning.run import Options, make_labels
from finetune.common.errors import UserError
from finetune.data import patterns
from finetune.data.labels import load_labels
from tests.helpers import reports
from tests.helpers.files import ROOT, refused, write_slides
from tests.helpers.tables import write_csv, write_records, write_xlsx

HEADER = ["病理号", "姓名", "送检医师", "镜下所见", "病理诊断", "免疫组化"]
ROWS = [
    ["S23-0001", "张伟", "李建国", "腺体异型。", "（胃窦）中分化腺癌，Lauren分型：肠型。建议结合临床。张伟同意手术", "CK7（+）"],
    ["S23-0002", "欧阳明", "李建国", "腺体异型。", "见图", ""],
    ["S23-0003", "王芳", "李建国", "炎症。", "慢性胃炎，伴“肠化”, 轻度；\n患者王芳，女，45岁", ""],
    ["S23-0004", "赵敏", "", "炎症。", "慢性胃炎。", ""],
    ["S23-0004", "赵敏", "", "炎症。", "慢性萎缩性胃炎。", ""],
    ["S23-0005", "钱多", "", "炎症。", "建议复查。", ""],
    ["S23-0006", "孙立", "", "炎症。", "", ""],
]
LABELS = {"S23-0001": "（胃窦）中分化腺癌，Lauren分型：肠型。", "S23-0003": "慢性胃炎，伴“肠化”, 轻度",
          "S23-0004": ["慢性胃炎。", "慢性萎缩性胃炎。"]}


def write_table(folder: Path, kind: str, header: list[str] = HEADER, rows: list[list[str]] = ROWS) -> Path:
    if kind == "xlsx":
        return write_xlsx(folder / "table.xlsx", 报告=[header, *rows])
    if kind == "jsonl":
        return write_records(folder / "table.jsonl", [header, *rows])
    return write_csv(folder / "table.csv", [header, *rows], kind)


def run(table: Path, **options: object) -> dict:
    output = table.parent / "labels.json"
    make_labels(Options(str(table), str(output), **options))
    return json.loads(output.read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", ["xlsx", "gb18030", "utf-8-sig", "utf-16", "jsonl"])
def test_every_kind_of_table_gives_the_same_labels_and_stays_as_it_was(tmp_path, kind):
    table = write_table(tmp_path, kind)
    before = table.read_bytes()
    assert run(table) == LABELS and table.read_bytes() == before
    read, problems = load_labels(tmp_path / "labels.json")
    assert not problems and {i: list(label.texts) for i, label in read.items()} == {i: t if isinstance(t, list) else [t] for i, t in LABELS.items()}


def test_the_summary_accounts_for_every_row_and_hides_identifiers(tmp_path):
    run(write_table(tmp_path, "utf-8"), details=str(tmp_path / "details.jsonl"))
    summary = (tmp_path / "labels.md").read_text(encoding="utf-8")
    for case_id, reason in (("S23-0002", "placeholder: 见图"), ("S23-0005", "nothing left by the rules: recommendations"), ("S23-0006", "no text")):
        assert any(case_id in line and reason in line for line in summary.splitlines()), reason
    assert "rows of the table | 7 |" in summary and "cases written | 3 |" in summary and "listed below) | 3 |" in summary
    assert "`慢性胃炎。`<br>`慢性萎缩性胃炎。`" in summary  # two texts of one id
    assert "建议结合临床。" in summary and "known_values" in summary
    assert not [name for name in ("张伟", "王芳", "李建国", "欧阳明") if name in summary]
    details = [json.loads(line) for line in (tmp_path / "details.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in details] == [row[0] for row in ROWS]
    assert details[0]["removed"][0] == {"rule": "recommendations", "text": "建议结合临床。"} and details[0]["masked"][0]["text"] == "张伟"


def test_A02_no_file_shows_a_character_that_deceives(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("编号,诊断\u202e<b>\nS1,胃腺癌\u202e，低分化\u2028可见坏死。\nS2,慢性\x1b[31m胃炎。\n", encoding="utf-8")
    labels = run(table, details=str(tmp_path / "details.jsonl"), id_column="编号", text_columns=("诊断\u202e<b>",))
    assert labels.keys() == {"S1", "S2"}
    for path in (tmp_path / "labels.json", tmp_path / "labels.md", tmp_path / "details.jsonl"):
        text = path.read_text(encoding="utf-8")
        assert not [c for c in "\u202e\u2028\x1b" if c in text], path.name
    assert "\\u202e<b>" in (tmp_path / "labels.md").read_text(encoding="utf-8")


def test_identifiers_are_shown_when_asked_for(tmp_path):
    run(write_table(tmp_path, "utf-8"), show_identifiers=True)
    assert "张伟" in (tmp_path / "labels.md").read_text(encoding="utf-8")


def test_sections_and_columns_can_be_chosen(tmp_path):
    table = write_table(tmp_path, "utf-8")
    both = run(table, sections=("diagnosis", "microscopic"))
    assert both["S23-0001"] == "（胃窦）中分化腺癌，Lauren分型：肠型。\n腺体异型。" and both["S23-0002"] == "腺体异型。"
    assert run(table, sections=("microscopic",), overwrite=True)["S23-0003"] == "炎症。"
    assert run(table, text_columns=("镜下所见", "病理诊断"), sections=("microscopic",), overwrite=True)["S23-0003"] == "炎症。"
    with refused("table.csv", "no column '结论'", "镜下所见"):
        run(table, text_columns=("结论",), overwrite=True)


def test_slides_splits_and_feature_files_are_kept_and_joined(tmp_path):
    header = ["case_id", "slide", "split", "diagnosis"]
    rows = [["A", "A1.svs.h5", "train", "Carcinoma."], ["A", "A2.h5", "train", "Carcinoma."], ["B", "", "val", "Adenoma."], ["C", "C9", "test", "Gastritis."]]
    table = write_table(tmp_path, "utf-8", header, rows)
    write_slides(tmp_path / "embeddings", {"A1": 2, "A2": 2, "B": 2, "D": 2})
    labels = run(table, embeddings_dir=str(tmp_path / "embeddings"))
    assert labels == {"A": {"text": "Carcinoma.", "slides": ["A1.svs.h5", "A2.h5"], "split": "train"}, "B": {"text": "Adenoma.", "split": "val"}}
    summary = (tmp_path / "labels.md").read_text(encoding="utf-8")
    assert "no feature file: C9" in summary and "files without a label: 1" in summary and "`D`" in summary
    assert not load_labels(tmp_path / "labels.json")[1]


def test_rows_without_a_text_name_further_slides_of_a_case(tmp_path):
    rows = [["A", "A1.svs", "肠腺癌。"], ["A", "A2.svs", ""], ["B", "B1.svs", ""], ["A", "A3.svs", "见图"]]
    table = write_table(tmp_path, "utf-8", ["病理号", "切片号", "病理诊断"], rows)
    assert run(table) == {"A": {"text": "肠腺癌。", "slides": ["A1.svs", "A2.svs"]}}
    assert load_labels(tmp_path / "labels.json")[0]["A"].slides == load_labels(write_table(tmp_path, "gb18030", ["病理号", "切片号", "病理诊断"], rows[:3]))[0]["A"].slides
    summary = (tmp_path / "labels.md").read_text(encoding="utf-8")
    assert "listed below) | 2 |" in summary and "no text: 1" in summary and "placeholder: 1" in summary


def test_the_slides_of_a_case_are_joined_as_training_joins_them(tmp_path):
    write_slides(tmp_path / "h5", {"P1-1": 2, "P1-2": 2, "P2-1": 2, "P10-1": 2, "case_7/a": 2, "case_7/b": 2})
    table = write_table(tmp_path, "utf-8", ["病理号", "病理诊断"], [["P1", "胃癌"], ["P2", "肠癌"], ["P3", "肺癌"], ["case_7", "肝癌"]])
    folder = str(tmp_path / "h5")
    assert run(table, embeddings_dir=folder) == {"case_7": {"text": "肝癌", "slides": ["case_7/a", "case_7/b"]}}
    assert "2 slides begin with it" in (tmp_path / "labels.md").read_text(encoding="utf-8")
    assert run(table, embeddings_dir=folder, case_pattern=r"^(P\d+)-", overwrite=True) == {
        "P1": {"text": "胃癌", "slides": ["P1-1", "P1-2"]}, "P2": {"text": "肠癌", "slides": ["P2-1"]}}
    with refused("--case_pattern", "give --embeddings_dir"):
        run(table, case_pattern="x", overwrite=True)


def test_a_case_without_a_split_among_others_is_refused(tmp_path):
    rows = [["A", "", "train", "x癌"], ["B", "", "", "y癌"]]
    with refused("table.csv", "no split for 1 cases", "B"):
        run(write_table(tmp_path, "utf-8", ["case_id", "slide", "split", "diagnosis"], rows))
    assert not (tmp_path / "labels.json").exists()


def test_cases_that_labels_could_not_hold_are_left_out_with_their_reason(tmp_path):
    rows = [["A", "a", "train", "x癌"], ["A", "a", "val", "x癌"], ["B/1", "", "val", "y癌"], ["C", "c1", "val", "y癌"], ["C", "c2", "val", "z癌"], ["D", "", "训练", "w癌"],
            ["E.h5", "", "val", "v癌"], ["E", "", "val", "u癌"], ["", "", "val", "t癌"]]
    assert list(run(write_table(tmp_path, "utf-8", ["case_id", "slide", "split", "diagnosis"], rows))) == ["D", "E.h5"]
    summary = (tmp_path / "labels.md").read_text(encoding="utf-8")
    for case_id, reason in (("A", "is in train and in val"), ("B/1", "not a file name"), ("C", "different texts and different slides"), ("E", "another id names"), ("", "no id")):
        assert any(reason in line and (f"`{case_id}`" if case_id else "|  |") in line for line in summary.splitlines()), reason
    assert not load_labels(tmp_path / "labels.json")[1]


def test_a_table_of_slides_has_each_slide_as_a_case(tmp_path):
    rows = [["D:\\x\\s1.svs", "癌一"], ["D:\\x\\s2.svs", "癌二"], ["D:\\x\\s2.svs", "见图"]]
    labels = run(write_table(tmp_path, "utf-8", ["slide", "diagnosis"], rows))
    assert labels == {"s1": {"text": "癌一", "slides": ["D:\\x\\s1.svs"]}, "s2": {"text": "癌二", "slides": ["D:\\x\\s2.svs"]}}
    assert not load_labels(tmp_path / "labels.json")[1]


def test_what_exists_is_never_overwritten_unasked(tmp_path):
    table = write_table(tmp_path, "utf-8")
    run(table)
    with refused("labels.json", "exists", "--overwrite"):
        run(table)
    run(table, overwrite=True)
    with refused("table.csv", "is the table, the rules or another output"):
        run(table, summary=str(table), overwrite=True)
    (tmp_path / "link.json").symlink_to(table)
    with refused("link.json", "is the table, the rules or another output"):
        make_labels(Options(str(table), str(tmp_path / "link.json"), overwrite=True))
    with refused("labels.json", "another output"):
        run(table, summary=str(tmp_path / "labels.json"), overwrite=True)
    with refused("no such folder"):
        make_labels(Options(str(table), str(tmp_path / "no" / "labels.json")))
    with refused("ending '.txt'"):
        make_labels(Options(str(table), str(tmp_path / "labels.txt")))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["labels.json", "labels.md", "link.json", "table.csv"]


def test_no_case_left_is_an_error_with_a_summary(tmp_path):
    table = write_table(tmp_path, "utf-8", rows=[["A1", "", "", "", "见图", ""]])
    with refused("no case is left", "labels.md"):
        run(table)
    assert "见图" in (tmp_path / "labels.md").read_text(encoding="utf-8") and not (tmp_path / "labels.json").exists()


def test_a_text_of_another_section_alone_says_which(tmp_path):
    with refused("no column of the section diagnosis, only of microscopic", "--sections microscopic"):
        run(write_table(tmp_path, "utf-8", ["病理号", "镜下所见"], [["A", "腺体异型"]]))


def test_many_rows_in_several_processes_equal_few_in_one(tmp_path, monkeypatch):
    rng = random.Random(8)
    rows = [[f"S{i}", reports.chinese_name(rng), "李建国", "", rng.choice([reports.planted_chinese, reports.clean_chinese])(rng).text, ""] for i in range(60)]
    table = write_table(tmp_path, "utf-8", rows=rows)
    alone = run(table)
    monkeypatch.setattr("finetune.cleaning.run._PARALLEL_FROM", 10)
    monkeypatch.setattr("finetune.cleaning.run._CHUNK", 7)
    assert run(table, overwrite=True) == alone and len(alone) > 50


def test_the_command_says_what_it_wrote_and_refuses_in_one_line(tmp_path):
    table = write_table(tmp_path, "gb18030")

    def command(*args: object) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-m", "finetune.labels", *map(str, args)], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")

    done = command(table, "-o", tmp_path / "labels.json")
    assert done.returncode == 0 and "3 cases; 3 rows or cases left out" in done.stdout and "WARNING" in done.stderr
    again = command(table, "-o", tmp_path / "labels.json")
    assert again.returncode == 2 and again.stderr.count("error:") == 1 and "Traceback" not in again.stderr
    assert command("--write_rules", tmp_path / "mine.yaml").returncode == 0
    assert Rules.load(tmp_path / "mine.yaml") and (tmp_path / "mine.yaml").read_bytes() == SHIPPED.read_bytes()
    assert command("--write_rules", tmp_path / "mine.yaml").returncode == 2
    assert command().returncode == 2


# --- rules files -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("old", "new", "words"), [
    ("keep_sections: [diagnosis]", "keep_sections: [diagnose]", ["unknown section: diagnose, did you mean diagnosis?"]),
    ("keep_sections: [diagnosis]", "keep_sections: []", ["names no section"]),
    ("\ndrop:", "\ndorp:", ["unknown key in the file: dorp, did you mean drop?"]),
    ("    bracket:", "    brakcet:", ["unknown key in drop.immunohistochemistry: brakcet", "bracket"]),
    ("'[DATE]'", "''", ["identifiers.date.placeholder is empty"]),
    ("    action: mask\n    placeholder: '[DATE]'", "    action: hide\n    placeholder: '[DATE]'", ["identifiers.date.action is 'hide'", "mask, remove, keep"]),
    ("'\\b\\d{3}-\\d{2}-\\d{4}\\b'", "'\\b(\\d{3}'", ["identifiers.number", "not a regular expression"]),
    ("'\\b\\d{3}-\\d{2}-\\d{4}\\b'", "'\\d*'", ["identifiers.number", "matches every text"]),
    ("'\\b\\d{3}-\\d{2}-\\d{4}\\b'", "'{nothing}'", ["unknown word in identifiers.number.patterns: nothing"]),
    ("  month_en: '", "  month_en: '{month_en}", ["words that contain themselves"]),
    ("    inline: no", "    inline: maybe", ["inline is 'maybe', expected yes or no"]),
    ("placeholders: [nan,", "placeholders: [[nan],", ["placeholders is not a list of texts"]),
    ("'\\b\\d{3}-\\d{2}-\\d{4}\\b'", "'((\\d{999}){999}){999}'", ["identifiers.number.patterns[", "repeats too much"]),
])
def test_a_rules_file_that_cannot_be_meant_is_refused(tmp_path, old, new, words):
    content = SHIPPED.read_text(encoding="utf-8")
    path = tmp_path / "rules.yaml"
    path.write_text(content.replace(old, new, 1), encoding="utf-8")
    assert old in content
    with refused("rules.yaml", *words, "--write_rules"):
        Rules.load(path)


@pytest.mark.parametrize("column", ["受检人（全称）", "ＸＹＺ", "Case owner (full)"])
def test_a_column_of_a_patient_is_known_by_the_name_that_the_rules_give(tmp_path, column):
    content = SHIPPED.read_text(encoding="utf-8").replace("  patient: [", f"  patient: ['{column}', ", 1)
    (tmp_path / "mine.yaml").write_text(content, encoding="utf-8")
    table = write_table(tmp_path, "utf-8", ["病理号", column, "病理诊断"], [["A", "阿依努尔", "胃腺癌阿依努尔浸润。"]])
    assert "阿依努尔" not in run(table, rules=str(tmp_path / "mine.yaml"))["A"]


@pytest.mark.parametrize("case_id", ["A\n1", "A\t1", "a/b", ".."])
def test_an_id_that_the_loader_refuses_is_left_out(tmp_path, case_id):
    table = write_table(tmp_path, "jsonl", ["病理号", "病理诊断"], [[case_id, "胃腺癌。"], ["B", "直肠腺癌。"]])
    assert run(table) == {"B": "直肠腺癌。"}
    assert load_labels(tmp_path / "labels.json")[0].keys() == {"B"}
    assert "the id is not a file name" in (tmp_path / "labels.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("rule", ["drop:\n  mine: {{clause: ['{}']}}", "drop:\n  mine: {{phrase: ['{}']}}",
                                  "identifiers:\n  mine: {{patterns: ['{}'], action: remove}}"])
def test_A04_a_pattern_of_a_rules_file_that_would_hang_is_named_without_the_text(tmp_path, monkeypatch, rule):
    monkeypatch.setattr(patterns, "_MAX_SECONDS_OF_TEXT", 0.2)
    (tmp_path / "mine.yaml").write_text("keep_sections: [all]\nsections:\n  all: {columns: [病理诊断], headings: []}\n"
                                        + rule.format("^(胃|胃胃)+$") + "\n", encoding="utf-8")
    table = write_table(tmp_path, "utf-8", ["病理号", "病理诊断"], [["A", "胃" * 60 + "癌"]])
    with pytest.raises(UserError) as caught:
        run(table, rules=str(tmp_path / "mine.yaml"))
    assert "takes more than 0.2 s on a text; write it without a repeat inside a repeat" in caught.value.line()
    assert "mine.yaml: " in caught.value.line() and "胃胃胃" not in caught.value.line()


def test_rules_of_the_user_replace_the_shipped_ones(tmp_path):
    (tmp_path / "mine.yaml").write_text("keep_sections: [all]\nsections:\n  all: {columns: [病理诊断], headings: []}\n"
                                        "drop:\n  mine: {clause: ['^{odd}']}\nwords: {odd: 'Lauren|慢性'}\nplaceholders: [见图]\n", encoding="utf-8")
    labels = run(write_table(tmp_path, "utf-8"), rules=str(tmp_path / "mine.yaml"))
    assert labels["S23-0001"] == "（胃窦）中分化腺癌。建议结合临床。张伟同意手术" and labels["S23-0005"] == "建议复查。"


@pytest.mark.slow
def test_a_hundred_thousand_rows_take_less_than_two_gigabytes(tmp_path):
    """The time is printed, not tested: LOG.md has it."""
    import resource
    import time

    rng = random.Random(9)
    doctors = [reports.chinese_name(rng) for _ in range(200)]
    make = [reports.planted_chinese, reports.planted_english, reports.clean_chinese, reports.clean_english]
    rows = [[f"S{i:06d}", reports.chinese_name(rng), doctors[i % 200], "腺体异型。" * 20, " ".join(rng.choice(make)(rng).text for _ in range(2)), "CK7（+）"] for i in range(100_000)]
    table = write_table(tmp_path, "gb18030", rows=rows)
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "finetune.labels", str(table), "-o", str(tmp_path / "labels.json")], cwd=ROOT, capture_output=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{time.monotonic() - began:.0f} s, {used.ru_utime + used.ru_stime:.0f} s of CPU, {used.ru_maxrss / 1e6:.2f} GB")
    assert done.returncode == 0 and used.ru_maxrss < 2e6
