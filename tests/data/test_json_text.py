"""Files of very many tiny values are refused before they are parsed; reports with commas are not."""

from __future__ import annotations

import json
import tracemalloc

import pytest

from finetune.common import memory
from finetune.data import json_text
from finetune.data.labels import load_labels
from finetune.data.tables import read_table
from tests.helpers.files import refused

BOMBS = {"records": "[" + "{}," * 30_000 + "{}]", "lists": '{"a": [' + "[]," * 30_000 + "[]]}",
         "labels": "{" + ",".join(f'"{i}":"x"' for i in range(15_000)) + "}"}


@pytest.fixture
def small_limit(monkeypatch):
    monkeypatch.setattr(json_text, "_SMALL", 1 << 20)


@pytest.mark.parametrize("name", BOMBS)
def test_tiny_values_are_refused_without_making_them(name, small_limit, tmp_path):
    path = tmp_path / "labels.json"
    path.write_text(BOMBS[name], encoding="utf-8")
    tracemalloc.start()
    with refused("labels.json", "million values", "not a labels file"):
        load_labels(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * len(BOMBS[name]) + 200_000


def test_the_lines_of_a_file_count_together(small_limit, tmp_path):
    path = tmp_path / "labels.jsonl"
    path.write_text('{"id":1}\n' * 30_000, encoding="utf-8")
    with refused("labels.jsonl", "not a labels file"):
        read_table(path)


def test_reports_with_many_commas_are_read(small_limit, tmp_path):
    labels = {f"S{i}": "carcinoma, well differentiated, necrosis: present, " * 10 for i in range(2000)}
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(labels), encoding="utf-8")
    assert len(load_labels(path)[0]) == 2000


def test_values_that_the_memory_cannot_hold_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 10_000)
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({f"S{i}": "report" for i in range(100)}), encoding="utf-8")
    with refused("labels.json", "its values need 0.0 GB of memory"):
        load_labels(path)
