"""A checkpoint of each released format, which every later version must load, caption with and go on from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from finetune import run
from finetune.checkpoint import FORMAT_VERSION, load_run
from finetune.config import Config, GenerationOptions, apply_overrides
from finetune.tiles import inspect_slide
from tests import kill_runs
from tests.conftest import refused, write_h5
from tests.make_golden import FOLDER, SETTINGS, TEXTS, golden_captioner

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


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"K09 {p.stem}")
def test_a_golden_file_is_resumed_or_refused_in_words(path, tmp_path, monkeypatch):
    kill_runs.make_data(tmp_path)
    (tmp_path / "here" / "run").mkdir(parents=True)
    shutil.copyfile(path, tmp_path / "here" / "run" / "last_model.pth")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("finetune.model.load_prism", kill_runs.tiny_prism)
    epoch = load_run(path)["progress"]["epoch"]
    config = apply_overrides(Config(), [*SETTINGS, f"training.epochs={epoch + 1}"])
    if "processes" not in load_run(path)["versions"]:  # from before accumulated micro-batches shared their contrastive loss
        with refused("of an older version", "accum_freq"):
            run.train(config, str(Path("run/last_model.pth").absolute()))
        return
    assert run.train(config, str(Path("run/last_model.pth").absolute())) == 0
    assert load_run(Path("run/last_model.pth"))["progress"]["epoch"] == epoch + 1
