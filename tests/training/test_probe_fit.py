"""Probe tokens through a whole run: what is fitted, saved, exported and refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from finetune.checkpoints.format import Checkpoint, read_pth
from finetune.checkpoints.hf_folder import write_folder
from finetune.config.schema import Config, apply_overrides, from_dict
from finetune.data.slides import open_case
from finetune.inference.captioner import Captioner
from finetune.training import run
from prism import GenerationOptions
from tests.helpers import kill_runs
from tests.helpers.files import refused, write_json

MODULE = "coca.img_context."


def train(*more: str) -> Checkpoint:
    assert run.train(apply_overrides(Config(), [*kill_runs.SETTINGS, "model.probe_tokens=2", *more])) == 0
    return Checkpoint.load("run/best_model.pth")


@pytest.mark.parametrize("patient", ["null", "s(.)"], ids=["clusters", "patients"])  # s1 and s10 to s13 are one
def test_the_probe_in_the_decoder_is_that_of_the_training_slides(here, patient):
    checkpoint = train("data.views=3", f"data.group_pattern={patient}")
    assert checkpoint.config["model"]["probe_tokens"] == 2 and "probe_tokens: 2" in Path("run/config.yaml").read_text()
    probe = read_pth(Path("run/nearest.pt"))["probe"]  # fitted after training, to what the trained model reads
    for name in ("mean", "std", "weight"):
        torch.testing.assert_close(checkpoint.model[MODULE + name], probe[name], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(checkpoint.model[MODULE + "scale"], probe["strength"] / probe["noise"] ** 2, rtol=1e-4, atol=1e-5)
    words, slides = len(probe["token_ids"]), checkpoint.data["slides"]["training"]
    assert checkpoint.model[MODULE + "project.weight"].shape == (2 * 16, words)
    assert f"linear probe fitted to {slides} training slides: {words} text tokens" in Path("logs/training.log").read_text(encoding="utf-8")


def test_a_checkpoint_and_its_export_caption_alike_without_the_run_folder(here):
    train()
    write_folder(Path("run/best_model.pth"), Path("exported"))
    Path("run/nearest.pt").unlink()
    files = sorted((here.parent / "h5").glob("*.h5"))[:4]
    slides = [open_case(path.stem, [[str(path)]], None, kill_runs.WIDTH, None) for path in files]
    answers = [Captioner.load(path, prism="tiny", device="cpu").describe(slides, [], GenerationOptions(max_length=20))
               for path in ("run/best_model.pth", "exported")]
    assert answers[0] == answers[1] and all(record["caption"] for record in answers[0])
    changed = read_pth(Path("run/best_model.pth"))
    changed["model"][MODULE + "scale"] *= -50
    torch.save(changed, "run/changed.pth")
    other = Captioner.load("run/changed.pth", prism="tiny", device="cpu").describe(slides, [], GenerationOptions(max_length=20))
    assert [r["confidence"] for r in other] != [r["confidence"] for r in answers[0]], "the decoder reads the probe"


@pytest.mark.parametrize(("pair", "words"), [
    ("data.latents_cache=null", ("model.probe_tokens", "encoded in every epoch", "set model.probe_tokens=0")),
    ("prism.freeze=false", ("model.probe_tokens", "encoded in every epoch")),
    ("data.max_tiles=2", ("model.probe_tokens", "encoded in every epoch"))])
def test_a_run_that_cannot_fit_a_probe_is_refused_before_it_writes(here, pair, words):
    with refused(*words):
        train(pair)
    assert not Path("run").exists() or not any(Path("run").glob("*.pth"))


def test_texts_that_no_probe_can_predict_are_refused_and_auto_leaves_them_alone(here):
    write_json(here.parent / "labels.json", {f"s{i}": "腺癌。" for i in range(14)})
    with refused("model.probe_tokens", "can predict nothing", "set model.probe_tokens=0"):
        train()
    assert train("model.probe_tokens=auto").config["model"]["probe_tokens"] == 0


def test_checkpoints_from_before_there_were_probe_tokens_have_none():
    values = Config().to_dict()
    del values["model"]["probe_tokens"]
    assert from_dict(values, "c.pth").model.probe_tokens == 0


def test_a_checkpoint_whose_probe_tokens_are_not_those_it_declares_is_refused(here):
    train("training.epochs=1")
    for change in ({"count": 3}, {"weight": torch.zeros(())}, {"weight": torch.zeros(16, 99)}, {"weight": None}):
        content = read_pth(Path("run/best_model.pth"))
        content["config"]["model"]["probe_tokens"] = change.get("count", 2)
        if change.get("weight", ...) is None:
            del content["model"][MODULE + "weight"]
        elif "weight" in change:
            content["model"][MODULE + "weight"] = change["weight"]
        torch.save(content, "changed.pth")
        with refused("changed.pth", "not of the model it describes"):
            Captioner.load("changed.pth", prism="tiny", device="cpu")
