"""The table of scores in the model card, from metrics.jsonl of this and of earlier versions."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from finetune.checkpoints.format import Checkpoint
from finetune.checkpoints.model_card import model_card
from finetune.config.schema import Config


def a_checkpoint(path: Path, monitor: str = "val_loss") -> Checkpoint:
    config = Config().to_dict()
    config["training"]["monitor"] = monitor
    return Checkpoint(config=config, tokenizer={"type": "vocab"}, prism={"source": "random"}, data={}, versions={},
                      progress={"epoch": 2, "best_loss": -0.75}, model={"a": torch.zeros(3)}, random_states={},
                      optimizer={}, scaler={}, path=path)


def table(card: str) -> list[str]:
    return [line for line in card.splitlines() if line.startswith("| ")][1:]


def test_the_scores_are_those_of_the_epoch_with_what_they_mean_under_their_current_names(tmp_path):
    lines = [{"epoch": 2, "val_loss": 9}, {"epoch": 1, "val_loss": 8},
             {"epoch": 2, "lr": 1e-4, "my_loss": 0.5, "val_loss": 1.25, "val_meteor": 0.5, "best": True}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"cut', encoding="utf-8")
    assert table(model_card(a_checkpoint(tmp_path / "best_model.pth"), "x")) == [
        "| epoch |  | 2 |", "| my_loss |  | 0.5 |", "| val_loss | loss, lower is better | 1.25 |",
        "| val_token_alignment | token alignment, higher is better | 0.5 |"]


def test_without_the_line_the_card_has_the_best_value_of_the_monitored_score(tmp_path):
    card = model_card(a_checkpoint(tmp_path / "best_model.pth", "val_meteor"), "x")
    assert table(card) == ["| epoch |  | 2 |",
                           "| best_val_token_alignment | token alignment, higher is better | 0.75 |"]
    assert "best_last" not in model_card(a_checkpoint(tmp_path / "best_model.pth", "last"), "x")
    assert "best_val_loss" in model_card(a_checkpoint(tmp_path / "best_model.pth"), "x")


def test_the_card_says_what_takes_away_the_meaning_of_its_scores(tmp_path):
    checkpoint = a_checkpoint(tmp_path / "best_model.pth")
    checkpoint.data = {"texts": {"validation": 7, "also_in_training": 7}}
    card = model_card(checkpoint, "x")
    assert card.index("> **Prism's weights are random (random)") < card.index("> **All 7 validation texts") < card.index("## Scores")
    checkpoint.prism["source"], checkpoint.data = "paige-ai/Prism", {}
    assert "> **" not in model_card(checkpoint, "x")
