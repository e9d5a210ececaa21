"""Temporary files and folders: what others own stays, what killed processes have left goes, what is alive stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finetune.common import files
from finetune.common.files import (
    remove_leftovers,
    replacing,
    temporary_file,
    temporary_folder,
    temporary_name,
    write_atomically,
)
from finetune.common.run_lock import RunLock
from tests.helpers.files import ROOT, refused

WRITER = """
import sys, time
from pathlib import Path
from finetune.common.files import temporary_file, temporary_folder
with {kind}(Path(sys.argv[1])) as made:
    print("writing", flush=True)
    time.sleep(60)
"""
NOT_OURS = ("x.tmp", ".x.tmp", "last_model.pth.tmp", ".x.12.tmp", ".x.12.abcdefgh.tmp", ".x.12.0123456.tmp",
            "x.12.01234567.tmp", ".x.12.01234567.tmp.txt", ".12.01234567.tmp")


def start_writer(target: Path, kind: str) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", WRITER.format(kind=kind), str(target)], cwd=ROOT,
                               stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    return process


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kind", ["temporary_file", "temporary_folder"])
@pytest.mark.skipif(os.name != "posix", reason="needs locks")
def test_what_a_living_process_writes_stays_and_what_a_killed_one_has_left_goes(tmp_path, kind):
    process = start_writer(tmp_path / "model", kind)
    try:
        (being_written,) = names(tmp_path)
        remove_leftovers(tmp_path)
        assert names(tmp_path) == [being_written]
        process.send_signal(signal.SIGKILL)
        process.wait(20)
        assert names(tmp_path) == [being_written], "a killed process cannot clean up"
        remove_leftovers(tmp_path, "another")
        assert names(tmp_path) == [being_written]
        remove_leftovers(tmp_path, "model")
        assert names(tmp_path) == []
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("write", [lambda path: write_atomically(path, "new"), lambda path: _in_a_folder(path)])
@pytest.mark.skipif(os.name != "posix", reason="needs locks")
def test_writing_again_removes_what_a_killed_writer_of_the_same_target_has_left(tmp_path, write):
    process = start_writer(tmp_path / "model", "temporary_file")
    process.kill()
    process.communicate()
    write(tmp_path / "model")
    assert names(tmp_path) == ["model"]


def _in_a_folder(path: Path) -> None:
    with temporary_folder(path) as folder:
        os.replace(folder, path)


def test_A01_files_and_folders_of_others_are_left_alone(tmp_path):
    for name in NOT_OURS:
        (tmp_path / name).write_text("mine", encoding="utf-8")
        (tmp_path / f"{name}.d.tmp").mkdir()
        (tmp_path / f"{name}.d.tmp" / "mine").write_text("mine", encoding="utf-8")
    (tmp_path / "target").write_text("mine", encoding="utf-8")
    link = temporary_name(tmp_path / "link")
    link.symlink_to(tmp_path / "target")
    before = sorted(tmp_path.rglob("*"))
    remove_leftovers(tmp_path)
    write_atomically(tmp_path / "x", "new")
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "x"])
    assert (tmp_path / "target").read_text(encoding="utf-8") == "mine"


def test_a_folder_that_is_not_there_has_no_leftovers(tmp_path):
    remove_leftovers(tmp_path / "none")
    (tmp_path / "file").touch()
    remove_leftovers(tmp_path / "file")
    assert os.listdir(tmp_path) == ["file"]


def test_without_locks_only_what_nobody_has_written_for_a_day_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_lock", lambda handle: None)
    old, new = temporary_name(tmp_path / "old"), temporary_name(tmp_path / "new")
    for path in (old, new):
        path.touch()
    os.utime(old, (time.time() - 25 * 3600,) * 2)
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [new.name]


def test_two_writers_of_one_file_have_names_of_their_own_and_the_later_one_stays(tmp_path):
    with replacing(tmp_path / "x") as first, replacing(tmp_path / "x") as second:
        assert first.name != second.name and len(names(tmp_path)) == 2
        first.write(b"first")
        second.write(b"second")
    assert names(tmp_path) == ["x"] and (tmp_path / "x").read_bytes() == b"first", "the outer block ends last"


@pytest.mark.skipif(os.name != "posix", reason="needs locks")
def test_a_name_that_is_taken_for_a_leftover_before_it_is_locked_is_replaced_by_another(tmp_path, monkeypatch):
    lock, taken = files._lock, []

    def too_late(handle):
        if not taken:
            taken.extend(names(tmp_path))
            (tmp_path / taken[0]).unlink()
        return lock(handle)

    monkeypatch.setattr(files, "_lock", too_late)
    with temporary_file(tmp_path / "x") as file:
        assert names(tmp_path) == [Path(file.name).name] != taken


def test_a_block_that_raises_leaves_the_file_as_it_was(tmp_path):
    write_atomically(tmp_path / "x", "old")
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "x") as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert names(tmp_path) == ["x"] and (tmp_path / "x").read_text(encoding="utf-8") == "old"


def test_a_file_of_others_with_the_name_of_a_lock_is_not_overwritten(tmp_path):
    (tmp_path / ".lock").write_text("notes of my own", encoding="utf-8")
    with refused(".lock", "is not a lock of this program"), RunLock(tmp_path):
        pass
    assert (tmp_path / ".lock").read_text(encoding="utf-8") == "notes of my own"
    for left in ("", "123"):  # by a killed run
        (tmp_path / ".lock").write_text(left, encoding="utf-8")
        with RunLock(tmp_path):
            assert (tmp_path / ".lock").read_text(encoding="utf-8") == str(os.getpid())
    assert names(tmp_path) == []
