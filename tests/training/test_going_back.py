"""best_model.pth holds weights only; a run that is resumed from an earlier epoch says what goes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from finetune.checkpoints.format import BEST, LAST, Checkpoint
from finetune.config.schema import Config, apply_overrides
from finetune.training import resume, run
from tests.helpers import kill_runs
from tests.helpers.files import refused


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with the data of a run and, in `run`, the run of four epochs of which the last one is the best."""
    base = tmp_path_factory.mktemp("going_back")
    kill_runs.make_data(base)
    (base / "here").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        train(base / "here", patch, None)
    return base / "here"


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    """A copy of it."""
    shutil.copytree(finished.parent, tmp_path / "copy")
    return tmp_path / "copy" / "here"


def train(folder: Path, patch: pytest.MonkeyPatch, resumed: str | None, *more: str) -> int:
    patch.chdir(folder)
    patch.setattr("finetune.models.build.load_prism", kill_runs.tiny_prism)
    pairs = [*kill_runs.SETTINGS, "training.monitor=last", "training.eval_captions=0", *more]
    return run.train(apply_overrides(Config(), pairs), resumed)


def test_the_best_model_has_the_weights_of_the_last_and_a_third_of_its_size(finished):
    best, last = (Checkpoint.load(finished / "run" / name) for name in (BEST, LAST))
    assert best.progress == last.progress and best.model.keys() == last.model.keys()
    assert all(torch.equal(weight, last.model[name]) for name, weight in best.model.items())
    assert last.is_resumable and not best.is_resumable and not best.random_states
    in_best, in_last = (sum(_bytes_of(part)) for part in (vars(best), vars(last)))
    assert in_best < 0.4 * in_last


def _bytes_of(value: object) -> list[int]:
    if isinstance(value, torch.Tensor):
        return [value.nbytes]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [size for item in items for size in _bytes_of(item)]


def test_resuming_from_the_best_model_is_refused_with_both_ways_on(folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in (folder / "run").iterdir()}
    with refused("best_model.pth", "holds weights only", "--resume auto (last_model.pth)", "training.init_from=run/best_model.pth"):
        train(folder, monkeypatch, "run/best_model.pth", "training.epochs=5")
    assert {path.name: path.read_bytes() for path in (folder / "run").iterdir()} == before
    assert train(folder, monkeypatch, "run/last_model.pth", "training.epochs=5") == 0


def test_a_run_of_which_only_the_best_model_is_left_names_the_way_on(folder, monkeypatch):
    for path in (folder / "run").glob("*.pth"):
        if path.name != BEST:
            path.unlink()
    with refused(LAST, "not found", "training.init_from=run/best_model.pth"):
        train(folder, monkeypatch, "auto", "training.epochs=5")


def test_a_best_model_of_an_earlier_version_holds_all_and_is_still_resumed(folder, monkeypatch):
    shutil.copy(folder / "run" / LAST, folder / "run" / BEST)
    assert train(folder, monkeypatch, "run/best_model.pth", "training.epochs=5") == 0
    assert Checkpoint.load(folder / "run" / LAST).progress["epoch"] == 5
    assert not Checkpoint.load(folder / "run" / BEST).is_resumable


def test_resuming_from_an_earlier_epoch_says_what_goes(folder, monkeypatch, capfd):
    assert train(folder, monkeypatch, "run/checkpoint_epoch_2.pth") == 0
    written = capfd.readouterr().err
    assert "resuming from checkpoint_epoch_2.pth, after epoch 2 of 4" in written and "checkpoint_epoch_4.pth stay" in written
    assert "best_model.pth by its weights" in written
    again = [line for line in written.splitlines() if "WARNING resuming" in line]
    assert len(again) == 1
    assert train(folder, monkeypatch, "auto") == 0
    assert "WARNING resuming" not in capfd.readouterr().err, "the last state of a run loses nothing"


def test_the_end_of_a_run_reports_the_sizes_of_its_files(folder, monkeypatch, capfd):
    train(folder, monkeypatch, "auto", "training.epochs=5")
    size = (folder / "run" / BEST).stat().st_size / 1e6
    assert f"files in run: best_model.pth {size:.1f} MB, last_model.pth" in capfd.readouterr().err


def test_the_newest_checkpoint_is_one_that_can_be_resumed(folder):
    (folder / "run" / LAST).unlink()
    (folder / "run" / "checkpoint_epoch_4.pth").unlink()
    assert resume.newest_good(folder / "run").path.name == "checkpoint_epoch_2.pth"
