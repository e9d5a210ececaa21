"""A loss function of the user's own: what is refused, and the guide's example in a run."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from finetune.config.schema import Config, apply_overrides
from finetune.training.custom_loss import LossInputs, load_loss, parts_of
from finetune.training.run import check
from tests.helpers.files import ROOT, refused
from tests.helpers.scripts import TINY, assert_one_error, flags, run

INPUTS = LossInputs(*(torch.zeros(()) for _ in range(6)))


@pytest.mark.parametrize("name", ["no_such_module:f", "math:no_such", "math:pi", "math", ":", "a:b:c"])
def test_what_is_no_function_is_refused(name):
    with refused("training.loss", name):
        load_loss(name)


@pytest.mark.parametrize("parts", [torch.zeros(()), {}, {"a": 1.0}, {"a": torch.zeros(2)}, {"loss": torch.zeros(())},
                                   {"bleu_4": torch.zeros(())}, {"best": torch.zeros(())}, {0: torch.zeros(())}])
def test_parts_that_are_no_named_scalars_are_refused(parts):
    with refused("training.loss"):
        parts_of(lambda _: parts, INPUTS)


def test_the_example_of_the_guide_trains_and_its_part_is_logged(data, tmp_path):
    module = "copied_losses"  # a user's my_losses.py in the root would be found where this one is to be missing
    shutil.copy(ROOT / "examples" / "my_losses.py", tmp_path / f"{module}.py")
    options = ["--set", *TINY, f"training.loss={module}:focal", "model.caption_loss_weight=0", "training.accum_freq=2",
               "training.eval_captions=2"]
    result = run("train_finetune.py", *flags(data, "--epochs", 12), *options, cwd=tmp_path, env={"PYTHONPATH": "."})
    assert result.returncode == 0, result.stderr
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    first, last = json.loads(lines[0]), json.loads(lines[-1])
    assert last["focal"] < 0.8 * first["focal"] and last["val_focal"] < first["val_focal"]
    assert last["loss"] == pytest.approx(last["contrastive_loss"] + last["focal"])
    assert abs(last["val_shuffled_gap"]) < last["val_caption_loss"] and "val_bleu_4" in last, "it trains captions"
    best = torch.load(tmp_path / "run" / "best_model.pth", weights_only=True)
    assert best["calibration"]["words"] > 0
    missing = run("train_finetune.py", *flags(data, "--epochs", 1), *options, cwd=tmp_path)
    assert_one_error(missing, "training.loss", module)


def test_check_looks_for_the_loss_too():
    with refused("training.loss", "no_such_module"):
        check(apply_overrides(Config(), ["data.embeddings_dir=a", "data.labels_file=b", "training.loss=no_such_module:f"]))
