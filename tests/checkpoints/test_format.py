"""Checkpoint files: what is written is read back, a failed save harms nothing, a bad file never runs code."""

from __future__ import annotations

import collections
import errno
import os
import pickle
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.checkpoints import format as checkpoint
from finetune.checkpoints.format import epoch_name, read_pth, write_pth
from finetune.common.errors import UserError
from finetune.training.random_states import random_states, set_random_states
from finetune.training.resume import find_path
from tests.helpers.files import refused

LAST = "last_model.pth"


def content(seed: int = 0, size: int = 1000) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {"format_version": 1, "model": {"w": torch.randn(size, generator=generator), "n": torch.tensor(3)},
            "progress": {"epoch": 2, "best": 0.5, "none": None, "done": True}, "text": "胃癌", "betas": (0.9, 0.98),
            "list": [1, 2.5, "x"], 7: "key of optimizer states"}


def equal(left: object, right: object) -> bool:
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return isinstance(right, dict) and list(left) == list(right) and all(equal(left[k], right[k]) for k in left)
    return type(left) is type(right) and left == right


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.fixture
def saved(tmp_path) -> Path:
    write_pth(tmp_path, [LAST], content())
    return tmp_path / LAST


# --- saving ----------------------------------------------------------------------------------------------------------

def test_what_was_saved_comes_back(saved):
    assert equal(read_pth(saved), content())
    assert equal(torch.load(saved, weights_only=True), content()), "torch alone reads it too"


def test_all_names_of_a_save_hold_the_same_state_and_nothing_else_is_left(tmp_path):
    write_pth(tmp_path, ["best_model.pth", epoch_name(5), LAST], content())
    assert names(tmp_path) == ["best_model.pth", "checkpoint_epoch_5.pth", LAST]
    assert all(equal(read_pth(p), content()) for p in tmp_path.iterdir())


def test_a_later_save_under_fewer_names_leaves_the_other_files_as_they_are(tmp_path):
    write_pth(tmp_path, ["best_model.pth", LAST], content(0))
    write_pth(tmp_path, [LAST], content(1))
    assert equal(read_pth(tmp_path / "best_model.pth"), content(0))
    assert equal(read_pth(tmp_path / LAST), content(1))


def test_the_last_name_is_the_commit_record_and_is_replaced_last(tmp_path, monkeypatch):
    replaced = []

    def note(source, target):
        assert Path(source).suffix == ".tmp" and equal(read_pth(source), content(1))
        replaced.append(Path(target).name)
        os.rename(source, target)

    write_pth(tmp_path, [LAST], content(0))
    monkeypatch.setattr(checkpoint.os, "replace", note)
    write_pth(tmp_path, ["best_model.pth", epoch_name(9), LAST], content(1))
    assert replaced == ["best_model.pth", "checkpoint_epoch_9.pth", LAST]


def test_a_file_system_without_hard_links_gets_copies(tmp_path, monkeypatch):
    def no_links(source, target):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(checkpoint.os, "link", no_links)
    write_pth(tmp_path, ["best_model.pth", LAST], content())
    assert names(tmp_path) == ["best_model.pth", LAST]
    assert all(equal(read_pth(p), content()) and p.stat().st_nlink == 1 for p in tmp_path.iterdir())


def test_the_file_is_synced_before_it_gets_its_name_and_the_folder_after(tmp_path, monkeypatch):
    events, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(checkpoint.os, "fsync",
                        lambda fd: events.append(os.readlink(f"/proc/self/fd/{fd}")) or fsync(fd))
    monkeypatch.setattr(checkpoint.os, "replace", lambda a, b: events.append(Path(b).name) or replace(a, b))
    write_pth(tmp_path, [LAST], content())
    temporary, *rest = events
    assert Path(temporary).name.startswith(f".{LAST}.") and rest == [LAST, str(tmp_path)]


def test_A01_files_of_others_with_temporary_names_stay(tmp_path):
    for name in (LAST, "best_model.pth"):
        (tmp_path / (name + ".tmp")).write_bytes(b"mine")
    write_pth(tmp_path, ["best_model.pth", LAST], content())
    assert names(tmp_path) == ["best_model.pth", "best_model.pth.tmp", LAST, LAST + ".tmp"]
    assert (tmp_path / (LAST + ".tmp")).read_bytes() == b"mine" and equal(read_pth(tmp_path / LAST), content())


@pytest.mark.skipif(os.name != "posix", reason="needs setrlimit")
def test_K15_a_full_disk_leaves_the_old_file_intact(saved):
    import resource

    before, (soft, hard) = saved.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
    try:
        with refused(saved, "could not be saved", "free some space", "--resume auto"):
            write_pth(saved.parent, ["best_model.pth", LAST], content(1, size=100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert saved.read_bytes() == before and names(saved.parent) == [LAST]
    write_pth(saved.parent, [LAST], content(1, size=100_000))
    assert equal(read_pth(saved), content(1, size=100_000))


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_K15_an_error_at_any_step_leaves_the_old_file_intact(saved, monkeypatch, function):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = saved.read_bytes()
    monkeypatch.setattr(checkpoint.os, function, full)
    with refused(saved, "No space left on device"):
        write_pth(saved.parent, ["best_model.pth", LAST], content(1))
    assert saved.read_bytes() == before and names(saved.parent) == [LAST]


def test_a_file_that_does_not_read_back_is_not_kept(saved, monkeypatch):
    def bad_disk(data, file):
        torch.serialization.save(data, file)
        file.seek(file.tell() // 2)
        file.write(b"\xff" * 64)
        file.seek(0, os.SEEK_END)

    before = saved.read_bytes()
    monkeypatch.setattr(checkpoint.torch, "save", bad_disk)
    with refused(saved, "could not be saved"):
        write_pth(saved.parent, [LAST], content(1))
    assert saved.read_bytes() == before and names(saved.parent) == [LAST]


def test_C11_a_missing_folder_is_a_user_error(tmp_path):
    with refused("gone", "No such file"):
        write_pth(tmp_path / "gone", [LAST], content())
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with refused("file", "Not a directory"):
        write_pth(tmp_path / "file", ["best_model.pth", LAST], content())
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("value", [
    np.float64(1), np.int64(1), np.zeros(2), Path("x"), collections.defaultdict(int), collections.Counter("a"), {1, 2},
    torch.nn.Parameter(torch.zeros(1)), torch.Size([1]), torch.float32, torch.__version__, b"x", 1j, object(), len,
], ids=lambda v: f"K04 {type(v).__name__}")
def test_K04_what_would_not_load_again_is_never_saved(saved, value):
    for place in ({"a": [value]}, {"a": {"b": (1, value)}}):
        with pytest.raises(AssertionError, match=r"checkpoint\.a"):
            write_pth(saved.parent, [LAST], {"format_version": 1, **place})
    assert equal(read_pth(saved), content())


def test_K04_state_dicts_of_torch_are_plain_enough(tmp_path):
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    write_pth(tmp_path, [LAST], {"format_version": 1, "model": model.state_dict(), "opt": optimizer.state_dict()})
    back = read_pth(tmp_path / LAST)
    assert equal(back["opt"], optimizer.state_dict()) and equal(back["model"], dict(model.state_dict()))


def test_K19_a_view_is_saved_without_the_storage_behind_it(tmp_path):
    big = torch.randn(1000, 500)
    views = {"row": big[3], "column": big[:, 7], "block": big[10:12, 5:9], "turned": big[:3].T}
    write_pth(tmp_path, [LAST], {"format_version": 1, "model": views})
    assert (tmp_path / LAST).stat().st_size < 4 * sum(v.numel() for v in views.values()) + 6000
    assert equal(read_pth(tmp_path / LAST)["model"], views)


def test_K19_tied_weights_are_saved_once(tmp_path):
    tied = torch.randn(200, 100)
    write_pth(tmp_path, [LAST], {"format_version": 1, "model": {"a": tied, "b": tied}})
    assert (tmp_path / LAST).stat().st_size < 1.1 * 4 * tied.numel()


# --- loading ---------------------------------------------------------------------------------------------------------

class Bomb:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = str(canary)

    def __reduce__(self):
        return os.mkdir, (self.canary,)


def harmless(line_of: pytest.ExceptionInfo) -> None:
    assert "weights_only" not in str(line_of.value), "torch's advice would run the file"


@pytest.mark.parametrize("form", ["zip", "bare", "legacy torch"])
def test_K03_a_pickle_bomb_does_not_go_off(tmp_path, form):
    canary, path = tmp_path / "canary", tmp_path / LAST
    bomb = {"format_version": 1, "model": Bomb(canary)}
    if form == "bare":
        path.write_bytes(pickle.dumps(bomb))
    else:
        torch.save(bomb, path, _use_new_zipfile_serialization=form == "zip")
    with refused(path, "use another checkpoint"):
        read_pth(path)
    with pytest.raises(Exception) as caught:
        read_pth(path)
    harmless(caught)
    assert not canary.exists()
    if form == "bare":
        pickle.loads(path.read_bytes())
        assert canary.exists(), "the bomb is live"


@pytest.mark.parametrize("keep", [0, 1, 10, 0.5, 0.9, -1, -22], ids=lambda k: f"K01 {k}")
def test_K01_a_cut_file_is_refused_with_its_size(saved, keep):
    raw = saved.read_bytes()
    raw = raw[:int(len(raw) * keep) if isinstance(keep, float) else keep]
    saved.write_bytes(raw)
    with refused(saved, "truncated", f"{len(raw)} bytes"):
        read_pth(saved)


@pytest.mark.parametrize("raw", [b"<!DOCTYPE html></html>", b"version https://git-lfs.github.com/spec/v1\noid x\n",
                                 b"PK\x03\x04 not a zip", b"\x80\x02."],
                         ids=["K01 HTML", "K01 LFS", "K01 PK", "K01 pickle"])
def test_K01_another_kind_of_file_is_refused(tmp_path, raw):
    (tmp_path / LAST).write_bytes(raw)
    with refused(LAST, "truncated or no checkpoint", f"{len(raw)} bytes"):
        read_pth(tmp_path / LAST)


def test_K01_a_folder_a_missing_file_and_a_strange_zip_are_refused(tmp_path):
    with refused(tmp_path, "is a folder"):
        read_pth(tmp_path)
    with refused("no.pth", "not found"):
        read_pth(tmp_path / "no.pth")
    with zipfile.ZipFile(tmp_path / LAST, "w") as archive:
        archive.writestr("a.txt", "x")
    with refused(LAST, "not a checkpoint of this project"):
        read_pth(tmp_path / LAST)


def test_K02_one_flipped_bit_in_a_tensor_is_noticed(saved):
    raw = bytearray(saved.read_bytes())
    raw[raw.index(content()["model"]["w"].numpy().tobytes()) + 2001] ^= 1
    saved.write_bytes(raw)
    assert not equal(torch.load(saved, weights_only=True), content()), "torch itself loads it without a word"
    with refused(saved, "damaged", "data/0", "wrong checksum", "use another checkpoint"):
        read_pth(saved)


def test_K02_a_flipped_byte_anywhere_is_noticed_or_harmless(tmp_path):
    write_pth(tmp_path, [LAST], content(size=40))
    raw, path = (tmp_path / LAST).read_bytes(), tmp_path / "flipped.pth"
    rng = random.Random(0)
    for _ in range(150):
        at = rng.randrange(len(raw))
        path.write_bytes(raw[:at] + bytes([raw[at] ^ (1 << rng.randrange(8))]) + raw[at + 1:])
        try:
            got = read_pth(path)
        except Exception as error:
            assert isinstance(error, UserError), f"byte {at}: {error!r}"
        else:
            assert equal(got, content(size=40)), f"byte {at} changed what was read"


@pytest.mark.parametrize(("data", "version"), [({"format_version": 3}, "3"), ({"format_version": 0}, "0"), ({}, "None"),
                                               ({"w": torch.zeros(2)}, "None"), ([1], "None"), (torch.zeros(2), "None"),
                                               ({"format_version": "1"}, "'1'")])
def test_K09_another_format_is_refused_with_both_versions(tmp_path, data, version):
    torch.save(data, tmp_path / LAST)
    with refused(LAST, f"checkpoint format {version}, this version reads 1 to 2"):
        read_pth(tmp_path / LAST)


# --- which file to go on from ----------------------------------------------------------------------------------------

def test_auto_is_the_last_model_of_the_folder_if_there_is_one(tmp_path):
    assert find_path("auto", tmp_path) is None and find_path("auto", tmp_path / "new") is None
    (tmp_path / "best_model.pth").touch()
    assert find_path("auto", tmp_path) is None
    (tmp_path / LAST).touch()
    assert find_path("auto", tmp_path) == tmp_path / LAST


def test_a_path_must_lie_in_the_run_folder(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint_epoch_3.pth").touch()
    monkeypatch.chdir(tmp_path)
    assert find_path("run/checkpoint_epoch_3.pth", tmp_path / "run") == tmp_path / "run/checkpoint_epoch_3.pth"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_path("~/run/checkpoint_epoch_3.pth", tmp_path / "run") == tmp_path / "run/checkpoint_epoch_3.pth"
    with refused("checkpoint_epoch_3.pth", "not in the run folder", f"--output_dir {tmp_path / 'run'}"):
        find_path("run/checkpoint_epoch_3.pth", tmp_path / "other")


@pytest.mark.parametrize("name", [LAST, "best_model.pth", "checkpoint_epoch_1.pth", "metrics.jsonl"])
def test_C12_a_folder_with_a_run_is_not_written_over(tmp_path, name):
    (tmp_path / name).touch()
    with refused(tmp_path, "holds another run", "--resume auto", "--output_dir"):
        find_path(None, tmp_path)


def test_C12_a_new_or_unrelated_folder_is_fine(tmp_path):
    (tmp_path / "notes.txt").touch()
    assert find_path(None, tmp_path) is None and find_path(None, tmp_path / "new") is None


# --- random states ---------------------------------------------------------------------------------------------------

def draws() -> tuple:
    return (random.random(), random.gauss(0, 1), np.random.rand(3).tolist(), np.random.standard_normal(),
            torch.rand(3).tolist(), torch.randn(2).tolist())


def test_random_generators_go_on_where_they_were_after_a_save_and_a_load(tmp_path):
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    random.gauss(0, 1), np.random.standard_normal()  # both keep half of a pair
    write_pth(tmp_path, [LAST], {"format_version": 1, "random": random_states()})
    wanted = [draws() for _ in range(3)]
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    assert draws() != wanted[0]
    set_random_states(read_pth(tmp_path / LAST)["random"])
    assert [draws() for _ in range(3)] == wanted


@pytest.mark.parametrize(("current", "kept"), [(0, 0), (2, 2), (6, 3)])
def test_random_states_of_a_machine_with_other_gpus_are_of_use(monkeypatch, current, kept):
    """Format 1 kept those of all GPUs; a run resumes where there are fewer."""
    taken = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device="cuda": taken.update({device: state}))
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device="cuda": torch.tensor([7]))
    states = random_states()
    assert [s.tolist() for s in states["cuda"]] == [[7]], "of this process's GPU alone"
    set_random_states(states)
    assert taken["cuda"].tolist() == [7]
    set_random_states(states | {"cuda": [torch.tensor([i]) for i in range(4)]})
    assert taken["cuda"].tolist() == [kept] and len(taken) == 1
