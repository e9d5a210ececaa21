"""Fields of texts and findings: what the report counts as right and wrong, against counting by hand."""

from __future__ import annotations

import random

import pytest

from finetune.evaluation.findings import SHIPPED, FindingDictionary
from finetune.pages.caption_table import caption_table
from finetune.pages.finding_names import finding_label
from finetune.pages.topics import Fields, confusion, finding_row, statuses_of


def test_fields_behind_keys_are_found_in_any_order_and_both_widths_of_colon():
    references = ["部位：胃；分化：低", "部位: 肺；分化: 高", "分化：中；部位：胃"]
    fields = Fields.of(references)
    assert fields.keys == ["部位", "分化"]
    assert [fields.values(text) for text in [*references, "分化：低", "无"]] == [["胃", "低"], ["肺", "高"], ["胃", "中"], ["–", "低"], ["–", "–"]]


def test_fields_of_a_template_are_its_clauses_and_free_texts_have_none():
    references = ["胃腺癌，低分化，未见坏死。", "肺癌，高分化，可见坏死。"]
    fields = Fields.of(references)
    assert fields.values("胃腺癌，高分化") == ["胃腺癌", "高分化", "–"] and fields.names[1] == ("第 2 项：低分化 / 高分化", "part 2: 低分化 / 高分化")
    assert Fields.of(["胃腺癌，低分化", "肺癌", "结肠癌，高分化，坏死"]).names == Fields.of([]).names == []


def test_a_number_with_a_point_or_comma_is_one_value():
    fields = Fields.of(["Size 2.5 cm, grade 1.", "Size 1,200 um, grade 3."])
    assert len(fields.names) == 2 and fields.values("Size 1.5 cm, grade 2.") == ["Size 1.5 cm", "grade 2"]


def test_a_confusion_table_counts_each_pair_once_and_rare_values_together():
    rng = random.Random(0)
    true = [rng.choice("aaaaabbbbbccccd") for _ in range(300)] + list("efghijkl")
    said = [rng.choice("abcdx") for _ in true]
    found = confusion(("", ""), said, true)
    assert set(found.values[:4]) == set("abcd") and found.values[-1] == "…" and len(found.values) == 9
    for i, row in enumerate(found.values[:-1]):
        for j, column in enumerate(found.values[:-1]):
            assert found.counts[i][j] == sum((t, s) == (row, column) for t, s in zip(true, said, strict=True))
    assert sum(map(sum, found.counts)) == len(true)


@pytest.mark.parametrize("true", [["a"] * 5, [str(i) for i in range(40)]])
def test_a_field_of_one_value_or_of_measurements_has_no_confusion_table(true):
    assert confusion(("", ""), true, true) is None


def test_a_finding_is_missed_made_up_or_contradicted():
    pairs = [("present", "present"), (None, "present"), ("absent", "present"), ("present", "absent"), ("present", None), ("absent", "absent"),
             (None, None), ("uncertain", "absent")]
    row = finding_row("necrosis", [{"necrosis": pair} for pair in pairs])
    assert (row.both, row.missed, row.added, row.contradicted, row.absent) == (1, 2, 2, 2, 1) and row.name == ("坏死", "necrosis")


def test_damaged_findings_of_a_line_are_left_out():
    assert statuses_of({"a": ["present", None], "b": "x", "c": [1, 2], "d": []}) == {"a": ("present", None)} and statuses_of(3) == {}


def test_the_table_of_captions_knows_where_each_is_wrong():
    dictionary = FindingDictionary.load(["gastric"])
    reference, caption = "胃腺癌，低分化，未见坏死", "胃腺癌，高分化，可见坏死"
    said, true = dictionary.read(caption), dictionary.read(reference)
    findings = {name: [said.get(name), true.get(name)] for name in {**said, **true}}
    records = [{"epoch": 1, "id": "a", "caption": caption, "references": [reference], "findings": findings},
               {"epoch": 1, "id": "b", "caption": reference, "references": [reference]}] * 2
    found = caption_table(records)
    rows = {row.name[0]: row for row in found.findings}
    assert rows["高分化"].added == 2 and rows["低分化"].missed == 2 and rows["腺癌"].both == 2
    assert found.num_right == 2


def test_every_shipped_finding_has_a_chinese_name():
    names = FindingDictionary.load(sorted(path.stem for path in SHIPPED.glob("*.yaml"))).findings
    assert not [name for name in names if finding_label(name)[0].isascii()]
    assert finding_label("lymph_node_metastasis") == ("淋巴结转移", "lymph node metastasis") and finding_label("my_own") == ("my_own", "my own")
