"""Curves sent elsewhere: an event file read back by TensorBoard itself, and what wandb is asked to do."""

from __future__ import annotations

import math
import sys
import types

import pytest

from finetune.loop import TrainState
from finetune.runlog import RunLog
from finetune.trackers import open_trackers

from .conftest import refused


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


def test_wandb_gets_the_run_its_numbers_and_its_end(tmp_path, monkeypatch):
    calls = []
    run = types.SimpleNamespace(log=lambda values, step: calls.append((values, step)), finish=lambda: calls.append("finish"))
    fake = types.SimpleNamespace(init=lambda **options: calls.append(options) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    tracker, = open_trackers(["wandb"], tmp_path / "run7", {"training": {"epochs": 2}})
    tracker.log({"epoch": 3, "step": 9, "loss": 1.5, "best": True, "note": "x", "val_loss": math.inf}, 3)
    tracker.close()
    assert calls[0]["id"] == "run7" and calls[0]["resume"] == "allow" and calls[0]["config"] == {"training": {"epochs": 2}}
    assert calls[1:] == [({"loss": 1.5}, 3), "finish"]


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_tracker_that_is_not_installed_is_named_with_its_pip_command(name, module, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with refused("training.report_to", f"{name} is not installed", f"pip install {name}"):
        open_trackers([name], tmp_path, {})


def test_a_wandb_that_cannot_start_is_a_user_error(tmp_path, monkeypatch):
    def init(**_):
        raise RuntimeError("no key")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    with refused("training.report_to", "wandb cannot start", "WANDB_MODE=offline"):
        open_trackers(["wandb"], tmp_path, {})
