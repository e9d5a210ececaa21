"""Which encodings a whole run reads: views where it trains, all tiles for everything else."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
import torch

from finetune.checkpoints.format import Checkpoint
from finetune.config.schema import Config, apply_overrides
from finetune.data.slide_cache import SlideCache
from finetune.data.slides import SlideFile
from finetune.data.views import view_of_epoch
from finetune.training import run
from tests.helpers import kill_runs


def train(*more: str) -> Checkpoint:
    assert run.train(apply_overrides(Config(), [*kill_runs.SETTINGS, *more])) == 0
    return Checkpoint.load("run/last_model.pth")


@pytest.fixture
def reads(monkeypatch) -> dict[str, list[int]]:
    """{slide id: number of each view read, 0 for all tiles}, in order."""
    numbers: dict[str, list[int]] = defaultdict(list)
    read = SlideCache.read_into

    def noted(self, tokens, slide, view=None):
        numbers[slide.slide_id].append(view.number if view else 0)
        return read(self, tokens, slide, view)

    monkeypatch.setattr(SlideCache, "read_into", noted)
    return numbers


def test_only_training_reads_views(here, reads):
    checkpoint = train("data.views=3")
    assert checkpoint.config["data"]["views"] == 3
    assert "34 to encode (of 14 slides and 20 views)" in Path("logs/training.log").read_text(encoding="utf-8")
    validation = set(checkpoint.data["validation_ids"])
    assert len(validation) == 4 and all(set(reads[i]) == {0} for i in validation)
    for i in reads.keys() - validation:
        slide = SlideFile(i, "", "", 3)
        drawn = [view_of_epoch(slide, 3, 42, epoch) for epoch in range(4)]
        assert reads[i] == [view.number if view else 0 for view in drawn] + [0], "and all tiles for nearest.pt"
    assert {n for i in reads.keys() - validation for n in reads[i]} == {0, 1, 2}


def test_auto_is_written_down_as_a_number_and_views_change_what_is_learned(here):
    auto = train()
    assert auto.config["data"]["views"] == 8 and "views: 8" in Path("run/config.yaml").read_text()
    plain = train("data.views=1", "training.output_dir=plain")
    plain = Checkpoint.load("plain/last_model.pth")
    assert any(not torch.equal(weight, plain.model[key]) for key, weight in auto.model.items())


@pytest.mark.parametrize("pair", ["data.latents_cache=null", "prism.freeze=false"])
def test_without_a_cache_views_are_ignored_with_a_warning(here, pair):
    train("data.views=3", "training.epochs=1", pair)
    log = Path("logs/training.log").read_text(encoding="utf-8")
    assert "WARNING data.views is 3, but slides are encoded anew in every epoch: there are no views" in log
