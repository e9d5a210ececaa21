"""The header cache: used for unchanged files only."""

from __future__ import annotations

import json
import os
import zlib

import pytest

from finetune.data import slides as tiles
from finetune.data.header_cache import read_headers, write_headers
from finetune.data.slides import find_files, index_slides
from tests.helpers.files import paths_of, random_tiles, write_h5, write_slides

D = 6


@pytest.fixture
def indexed(tmp_path):
    write_slides(tmp_path / "h5", {f"s{i}": i + 1 for i in range(5)})
    slides, _ = index_slides(paths_of(find_files(tmp_path / "h5")), None, D)
    write_headers(tmp_path / "cache" / "index.json", None, D, "virchow", slides)
    return tmp_path / "cache" / "index.json", slides


def test_unchanged_files_are_not_opened_again(indexed, tmp_path, monkeypatch):
    cache, slides = indexed
    opened = []
    monkeypatch.setattr(tiles, "_try_inspect", lambda path, **_: opened.append(path))
    again, bad = index_slides(paths_of(find_files(tmp_path / "h5")), None, D, None,
                              read_headers(cache, None, D, "virchow"))
    assert again == slides and bad == {} and opened == []


def test_changed_missing_and_new_files_are_looked_at(indexed, tmp_path):
    cache, slides = indexed
    write_h5(tmp_path / "h5" / "s1.h5", random_tiles(2, D, seed=9))  # of the same size
    (tmp_path / "h5" / "s2.h5").unlink()
    write_h5(tmp_path / "h5" / "s9.h5", random_tiles(8, D))
    known = read_headers(cache, None, D, "virchow")
    assert sorted(s.slide_id for s in known.values()) == ["s0", "s3", "s4"]
    gone = str(tmp_path / "h5" / "s2.h5")
    again, bad = index_slides([*paths_of(find_files(tmp_path / "h5"), ["s0", "s1", "s9"]), gone], None, D, None, known)
    assert [s.slide_id for s in again] == ["s0", "s1", "s9"] and list(bad) == [gone]
    assert again[1].mtime_ns != slides[1].mtime_ns


@pytest.mark.parametrize("wanted", [("embeddings", D, "virchow"), (None, 7, "virchow"), (None, D, None)])
def test_an_index_made_for_other_questions_is_not_used(indexed, wanted):
    assert read_headers(indexed[0], *wanted) == {}


def written(rows: str) -> str:
    return f'{{"made_for": [2, null, 6, "virchow"], "crc32": {zlib.crc32(rows.encode())}}}\n{rows}'


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"made_for": [2, null, 6, "virchow"]}', written("[[1]]"), written("5"),
                                  written("[" * 100_000), written(json.dumps([[3] * 10 + [0]])), "[" * 100_000, "\ud800"])
def test_A07_a_damaged_index_is_reported_and_ignored(indexed, text, log_lines):
    indexed[0].write_bytes(text.encode("utf-8", "surrogatepass"))
    assert read_headers(indexed[0], None, D, "virchow") == {} and any("cannot be read" in line for line in log_lines)


def test_A07_no_byte_of_an_index_can_change_unnoticed(indexed):
    path, slides = indexed
    raw = path.read_bytes()
    for at in range(len(raw)):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1:])
        assert read_headers(path, None, D, "virchow") in ({}, {slide.location: slide for slide in slides})


def test_A07_other_tiles_with_the_time_of_the_former_ones_are_read_again(indexed, tmp_path):
    path, slides = indexed
    write_h5(tmp_path / "h5" / "s1.h5", random_tiles(2, D, seed=9))
    os.utime(tmp_path / "h5" / "s1.h5", ns=(slides[1].mtime_ns, slides[1].mtime_ns))
    assert len(read_headers(path, None, D, "virchow")) == 4


def test_an_unwritable_folder_is_reported(tmp_path, log_lines):
    (tmp_path / "file").touch()
    write_headers(tmp_path / "file" / "index.json", None, D, None, [])
    assert any("cannot be written" in line for line in log_lines)
