"""A checkpoint of each released format, which every later version must load, caption with and resume."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from finetune.checkpoints.format import FORMAT_VERSION, Checkpoint
from finetune.config.schema import Config, apply_overrides
from finetune.data.slides import inspect_slide
from finetune.training import run
from prism import GenerationOptions
from tests.helpers import kill_runs
from tests.helpers.files import refused, write_h5
from tests.helpers.make_golden import FOLDER, SETTINGS, TEXTS, golden_captioner

FILES = sorted(FOLDER.glob("*.pth"))


def test_K09_there_is_a_small_golden_file_of_the_current_format():
    assert FOLDER / f"checkpoint_v{FORMAT_VERSION}.pth" in FILES
    assert all(p.stat().st_size < 200_000 for p in FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"K09 {p.stem}")
def test_a_golden_file_captions_and_scores_as_it_did_when_it_was_made(path, tmp_path):
    golden = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    slides = [inspect_slide(write_h5(tmp_path / f"{i}.h5", np.array(t, "f4")), None, kill_runs.WIDTH)
              for i, t in golden["tiles"].items()]
    records = golden_captioner(path).describe(slides, TEXTS, GenerationOptions(max_length=20))
    for record, wanted in zip(records, golden["records"], strict=True):
        assert (record["id"], record["caption"]) == (wanted["id"], wanted["caption"])
        for key in ("similarity", "probability"):
            assert record[key] == pytest.approx(wanted[key], abs=1e-5)
    assert len({r["caption"] for r in records}) > 1


@pytest.mark.parametrize(("version", "accum_freq"), [(1, 1), (1, 2), (2, 2)])
def test_K09_a_golden_file_is_resumed_or_refused_with_a_message(version, accum_freq, tmp_path, monkeypatch):
    """All were made with accum_freq 2, which changed its meaning after format 1; the file of 1 is tried with 1, too."""
    kill_runs.make_data(tmp_path)
    last = tmp_path / "here" / "run" / "last_model.pth"
    last.parent.mkdir(parents=True)
    before = Checkpoint.load(FOLDER / f"checkpoint_v{version}.pth")
    before.config["training"]["accum_freq"] = accum_freq
    before.save(last.parent, [last.name])
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("finetune.models.build.load_prism", kill_runs.tiny_prism)
    epochs = before.progress["epoch"] + 1
    config = apply_overrides(Config(), [*SETTINGS, f"training.epochs={epochs}", f"training.accum_freq={accum_freq}"])
    if version == 1 and accum_freq > 1:
        with refused("of an older version", "accum_freq"):
            run.train(config, str(last))
        return
    assert run.train(config, str(last)) == 0
    after = Checkpoint.load(last)
    assert after.progress | {"epoch": epochs, "micro_batches": accum_freq} == after.progress
    assert after.progress["step"] > before.progress["step"] and after.format_version == FORMAT_VERSION
    assert any(not torch.equal(t, before.model[name]) for name, t in after.model.items())
