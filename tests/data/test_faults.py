"""Rows H, J and N of the fault catalogue that need folder, labels and split together."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import multiprocessing
import os
import signal
import unicodedata
from pathlib import Path

import h5py
import numpy as np
import pytest

from finetune.common.errors import BadSlide, UserError
from finetune.common.visible import visible
from finetune.config.schema import DataConfig
from finetune.data.prepare import prepare_data, scan_contents
from finetune.data.slides import inspect_slide
from finetune.data.tile_reader import read_tiles
from tests.helpers.files import random_tiles, refused, write_h5, write_json, write_slides

IDS = [f"s{i}" for i in range(10)]


@pytest.fixture
def config(tmp_path) -> DataConfig:
    """10 slides of 3 tiles, each with its own text."""
    write_slides(tmp_path / "h5", dict.fromkeys(IDS, 3))
    relabel(tmp_path)
    return DataConfig(embeddings_dir=str(tmp_path / "h5"), labels_file=str(tmp_path / "labels.json"), image_dim=6,
                      val_split=0.2)


def relabel(folder: Path, **changes: str | None) -> None:
    texts = {i: f"胃腺癌，{n}级。" for n, i in enumerate(IDS)} | changes
    write_json(folder / "labels.json", {k: v for k, v in texts.items() if v is not None})


def poison(path: Path, value: float, rows: int = 1) -> None:
    data = random_tiles(3, 6)
    data[:rows] = value
    write_h5(path, data)


def ids(data) -> set[str]:
    return {s.slide.slide_id for s in data.train + data.validation}


# --- contents --------------------------------------------------------------------------------------------------------

def test_H09_with_skip_a_slide_with_nan_is_left_out_before_the_split(config, tmp_path, log_lines):
    poison(tmp_path / "h5" / "s4.h5", np.nan)
    config.on_bad = "skip"
    data = prepare_data(config, 42)
    assert ids(data) == set(IDS) - {"s4"} and "1 of 10 slides cannot be used and are skipped" in log_lines
    assert any("s4.h5: NaN or infinity in 1 of 3 tiles" in line for line in log_lines)
    relabel(tmp_path, s4=None)
    assert prepare_data(config, 42).fingerprint == data.fingerprint, "as if it had never been there"
    poison(tmp_path / "h5" / "s5.h5", np.inf)
    relabel(tmp_path)
    with refused(config.embeddings_dir, "2 of 10 slides cannot be used", "max_bad_fraction"):
        prepare_data(config, 42)


@pytest.mark.parametrize(("value", "rows", "words"), [
    pytest.param(0.0, 3, "2 slides have the same numbers in all tiles", id="H09 zeros"),
    pytest.param(1.5, 3, "2 slides have the same numbers in all tiles", id="H09 constant"),
    pytest.param(7e4, 1, "2 slides have values beyond 65504", id="H11 overflow"),
])
def test_odd_contents_are_counted_by_the_scan(config, tmp_path, log_lines, value, rows, words):
    for name in ("s1", "s2"):
        poison(tmp_path / "h5" / f"{name}.h5", value, rows)
    scan_contents(prepare_data(config, 42))
    assert [line for line in log_lines if words in line]


@pytest.fixture
def sums(config, tmp_path) -> DataConfig:
    """With a sha256sum file over all slides."""
    lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  h5/{p.name}" for p in (tmp_path / "h5").iterdir()]
    (tmp_path / "SHA256SUMS").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config.sha256_file = str(tmp_path / "SHA256SUMS")
    return config


def test_H15_a_flipped_bit_in_a_plain_file_is_found_by_its_sum_and_by_nothing_else(sums, tmp_path):
    assert ids(prepare_data(sums, 42)) == set(IDS)
    path = tmp_path / "h5" / "s3.h5"
    raw = bytearray(path.read_bytes())
    raw[raw.index(random_tiles(3, 6, 3).tobytes()) + 5] ^= 1
    path.write_bytes(raw)
    with refused("s3.h5", "another SHA-256", "copy it again"):
        prepare_data(sums, 42)
    sums.sha256_file = None
    scan_contents(prepare_data(sums, 42))


def test_H15_sums_that_are_none_or_not_there_are_refused(sums, tmp_path):
    with open(sums.sha256_file, encoding="utf-8") as file:
        lines = [line for line in file if "s7.h5" not in line]
    (tmp_path / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")
    with refused("s7.h5", "not in data.sha256_file"):
        prepare_data(sums, 42)
    (tmp_path / "SHA256SUMS").write_text(lines[0] + "0123  x.h5\n", encoding="utf-8")
    with refused("SHA256SUMS:2", "not a line of sha256sum"):
        prepare_data(sums, 42)
    (tmp_path / "SHA256SUMS").unlink()
    with refused("SHA256SUMS", "cannot be read"):
        prepare_data(sums, 42)


@pytest.mark.parametrize(("number", "text", "fix"), [
    pytest.param(errno.EAGAIN, "unable to lock file", "HDF5_USE_FILE_LOCKING=FALSE", id="H18 busy"),
    pytest.param(errno.ENOLCK, "unable to lock file", "HDF5_USE_FILE_LOCKING=FALSE", id="H18 no locks on NFS"),
    pytest.param(errno.EROFS, "unable to lock file", "HDF5_USE_FILE_LOCKING=FALSE", id="H18 read-only"),
])
def test_a_lock_that_fails_names_the_way_around_it(tmp_path, monkeypatch, number, text, fix):
    path = write_h5(tmp_path / "s.h5", random_tiles(3, 6))

    def fail(*args, **kwargs):
        raise OSError(number, f"Unable to synchronously open file ({text}, errno = {number})")

    monkeypatch.setattr(h5py, "File", fail)
    with pytest.raises(BadSlide) as caught:
        inspect_slide(path, None, 6)
    assert caught.value.what.startswith("locked") and fix in caught.value.fix


def _write_for_ever(path: str, ready) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=random_tiles(3000, 6), maxshape=(None, 6))
        ready.set()
        signal.pause()


@pytest.mark.skipif(os.name != "posix", reason="no SIGKILL")
def test_H18_a_file_whose_writer_was_killed_opens_whole_or_is_refused(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    writer = context.Process(target=_write_for_ever, args=(str(tmp_path / "s.h5"), ready))
    writer.start()
    assert ready.wait(60)
    writer.kill()
    writer.join()
    try:
        slide = inspect_slide(tmp_path / "s.h5", None, 6)
    except BadSlide as problem:
        assert problem.fix
    else:
        assert np.array_equal(read_tiles(slide), random_tiles(3000, 6))


def test_links_out_of_the_folder_are_reported_once(config, tmp_path, log_lines):
    (tmp_path / "h5" / "s1.h5").rename(tmp_path / "s1.h5")
    (tmp_path / "h5" / "s1.h5").symlink_to(tmp_path / "s1.h5")
    assert ids(prepare_data(config, 42)) == set(IDS)
    assert [line for line in log_lines if line.startswith("1 H5 files are links out of data.embeddings_dir: s1")]


# --- labels ----------------------------------------------------------------------------------------------------------

def test_J08_control_characters_in_a_text_are_data_and_never_reach_a_log(config, tmp_path, log_lines):
    odd = "\x00\x1b[31m癌\u202e级"
    relabel(tmp_path, s0=odd)
    data = prepare_data(config, 42)
    sample = next(s for s in data.train + data.validation if s.slide.slide_id == "s0")
    assert data.tokenizer.decode(sample.token_ids) == odd
    assert all(visible(line) == line for line in log_lines)


@pytest.mark.parametrize(("label", "file"), [("S1", "s1"), (" s1", "s1"), ("s 1", "s1"), ("ｓ1", "s1"),
                                             (unicodedata.normalize("NFD", "é1"), "é1")],
                         ids=["J09 case", "J09 blank", "J09 blank inside", "J09 wide", "J09 NFD"])
def test_a_near_miss_names_the_file_that_was_meant(config, tmp_path, label, file):
    (tmp_path / "h5" / "s1.h5").rename(tmp_path / "h5" / f"{file}.h5")
    relabel(tmp_path, s1=None, **{label: "胃腺癌。"})
    with refused("no H5 file of this name", f"did you mean {file!r}?"):
        prepare_data(config, 42)


@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["J12 symlink", "J12 hard link"])
def test_two_ids_of_one_file_warn_and_are_refused_across_the_split(config, tmp_path, link, log_lines):
    val = {s.slide.slide_id for s in prepare_data(config, 42).validation}
    first, second = sorted(set(IDS) - val)[:2]
    relink(tmp_path / "h5", first, second, link)
    prepare_data(config, 42)
    assert [line for line in log_lines if "1 H5 files have several ids" in line and second in line]
    relink(tmp_path / "h5", min(val), first, link)
    with refused("is one file with the ids", "in training and in validation", "keep one"):
        prepare_data(config, 42)


def relink(folder: Path, source: str, name: str, link) -> None:
    (folder / f"{name}.h5").unlink()
    link(folder / f"{source}.h5", folder / f"{name}.h5")


def test_N05_equal_texts_are_counted(config, tmp_path, log_lines):
    prepare_data(config, 42)
    assert not [line for line in log_lines if "repeat another one" in line]
    relabel(tmp_path, **dict.fromkeys(IDS, "胃腺癌。"))
    prepare_data(config, 42)
    assert "7 of 8 training texts repeat another one: equal texts are not negatives of each other" in log_lines


# --- logs and records of hostile names (section 4.9) -----------------------------------------------------------------

HOSTILE = ["a\nerror: b", "\x1b[2Jc", "d\u202ee", '"><img onerror=x>', "=cmd|'/C calc'!A0", "f\u2028g", "-1+1", "\U000e0001h"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_id_stays_one_printable_line_in_errors(config, tmp_path, name):
    relabel(tmp_path, **{name: ""})
    if "/" in name:
        name = "not a file name"
    with pytest.raises(UserError) as caught:
        prepare_data(config, 42)
    assert all(visible(d) == d or "\n" not in visible(d) for d in caught.value.details)
    assert caught.value.line().isprintable()


def test_J08_records_of_hostile_ids_and_captions_are_read_as_they_were_and_seen_without_harm(tmp_path):
    from finetune.inference.record_file import RecordFile, Source

    records = [{"id": h, "caption": h, "similarity": {h: 0.5}, "probability": {}, "error": None, "confidence": None,
                "finished": None} for h in HOSTILE]
    for ending in ("jsonl", "json", "csv"):
        with RecordFile(tmp_path / f"out.{ending}") as file:
            file.begin(Source("m", "o"), dict.fromkeys(HOSTILE, "s"), resume=False)
            for record in records:
                file.append(record)
            file.finish(HOSTILE)
    text = (tmp_path / "out.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line) for line in text.splitlines()] == records and text.replace("\n", "").isprintable()
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8")) == records
    with open(tmp_path / "out.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))[1:]
    assert [row[0].removeprefix("'") for row in rows] == [visible(h) for h in HOSTILE]
    assert not [c for row in rows for c in row if c[:1] in ("=", "+", "-", "@", "\t")]
