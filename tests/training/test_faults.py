"""Rows C, K, N and R of the fault catalogue that concern a whole run; a tiny model, no subprocess where none is needed."""

from __future__ import annotations

import copy
import dataclasses
import errno
import logging
import math
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from finetune.checkpoints.format import LAST, Checkpoint, RunDescription, read_pth, write_pth
from finetune.common import run_lock as runlock
from finetune.common.device import Precision, resolve_device, resolve_precision
from finetune.common.errors import UserError
from finetune.common.log import log_to_console, log_to_file
from finetune.common.run_lock import RunLock
from finetune.config.auto import resolve
from finetune.config.schema import Config, apply_overrides
from finetune.training import loop, resume, run, run_files
from finetune.training.loop import train_step
from finetune.training.optim import build_optimizer
from finetune.training.random_states import random_states, set_random_states
from finetune.training.run_log import RunLog
from finetune.training.saver import Saver
from finetune.training.state import TrainState
from tests.helpers import kill_runs
from tests.helpers.files import ROOT, refused
from tests.helpers.training import CPU, a_batch, parts_of, tiny_model

RUN = RunDescription(
    config=Config().to_dict(), tokenizer={"type": "vocab", "version": 1, "pieces": ["胃"]},
    prism={"source": "tiny", "revision": None, "sha256": "0" * 64, "architecture": {}},
    data={"fingerprint": "f", "validation_ids": []}, versions={"torch": "2.13.0", "threads": 2})
BEFORE = Checkpoint(**vars(RUN), progress={}, random_states={}, model={}, optimizer={}, scaler={}, path=Path("c.pth"))


def saver_of(folder: Path, model=None, *, fp16: bool = False) -> Saver:
    model = model or tiny_model()
    return Saver(folder, 0, model, build_optimizer(model.named_parameters(), 1e-2, 0.1), torch.amp.GradScaler("cpu", enabled=fp16), RUN)


def restore(checkpoint: Checkpoint, saver: Saver) -> None:
    resume.restore(checkpoint, saver.model, saver.optimizer, saver.scaler)


@pytest.fixture
def saved(tmp_path) -> tuple[Saver, Checkpoint]:
    """A saver after one step, and what it has saved."""
    saver = saver_of(tmp_path)
    parts = dataclasses.replace(parts_of(saver.model, tmp_path), optimizer=saver.optimizer)
    train_step(parts, [a_batch(1, 2)], 1e-2, TrainState())
    saver.save(TrainState(epoch=1, step=3), True)
    return saver, Checkpoint.load(tmp_path / LAST)


# --- checkpoints -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_K05_weights_of_a_wrapped_model_load_with_a_warning(saved, prefix, log_lines):
    _, content = saved
    other = tiny_model()
    other.load_saved_state({f"coca.{prefix}{k[5:]}": v for k, v in content.model.items()}, "x.pth")
    assert all(torch.equal(v, content.model[k]) for k, v in other.saved_state().items())
    assert any("of a wrapped model" in line for line in log_lines)


def test_K05_K06_another_architecture_or_vocabulary_is_refused_with_the_first_differences(saved):
    saver, content = saved
    state = {k.replace("text_", "word_"): v for k, v in content.model.items()}
    key = next(k for k in content.model if "token_emb" in k)
    with refused("x.pth", "weights do not fit this model", "missing coca.", "use the config"):
        saver.model.load_saved_state(state, "x.pth")
    with refused("x.pth", "1 weights do not fit", key, "(12, 16)", "(11, 16)"):
        saver.model.load_saved_state(content.model | {key: torch.zeros(12, 16)}, "x.pth")


def test_K06_the_tokenizer_is_in_the_checkpoint_and_fits_its_model(saved):
    assert saved[1].tokenizer == RUN.tokenizer


def test_K07_an_optimizer_of_other_parameters_is_refused_at_once(saved, tmp_path):
    _, content = saved
    renamed = copy.deepcopy(content)
    renamed.optimizer["param_groups"][0]["param_names"][0] = "other"
    swapped = copy.deepcopy(content)
    state = swapped.optimizer["state"]
    first = next(i for i, s in state.items() if s["exp_avg"].shape != state[0]["exp_avg"].shape)
    state[0], state[first] = state[first], state[0]
    fewer = copy.deepcopy(content)
    fewer.optimizer["param_groups"].pop()
    for bad, words in ((renamed, "other parameters"), (swapped, "exp_avg of number 0"), (fewer, "not usable")):
        with refused(LAST, words):
            restore(bad, saver_of(tmp_path))
    restore(content, saver_of(tmp_path))


@pytest.mark.parametrize(("value", "words"), [(torch.full((1,), math.nan), "not finite"), (torch.ones(1).half(), "float16"),
                                              (torch.ones(1, dtype=torch.complex64), "complex64")],
                         ids=["K08 NaN", "K08 half", "K08 complex"])
def test_weights_of_another_kind_are_refused(saved, value, words):
    saver, content = saved
    key = "coca.temperature"
    with refused("x.pth", key, words):
        saver.model.load_saved_state(content.model | {key: value.reshape(content.model[key].shape)}, "x.pth")


@pytest.mark.parametrize(("content", "fix"), [
    pytest.param({"format_version": 99}, "update", id="K09 newer"),
    pytest.param({"weight": torch.zeros(2)}, "weights only", id="K09 weights only"),
    pytest.param({"format_version": 0}, "the version of this project that wrote it", id="K09 unknown"),
])
def test_a_checkpoint_of_another_format_says_what_to_do(tmp_path, content, fix):
    torch.save(content, tmp_path / LAST)
    with refused(LAST, "checkpoint format", fix):
        resume.choose_checkpoint("auto", tmp_path)


def test_K09_a_checkpoint_without_its_parts_is_refused(tmp_path):
    write_pth(tmp_path, [LAST], {"format_version": 1, "model": {}, "config": {}})
    with refused(LAST, "has no tokenizer, prism, data, versions, progress"):
        Checkpoint.load(tmp_path / LAST)


def test_K10_random_states_of_a_gpu_machine_load_without_a_gpu_and_stay_on_the_cpu(tmp_path):
    states = random_states() | {"cuda": [torch.get_rng_state()[:16].clone()]}
    write_pth(tmp_path, [LAST], {"format_version": 1, "states": states})
    loaded = read_pth(tmp_path / LAST)["states"]
    assert loaded["torch"].device.type == "cpu" and loaded["torch"].dtype is torch.uint8
    if not torch.cuda.is_available():
        set_random_states(loaded)


@pytest.mark.gpu
def test_K10_a_checkpoint_goes_from_cpu_to_gpu_and_back(saved, tmp_path):
    _, content = saved
    other = saver_of(tmp_path, tiny_model().cuda())
    restore(content, other)
    other.save(TrainState(), False)
    assert all(torch.equal(v, content.model[k]) for k, v in Checkpoint.load(tmp_path / LAST).model.items())


def test_K11_another_machine_warns_and_resumes(log_lines):
    resume.check_same_run(BEFORE, dataclasses.replace(RUN, versions={"torch": "2.14.0", "threads": 8}))
    assert [line for line in log_lines if "torch was 2.13.0, now 2.14.0" in line and "last bits" in line]
    assert any("threads was 2, now 8" in line for line in log_lines)


@pytest.mark.parametrize(("pair", "allowed"), [
    ("model.dim=64", False), ("training.seed=1", False), ("training.batch_size=2", False),
    ("training.learning_rate=1e-5", False), ("data.max_tiles=9", False), ("training.accum_freq=2", False),
    ("training.epochs=99", True), ("training.workers=7", True), ("training.save_every_steps=5", True),
    ("data.embeddings_dir=/elsewhere", True)])
def test_K12_what_changes_the_result_may_not_change(pair, allowed):
    now = dataclasses.replace(RUN, config=apply_overrides(Config(), [pair]).to_dict())
    if allowed:
        resume.check_same_run(BEFORE, now)
        return
    with refused("c.pth", "was trained with", pair.split("=")[0], "another --output_dir"):
        resume.check_same_run(BEFORE, now)


def a_checkpoint(values: dict) -> Checkpoint:
    return dataclasses.replace(BEFORE, config=values)


def test_K12_what_is_auto_goes_on_with_the_numbers_of_the_checkpoint():
    saved = resolve(apply_overrides(Config(), ["training.epochs=7"]), 100)
    kept = resume.keep_settings(Config(), a_checkpoint(saved.to_dict()))
    assert kept == saved, "although by now there may be more slides"
    given = resume.keep_settings(apply_overrides(Config(), ["model.dim=9", "training.epochs=8"]), a_checkpoint(saved.to_dict()))
    assert (given.model.dim, given.model.heads, given.training.epochs) == (9, saved.model.heads, 8)


def test_K12_a_run_from_before_the_sizes_goes_on_with_the_command_that_began_it():
    old = resolve(apply_overrides(Config(), ["model.size=large", "training.batch_size=4", "training.epochs=50"]), 100).to_dict()
    del old["model"]["size"]
    old["training"]["monitor"] = "val_loss"
    kept = resume.keep_settings(Config(), a_checkpoint(old))
    assert (kept.training.batch_size, kept.training.monitor) == (4, "val_loss")
    resume.check_same_run(a_checkpoint(old), dataclasses.replace(RUN, config=resolve(kept, 5000).to_dict()))
    now = resume.keep_settings(apply_overrides(Config(), ["training.batch_size=16"]), a_checkpoint(old))
    assert now.training.batch_size == 16, "what is given is compared as ever"
    new = resolve(apply_overrides(Config(), ["training.batch_size=4"]), 100).to_dict()
    assert resume.keep_settings(Config(), a_checkpoint(new)).training.batch_size == 8


def test_K13_other_data_and_other_prism_weights_are_refused():
    with refused("c.pth", "other data"):
        resume.check_same_run(BEFORE, dataclasses.replace(RUN, data={"fingerprint": "g"}))
    with refused("c.pth", "other Prism weights"):
        resume.check_same_run(BEFORE, dataclasses.replace(RUN, prism={"sha256": "1" * 64}))


def with_sums(description, sums: str | None):
    return dataclasses.replace(description, data={"fingerprint": "f"} | ({"tile_sums": sums} if sums is not None else {}))


@pytest.mark.parametrize(("before", "now", "changed"), [
    ("0000000a0000000b", "0000000a0000000b", None), ("0000000a0000000b", "0000000a0000000c", "1 of 2 slides, such as s1"),
    ("0000000a0000000b", "0000000c0000000d", "2 of 2 slides, such as s0"), ("000000000000000b", "0000000c0000000b", None),
    (None, "0000000c0000000d", None), ("", "0000000c0000000d", None), ("x" * 16, "0000000c0000000d", None)])
def test_A08_other_tiles_in_files_of_the_same_shape_are_refused(before, now, changed):
    run = with_sums(RUN, now)
    if changed is None:
        resume.check_same_run(with_sums(BEFORE, before), run, ["s0", "s1"])
        return
    with refused("c.pth", f"other tiles of {changed}", "restore these files"):
        resume.check_same_run(with_sums(BEFORE, before), run, ["s0", "s1"])


@pytest.mark.parametrize("fp16", [True, False])
def test_K14_another_precision_is_refused(tmp_path, fp16):
    saver_of(tmp_path, fp16=fp16).save(TrainState(), False)
    with refused(LAST, "the precision changed from or to fp16", "resume with the same precision"):
        restore(Checkpoint.load(tmp_path / LAST), saver_of(tmp_path, fp16=not fp16))


def test_K18_there_must_be_a_checkpoint_where_one_is_named(tmp_path):
    with refused("no.pth", "not found"):
        resume.choose_checkpoint(str(tmp_path / "no.pth"), tmp_path)
    assert resume.choose_checkpoint("auto", tmp_path) is None


def test_K18_K01_the_newest_is_the_furthest_in_training_not_in_the_alphabet(tmp_path, log_lines):
    saver = saver_of(tmp_path)
    for epoch in (2, 9, 10):
        saver.save(TrainState(epoch=epoch), False)
        (tmp_path / LAST).rename(tmp_path / f"checkpoint_epoch_{epoch}.pth")
    (tmp_path / LAST).write_bytes(b"PK\x03\x04 cut")
    with refused(LAST, "truncated", "the newest intact checkpoint is checkpoint_epoch_10.pth"):
        resume.choose_checkpoint(str(tmp_path / LAST), tmp_path)
    chosen = resume.choose_checkpoint("auto", tmp_path)
    assert chosen.path.name == "checkpoint_epoch_10.pth" and chosen.progress["epoch"] == 10
    assert any("resuming from checkpoint_epoch_10.pth instead" in line for line in log_lines)


def test_K20_a_validation_loss_of_nan_is_reported(tmp_path, log_lines):
    state = TrainState(epoch=3)
    assert not loop.update_best(state, "val_loss", {"val_loss": math.nan}) and state.best_loss == math.inf
    assert any("epoch 3 is NaN" in line for line in log_lines)


@pytest.mark.parametrize("fields", [{"epoch": "1"}, {"epoch": 1.0}, {"unknown": 1}, {"unknown": None}, {"sums": []}, {"best_loss": 1}])
def test_progress_of_another_kind_is_refused(fields):
    with refused("c.pth", "progress", next(iter(fields))):
        resume.saved_state(dataclasses.replace(BEFORE, progress=fields))


# --- the run folder --------------------------------------------------------------------------------------------------

def test_R06_the_second_run_in_a_folder_is_refused_naming_the_first(tmp_path):
    with RunLock(tmp_path / "a" / "run"):
        with refused(tmp_path / "a" / "run", "in use by another run", f"process {os.getpid()}"):
            RunLock(tmp_path / "a" / "run").__enter__()
        (tmp_path / "a" / "run" / "file").touch()
    assert [p.name for p in (tmp_path / "a" / "run").iterdir()] == ["file"]
    with RunLock(tmp_path / "a" / "run"):
        pass


def test_R06_a_refused_run_leaves_no_folder_behind(tmp_path):
    with pytest.raises(UserError), RunLock(tmp_path / "a" / "b"):
        raise UserError("x", "y", "z")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="no SIGKILL")
def test_R06_the_lock_of_a_killed_run_is_free(tmp_path):
    code = f"import time, pathlib, finetune.common.run_lock as r\nwith r.RunLock(pathlib.Path({str(tmp_path / 'run')!r})):\n" \
           " print('held', flush=True)\n time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with refused("in use by another run", f"process {process.pid}"):
            RunLock(tmp_path / "run").__enter__()
        process.send_signal(signal.SIGKILL)
        process.wait()
        with RunLock(tmp_path / "run"):
            pass


@pytest.mark.skipif(os.name != "posix", reason="flock")
def test_R06_a_drive_without_locks_does_not_stop_a_run(tmp_path, monkeypatch):
    import fcntl

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with RunLock(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES], ids=["C11 read-only", "C11 no permission"])
def test_an_unwritable_folder_is_reported_first(tmp_path, monkeypatch, number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(runlock.os, "open", fail)
    with refused(tmp_path / "run", "cannot be written", os.strerror(number), "--output_dir"):
        RunLock(tmp_path / "run").__enter__()
    assert list(tmp_path.iterdir()) == []


def test_C11_a_file_in_place_of_the_folder_is_reported(tmp_path):
    (tmp_path / "run").write_text("x", encoding="utf-8")
    with refused(tmp_path / "run", "cannot be written"):
        RunLock(tmp_path / "run").__enter__()


def test_C11_too_little_space_is_reported_before_the_first_step(tmp_path, monkeypatch):
    model = tiny_model()
    weights = sum(t.nbytes for t in model.saved_state().values())
    needed = weights + 2 * (weights + 2 * sum(p.nbytes for p in model.trained_parameters()))  # best; last, before and after
    for free, enough in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(run_files.shutil, "disk_usage", lambda _, free=free: type("U", (), {"free": free}))
        if enough:
            run_files.check_disk_space(tmp_path, model)
        else:
            with refused(tmp_path, "GB are free", "its checkpoints need"):
                run_files.check_disk_space(tmp_path, model)


def test_C07_a_training_set_without_a_step_is_refused(tmp_path, monkeypatch):
    kill_runs.make_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("finetune.models.build.load_prism", kill_runs.tiny_prism)
    config = apply_overrides(Config(), [*kill_runs.SETTINGS, "data.embeddings_dir=h5", "data.labels_file=l.json",
                                        "data.val_split=0.5"])
    (tmp_path / "l.json").write_text('{"s0": "胃", "s1": "胃"}', encoding="utf-8")
    with refused("training.batch_size", "0 steps per epoch with 1 training slides"):
        run.train(config)
    assert not (tmp_path / "run").exists() and not (tmp_path.parent / "run").exists()


# --- hardware --------------------------------------------------------------------------------------------------------

def test_C10_R04_an_unavailable_device_or_precision_is_reported():
    precision = resolve_precision("fp16", CPU)
    assert precision.name in ("bf16", "fp32") and "needs CUDA" in precision.reason and not precision.scaler().is_enabled()
    assert resolve_device("auto").type in ("cpu", "cuda")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
                                   RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")],
                         ids=["R03 GPU", "R03 CPU"])
def test_out_of_memory_names_the_largest_slide(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr("finetune.training.objective.Objective.backward", fail)
    with refused("out of memory at epoch 1, step 1", "4 tiles in slide s1_1", "data.max_tiles"):
        loop.fit(parts_of(tiny_model(), tmp_path, [a_batch(1, 2)]), TrainState())


def test_R03_another_runtime_error_stays_a_bug(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr("finetune.training.objective.Objective.backward", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        loop.fit(parts_of(tiny_model(), tmp_path, [a_batch(1, 2)]), TrainState())


class Gone:
    """A stream whose reader has closed it."""

    encoding = "utf-8"

    def write(self, _: str) -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    flush = isatty = lambda self: False


def test_R07_a_closed_terminal_does_not_end_a_run(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Gone())
    log_to_console()
    logging.getLogger("prism_coca").warning("nobody reads this")


def test_R07_a_closed_pipe_does_not_end_captioning():
    code = "import sys, time\nfrom finetune.common.errors import say\ntime.sleep(0.3)\nfor i in range(3): say('x' * 70000)\n" \
           "print('done', file=sys.stderr)"
    command = f"{sys.executable} -c \"{code}\" | true; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "done\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_R07_a_full_disk_for_logs_is_one_line_for_metrics_and_nothing_for_the_log(tmp_path, capsys):
    memory = log_to_console()
    for name in ("training.log", "metrics.jsonl"):
        (tmp_path / name).symlink_to("/dev/full")
    log_to_file(memory, tmp_path)
    logging.getLogger("prism_coca").warning("lost")
    assert "Traceback" not in capsys.readouterr().err
    with refused(tmp_path / "metrics.jsonl", "No space left", "--resume auto"):
        RunLog(tmp_path).epoch(TrainState(), {"loss": 1.0}, 0.1, False)
    log_to_console()


def test_a_run_opens_no_socket(tmp_path, monkeypatch):
    """No download and no telemetry unless requested."""
    def no_network(*_, **__):
        raise AssertionError("a socket was opened")

    kill_runs.make_data(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("finetune.models.build.load_prism", kill_runs.tiny_prism)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    config = apply_overrides(Config(), [*kill_runs.SETTINGS, "training.epochs=1"])
    assert run.train(config) == 0
    written = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.suffix not in (".h5", ".json"))
    assert b"hf_secret" not in written, "section 4.10"
    log = (tmp_path / "here" / "logs" / "training.log").read_text(encoding="utf-8")
    info = "\n".join(line for line in log.splitlines() if " INFO " in line or " NOTICE " in line)
    assert "腺癌" not in log and str(Path.home()) + "/" not in info and str(tmp_path) not in info
    assert str(tmp_path).encode() not in (tmp_path / "here" / "run" / LAST).read_bytes()
    modes = {oct(p.stat().st_mode & 0o111) for p in (tmp_path / "here" / "run").iterdir()}
    assert modes == {"0o0"}, "section 4.11: nothing executable"


def test_N02_precision_and_its_scaler_come_from_one_place():
    assert Precision("fp16", torch.device("cpu"), "").scaler().is_enabled()
    assert not Precision("bf16", torch.device("cpu"), "").scaler().is_enabled()

