"""A custom loss: what is refused, and the guide's example in a run."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch

from finetune.config.schema import Config, apply_overrides
from finetune.training.custom_loss import LossInputs, load_loss, parts_of, try_loss
from finetune.training.run import check
from tests.helpers.files import ROOT, refused
from tests.helpers.scripts import TINY, assert_one_error, flags, run

# Found nowhere else: the scripts look into their own folder first, where a user may keep a my_losses.py.
MODULE = "losses_of_this_test"
INPUTS = LossInputs(*(torch.zeros(()) for _ in range(6)))


@pytest.mark.parametrize("name", ["no_such_module:f", "math:no_such", "math:pi", "math", ":", "a:b:c"])
def test_anything_but_a_function_is_refused(name):
    with refused("training.loss", name):
        load_loss(name)


@pytest.mark.parametrize("parts", [torch.zeros(()), {}, {"a": 1.0}, {"a": torch.zeros(2)}, {"loss": torch.zeros(())},
                                   {"bleu_4": torch.zeros(())}, {"best": torch.zeros(())}, {0: torch.zeros(())}])
def test_parts_that_are_not_named_scalars_are_refused(parts):
    with refused("training.loss"):
        parts_of(lambda _: parts, INPUTS)


@pytest.mark.parametrize("signature", ["pred, target", "", "inputs, *, weight", "*, inputs"])
def test_a_loss_that_does_not_take_one_argument_is_refused_when_it_is_loaded(tmp_path, monkeypatch, signature):
    (tmp_path / f"{MODULE}.py").write_text(f"def f({signature}):\n    return {{}}", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    with refused("training.loss", f"takes ({signature})", "one LossInputs", "def f(inputs: LossInputs) -> dict[str, Tensor]"):
        load_loss(f"{MODULE}:f")


@pytest.mark.parametrize("signature", ["inputs", "inputs, weight=2", "*inputs", "inputs, **more"])
def test_a_loss_that_can_be_called_with_one_argument_is_loaded(tmp_path, monkeypatch, signature):
    (tmp_path / f"{MODULE}.py").write_text(f"def f({signature}):\n    return {{}}", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    assert load_loss(f"{MODULE}:f").__name__ == "f"
    assert load_loss("math:hypot").__name__ == "hypot", "a function in C, of which nothing is known"


def test_a_trial_call_gets_the_inputs_of_training_and_keeps_the_random_state():
    def loss(inputs):
        assert inputs.logits.shape == (2, 8, 11) and inputs.labels.max() < 11 and inputs.text_mask.dtype is torch.bool
        assert inputs.text_latents.shape == inputs.image_latents.shape == (2, 4)
        torch.testing.assert_close(inputs.text_latents.norm(dim=1), torch.ones(2))
        total = inputs.logits.sum() + inputs.text_latents.sum() * inputs.image_latents.sum() * inputs.logit_scale
        return {"a": torch.autograd.grad(total, inputs.logits)[0].sum()}

    before = torch.get_rng_state()
    try_loss(loss, 11, 4, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loss_that_fails_or_returns_something_else_is_refused_by_the_trial():
    with refused("training.loss", "failed on random inputs", "AttributeError", "no attribute 'pred'"):
        try_loss(lambda inputs: inputs.pred, 11, 4, torch.device("cpu"))
    with refused("training.loss", "returned Tensor"):
        try_loss(lambda inputs: inputs.logits.mean(), 11, 4, torch.device("cpu"))


@pytest.mark.parametrize(("code", "words"), [
    ("def custom_loss(pred, target):\n    return (pred - target) ** 2", "takes (pred, target)"),
    ("def custom_loss(inputs):\n    return inputs.logits.mean()", "returned Tensor")], ids=["signature", "result"])
def test_a_loss_of_another_form_ends_a_run_before_any_work(data, tmp_path, code, words):
    (tmp_path / f"{MODULE}.py").write_text(code, encoding="utf-8")
    result = run("train_finetune.py", *flags(data, "--set", *TINY, f"training.loss={MODULE}:custom_loss",
                                             f"data.latents_cache={tmp_path}/cache"),
                 cwd=tmp_path, env={"PYTHONPATH": ".", "PYTHONDONTWRITEBYTECODE": "1"})
    assert_one_error(result, "training.loss", words)
    assert [path.name for path in tmp_path.iterdir()] == [f"{MODULE}.py"]


@pytest.mark.full
def test_the_example_of_the_guide_trains_and_its_part_is_logged(data, tmp_path):
    shutil.copy(ROOT / "examples" / "my_losses.py", tmp_path / f"{MODULE}.py")
    options = ["--set", *TINY, f"training.loss={MODULE}:focal", "model.caption_loss_weight=0", "training.accum_freq=2",
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
    assert_one_error(missing, "training.loss", MODULE)


@pytest.mark.parametrize(("loss", "words"), [("no_such_module:f", "no_such_module"), (f"{MODULE}:f", "failed on random")])
def test_check_tries_the_loss_too(data, tmp_path, monkeypatch, loss, words):
    (tmp_path / f"{MODULE}.py").write_text("def f(inputs):\n    return {'a': inputs.target}", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    with refused("training.loss", words):
        check(apply_overrides(Config(), [f"data.embeddings_dir={data}/embeddings", f"data.labels_file={data}/labels.json",
                                         f"training.loss={loss}"]))
