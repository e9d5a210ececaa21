"""Counts of equal texts are kept for equal texts only, and a file that is wrong in any way is not believed."""

from __future__ import annotations

import json

import pytest

from finetune.data import text_overlap
from finetune.data.near_duplicates import count_overlap
from finetune.data.text_overlap import kept_overlap

TRAINING = [f"胃腺癌，中分化，大小{i}mm，浸润至浆膜下层，脉管内见癌栓。" for i in range(30)]
TEXTS = [TRAINING[3], TRAINING[5].replace("中", "低"), "乳腺浸润性导管癌"]


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    made: list[int] = []

    def counted(*texts):
        made.append(1)
        return count_overlap(*texts)

    monkeypatch.setattr(text_overlap, "count_overlap", counted)
    return made


def test_equal_texts_are_counted_once_and_others_anew(tmp_path, calls):
    path = tmp_path / "new" / "counts.json"
    expected = count_overlap(TEXTS, TRAINING)
    assert expected[0] == 1
    assert [kept_overlap(TEXTS, TRAINING, path) for _ in range(3)] == [expected] * 3 and len(calls) == 1
    assert kept_overlap(TEXTS[:1], TRAINING, path) == (1, 0) and len(calls) == 2
    assert kept_overlap(TEXTS, TRAINING[4:], path) == count_overlap(TEXTS, TRAINING[4:]) and len(calls) == 3
    assert kept_overlap(["ab", "c"], ["d"], path) == kept_overlap(["a", "bc"], ["d"], path) and len(calls) == 5
    assert kept_overlap(TEXTS, TRAINING, None) == expected and len(calls) == 6


@pytest.mark.parametrize("content", ["", "[]", "{", '{"KEY": [1]}', '{"KEY": [1, -2]}', '{"KEY": [1, true]}',
                                     '{"KEY": [1e400, 2]}', '{"KEY": {"0": 1, "1": 2}}', "[" * 100_000, "\x00"])
def test_a_damaged_file_is_made_again(content, tmp_path, calls):
    path = tmp_path / "counts.json"
    expected = kept_overlap(TEXTS, TRAINING, path)
    key = next(iter(json.loads(path.read_text(encoding="utf-8"))))
    path.write_text(content.replace("KEY", key), encoding="utf-8")
    assert kept_overlap(TEXTS, TRAINING, path) == expected and len(calls) == 2
    assert kept_overlap(TEXTS, TRAINING, path) == expected and len(calls) == 2


def test_a_file_that_cannot_be_written_only_costs_time(tmp_path, log_lines):
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert kept_overlap(TEXTS, TRAINING, tmp_path / "file" / "counts.json") == count_overlap(TEXTS, TRAINING)
    assert any("compares the texts again" in line for line in log_lines)
