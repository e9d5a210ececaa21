"""Results are kept for equal texts only, and a file that is wrong in any way is not believed."""

from __future__ import annotations

import json

import pytest

from finetune.data.kept_results import KeptResults, key_of


def is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2


class Counted:
    """Finds a result and counts how often."""

    calls = 0

    def __call__(self) -> list[int]:
        self.calls += 1
        return [1, 2]


def test_it_is_found_once_per_key(tmp_path):
    find, kept = Counted(), KeptResults(tmp_path / "kept.json")
    assert [kept.get(key, find, is_pair) for key in "abab"] == [[1, 2]] * 4 and find.calls == 2
    assert KeptResults(tmp_path / "kept.json").get("a", find, is_pair) == [1, 2] and find.calls == 2
    assert KeptResults(tmp_path / "new" / "kept.json").get("a", Counted(), is_pair) and not (tmp_path / "new").exists()
    nothing = KeptResults.beside(None)
    assert [nothing.get("a", find, is_pair) for _ in range(2)] == [[1, 2]] * 2 and find.calls == 4


def test_a_key_tells_texts_lists_and_results_apart():
    several = [key_of("a", ["x", "y"]), key_of("a", ["xy"]), key_of("a", ["x"], ["y"]), key_of("a", ["y", "x"]),
               key_of("b", ["x", "y"]), key_of("a", ["x", "y"], []), key_of("a", ["\ud800", "y"])]
    assert len(set(several)) == len(several) and key_of("a", ["x", "y"]) == several[0]


def test_the_file_does_not_grow_for_ever(tmp_path):
    kept = KeptResults(tmp_path / "kept.json")
    for number in range(130):
        kept.get(str(number), Counted(), is_pair)
    assert len(json.loads((tmp_path / "kept.json").read_text(encoding="utf-8"))) == 100


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": [1]}', '{"a": null}', "[" * 100_000, "\x00"])
def test_a_damaged_file_is_made_again(content, tmp_path):
    find, path = Counted(), tmp_path / "kept.json"
    path.write_text(content, encoding="utf-8")
    assert KeptResults(path).get("a", find, is_pair) == KeptResults(path).get("a", find, is_pair) == [1, 2]
    assert find.calls == 1


def test_a_file_that_cannot_be_written_only_costs_time(tmp_path, log_lines):
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert KeptResults(tmp_path / "file" / "kept.json").get("a", Counted(), is_pair) == [1, 2]
    assert any("compares the texts again" in line for line in log_lines)
