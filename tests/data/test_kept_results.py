"""Results are kept for equal texts only, and a file that is wrong in any way is not believed."""

from __future__ import annotations

import json
import zlib

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
    assert len(json.loads((tmp_path / "kept.json").read_text(encoding="utf-8").splitlines()[1])) == 100


EARLIER_VERSION = '{"a": [7, 7]}'  # it had no checksum


@pytest.mark.parametrize("content", ["", "[]", "{", EARLIER_VERSION, '{"made_for": "texts 1"}', '{"made_for": "texts 1"}\n{"a": [7, 7]}',
                                     "[" * 100_000, "\x00"])
def test_a_damaged_file_is_made_again(content, tmp_path, log_lines):
    find, path = Counted(), tmp_path / "kept.json"
    path.write_text(content, encoding="utf-8")
    assert KeptResults(path).get("a", find, is_pair) == KeptResults(path).get("a", find, is_pair) == [1, 2]
    assert find.calls == 1 and sum("kept.json cannot be read (it is damaged" in line for line in log_lines) == 1


@pytest.mark.parametrize("content", ["[]", '{"a": [1]}', '{"a": null}'])
def test_a_whole_file_of_something_else_is_not_believed(content, tmp_path):
    find, path = Counted(), tmp_path / "kept.json"
    path.write_text(f'{{"made_for": "texts 1", "crc32": {zlib.crc32(content.encode())}}}\n{content}', encoding="utf-8")
    assert KeptResults(path).get("a", find, is_pair) == [1, 2] and find.calls == 1


def test_A07_no_byte_of_the_file_can_change_unnoticed(tmp_path):
    path = tmp_path / "kept.json"
    KeptResults(path).get("a", Counted(), is_pair)
    raw = path.read_bytes()
    for at in range(len(raw)):
        for bit in range(8):
            path.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1:])
            assert KeptResults(path).get("a", Counted(), is_pair) == [1, 2]


def test_a_file_that_cannot_be_written_only_costs_time(tmp_path, log_lines):
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert KeptResults(tmp_path / "file" / "kept.json").get("a", Counted(), is_pair) == [1, 2]
    assert any("compares the texts again" in line for line in log_lines)
