"""Experiment trackers: an event file read back by TensorBoard itself, and the calls to wandb."""

from __future__ import annotations

import json
import math
import sys
import types

import pytest

from finetune.training.run_log import RunLog
from finetune.training.state import TrainState
from finetune.training.trackers import open_trackers
from tests.helpers.files import refused


def test_tensorboard_reads_back_what_an_epoch_logged(tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = RunLog(tmp_path, open_trackers(["tensorboard"], tmp_path, {}))
    for epoch, loss in ((1, 2.5), (2, math.nan), (3, 0.5)):
        log.epoch(TrainState(epoch=epoch, step=10 * epoch), {"loss": loss, "val_loss": 3.0}, 1e-4, True)
    log.finish("finished")
    events = accumulators.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"train/loss", "train/lr", "train/slides_per_second", "validation/loss"}
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 2.5), (3, 0.5)]


def test_tensorboard_shows_an_epoch_once_that_a_resumed_run_trains_again(tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for first, last in ((1, 4), (3, 3), (3, 5)):  # resumed twice from the checkpoint of epoch 2
        trackers = open_trackers(["tensorboard"], tmp_path, {}, first)
        for epoch in range(first, last + 1):
            trackers[0].log({"loss": 10.0 * last + epoch}, epoch)
        trackers[0].close()
    events = accumulators.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 41), (2, 42), (3, 53), (4, 54), (5, 55)]


def test_wandb_gets_a_new_run_with_the_epochs_before_when_it_has_later_ones_already(tmp_path, monkeypatch, log_lines):
    inits, logged, finished = [], [], []

    def init(**options):
        inits.append(options["id"])
        known = 5 if len(inits) == 1 else 0  # it has steps 1 to 4
        return types.SimpleNamespace(starting_step=known, finish=lambda: finished.append(options["id"]),
                                     log=lambda values, step: logged.append((options["id"], step, values["loss"])))

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"epoch": {e}, "loss": {e}.5}}\n' for e in range(1, 5)), encoding="utf-8")
    (tracker,) = open_trackers(["wandb"], tmp_path, {}, 3)
    tracker.log({"epoch": 3, "loss": 0.25}, 3)
    old, new = inits
    assert old != new and finished == [old] and logged == [(new, 1, 1.5), (new, 2, 2.5), (new, 3, 0.25)]
    assert any("epoch 3 already" in line for line in log_lines)
    inits[:] = ["an earlier start"]
    open_trackers(["wandb"], tmp_path, {}, 4)
    assert inits[1] == new, "the new run is the one that is resumed from now on"


def test_wandb_gets_the_run_its_numbers_and_its_end(tmp_path, monkeypatch):
    calls = []
    run = types.SimpleNamespace(log=lambda values, step: calls.append((values, step)), finish=lambda: calls.append("finish"))
    fake = types.SimpleNamespace(init=lambda **options: calls.append(options) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    tracker, = open_trackers(["wandb"], tmp_path / "run7", {"training": {"epochs": 2}})
    tracker.log({"epoch": 3, "step": 9, "loss": 1.5, "best": True, "note": "x", "val_loss": math.inf}, 3)
    tracker.close()
    assert calls[0]["name"] == "run7" and calls[0]["resume"] == "allow" and calls[0]["config"] == {"training": {"epochs": 2}}
    assert calls[1:] == [({"loss": 1.5}, 3), "finish"]


def test_a_resumed_run_is_the_same_to_wandb_and_another_folder_of_that_name_is_not(tmp_path, monkeypatch):
    ids = []
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **options: ids.append(options["id"])))
    for folder in ("a/run", "a/run", "b/run"):
        open_trackers(["wandb"], tmp_path / folder, {})
    assert ids[0] == ids[1] != ids[2]


def test_a_failing_tracker_warns_once_and_the_run_continues(tmp_path, log_lines):
    def broken(*_):
        raise OSError(28, "No space left on device")

    good = []
    log = RunLog(tmp_path, [types.SimpleNamespace(log=broken, close=broken),
                            types.SimpleNamespace(log=lambda *a: good.append(a), close=lambda: good.append("closed"))])
    for epoch in (1, 2):
        log.epoch(TrainState(epoch=epoch), {"loss": 1.0}, 1e-4, True)
    log.finish("finished")
    assert len(good) == 3 and sum("training.report_to" in line and "No space left" in line for line in log_lines) == 1


def test_a_folder_where_tensorboard_cannot_write_is_a_user_error(tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "tensorboard").write_text("in the way")
    with refused("tensorboard: cannot be written", "report_to"):
        open_trackers(["tensorboard"], tmp_path, {})


def test_slides_per_second_are_those_of_training_not_of_validation(tmp_path, monkeypatch):
    clock = iter([0.0, 100.0, 102.0, 110.0])  # made, epoch begins, last step ends, validation ends
    monkeypatch.setattr("finetune.training.run_log.time.monotonic", lambda: next(clock))
    monkeypatch.setenv("CI", "1")
    log, seen = RunLog(tmp_path), []
    log.trackers = [types.SimpleNamespace(log=lambda record, step: seen.append(record["slides_per_second"]))]
    with log.epoch_bar(TrainState(), 1, 1) as bar:
        log.step(bar, {"num_slides": 8.0, "loss": 1.0, "lr": 1e-4})
    log.epoch(TrainState(epoch=1), {"loss": 1.0}, 1e-4, True)
    assert seen == [4.0]


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb"), ("swanlab", "swanlab")])
def test_a_tracker_that_is_not_installed_is_named_with_its_pip_command(name, module, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with refused("training.report_to", f"{name} is not installed", "python -m pip install ", name):
        open_trackers([name], tmp_path, {})


def test_a_wandb_that_cannot_start_is_a_user_error(tmp_path, monkeypatch):
    def init(**_):
        raise RuntimeError("no key")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    with refused("training.report_to", "wandb cannot start", "WANDB_MODE=offline"):
        open_trackers(["wandb"], tmp_path, {})


def play_swanlab(monkeypatch, **broken) -> list:
    """A `swanlab` that notes its calls. broken: what `init` raises."""
    calls = []

    def init(**options):
        if broken:
            raise broken["error"]
        calls.append(options)
        return types.SimpleNamespace(log=lambda values, step: calls.append((values, step)), finish=lambda: calls.append("finish"))

    monkeypatch.setitem(sys.modules, "swanlab", types.SimpleNamespace(init=init, Settings=dict))
    monkeypatch.setitem(sys.modules, "swanboard", types.SimpleNamespace(__spec__=object()))
    monkeypatch.delenv("SWANLAB_MODE", raising=False)
    return calls


def test_swanlab_gets_a_local_run_its_numbers_and_its_end(tmp_path, monkeypatch):
    calls = play_swanlab(monkeypatch)
    tracker, = open_trackers(["swanlab"], tmp_path / "run7", {"training": {"epochs": 2}})
    tracker.log({"epoch": 3, "step": 9, "loss": 1.5, "best": True, "note": "x", "val_loss": math.inf}, 3)
    tracker.close()
    assert calls[0]["name"] == "run7" and calls[0]["mode"] == "local" and calls[0]["config"] == {"training": {"epochs": 2}}
    assert calls[0]["log_dir"] == str(tmp_path / "run7" / "swanlab") and calls[0]["settings"]["terminal"] == {"proxy_type": "none"}
    assert calls[1:] == [({"loss": 1.5}, 3), "finish"]


def test_each_start_is_a_run_of_swanlab_that_begins_with_the_epochs_before(tmp_path, monkeypatch):
    calls = play_swanlab(monkeypatch)
    monkeypatch.setenv("SWANLAB_MODE", "offline")
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"epoch": {e}, "loss": {e}.5}}\n' for e in range(1, 5)), encoding="utf-8")
    open_trackers(["swanlab"], tmp_path, {}, 3)
    assert calls[0]["mode"] == "offline" and calls[1:] == [({"loss": 1.5}, 1), ({"loss": 2.5}, 2)]


def test_a_swanlab_that_cannot_start_or_keeps_no_curves_is_a_user_error(tmp_path, monkeypatch):
    play_swanlab(monkeypatch, error=RuntimeError("no key"))
    with refused("training.report_to", "swanlab cannot start", "SWANLAB_MODE=local"):
        open_trackers(["swanlab"], tmp_path, {})
    monkeypatch.setattr("finetune.training.trackers.importlib.util.find_spec", lambda name: None)
    with refused("training.report_to", "dashboard is not installed", 'pip install "swanlab[dashboard]"'):
        open_trackers(["swanlab"], tmp_path, {})


def test_swanlab_itself_keeps_what_a_resumed_run_logged(tmp_path, monkeypatch):
    """The dashboard's own files; without a network."""
    pytest.importorskip("swanboard", reason="pip install 'swanlab[dashboard]'")
    monkeypatch.delenv("SWANLAB_MODE", raising=False)
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"epoch": {e}, "loss": {e}.5}}\n' for e in range(1, 5)), encoding="utf-8")
    for first in (1, 3):
        tracker, = open_trackers(["swanlab"], tmp_path, {"training": {"epochs": 4}}, first)
        for epoch in range(first, 5):
            tracker.log({"epoch": epoch, "loss": 10.0 * first + epoch}, epoch)
        tracker.close()
    logged = [[json.loads(line)["data"] for line in path.read_text(encoding="utf-8").splitlines()]
              for path in sorted((tmp_path / "swanlab").glob("run-*/logs/*/[0-9]*.log"))]
    assert logged == [[11, 12, 13, 14], [1.5, 2.5, 33, 34]]
