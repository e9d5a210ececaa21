"""Adding a metric is a function and a row: the example of the guide, and that no score lacks its row."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from finetune.common import score_table
from finetune.common.score_table import SCORES, Score, canonical_name, higher_is_better, label, score_names
from finetune.config.schema import Config, apply_overrides, from_dict
from finetune.evaluation import text_metrics
from finetune.evaluation.findings import FindingDictionary
from finetune.evaluation.retrieval import Cosines
from finetune.evaluation.scoring import CAPTIONS, Answers, evaluate
from finetune.training.caption_validation import check_monitor, not_in_log_line
from finetune.training.custom_loss import LossInputs, parts_of
from tests.helpers.files import refused

REFERENCES = [["胃癌，高分化"], ["乳腺癌"], ["胃癌，高分化"], ["肺癌"]]
ALL = Answers(["胃癌，高分化", "胃癌", "乳腺癌", "肺癌"], REFERENCES, texts=["胃癌，高分化", "乳腺癌", "肺癌"],
              similarity=Cosines(np.random.default_rng(0).standard_normal((4, 3)), np.eye(3)), class_probabilities=np.eye(4),
              true_classes=np.arange(4), findings=FindingDictionary.load(["gastric"]))


def first_token(caption: list[str], references: list[list[str]]) -> float:
    """1 where the caption begins with the token that a reference begins with."""
    return float(any(caption[:1] == reference[:1] for reference in references))


@pytest.fixture
def new_metric(monkeypatch) -> None:
    """The additions of the guide: the function with its entry, and the row."""
    monkeypatch.setitem(text_metrics.CAPTION_SCORES, "first_token", first_token)
    row = Score("first_token", "text", "higher", 0, 1, "right first token", "首个词正确的比例")
    monkeypatch.setitem(SCORES, row.name, row)


def test_a_new_metric_is_in_the_table_with_an_interval_and_baselines(new_metric):
    report = evaluate(ALL)
    assert report.columns[CAPTIONS]["first_token"].value == 0.5 and report.columns[CAPTIONS]["first_token"].high > 0.5
    assert any(line.startswith("first_token") for line in report.lines())
    assert set(report.to_dict()["baselines"]["most_common_text"]) >= {"first_token"}


def test_a_new_metric_can_choose_the_best_model_and_is_reserved(new_metric):
    check_monitor(apply_overrides(Config(), ["training.eval_captions=3", "training.monitor=val_first_token"]))
    assert higher_is_better("val_first_token") and "val_first_token" in not_in_log_line("val_loss")
    assert "val_first_token" not in not_in_log_line("val_first_token") and label("val_first_token") == "right first token"
    with refused("training.loss", "first_token"):
        parts_of(lambda _: {"first_token": torch.zeros(())}, LossInputs(*(torch.zeros(()) for _ in range(6))))


def test_every_score_has_a_row_and_every_row_a_score():
    assert list(ALL.statistics()) == score_names("text", "retrieval", "classification", "finding")
    for name, interval in evaluate(ALL).columns[CAPTIONS].items():
        assert SCORES[name].low <= interval.value <= SCORES[name].high or np.isnan(interval.value), name


def test_names_are_used_once():
    names = [name for score in SCORES.values() for name in (score.name, *score.old_names)]
    assert len(names) == len(set(names)) and not set(names) & set(score_table.RECORD_FIELDS)


@pytest.mark.parametrize(("old", "new"), [("meteor", "token_alignment"), ("val_meteor", "val_token_alignment"),
                                          ("val_meteor_exact", "val_token_alignment"), ("my_meteor", "my_meteor")])
def test_old_names_are_read(old, new):
    assert canonical_name(old) == new
    assert higher_is_better(old) == higher_is_better(new) == ("my_" not in old)


def test_an_old_monitor_is_the_same_run_as_the_new_one():
    config = apply_overrides(Config(), ["training.eval_captions=3", "training.monitor=val_meteor"])
    check_monitor(config)
    saved = Config().to_dict()
    saved["training"] |= {"monitor": "val_meteor", "eval_captions": 3}
    assert from_dict(saved, "old.pth").to_dict() == config.to_dict() and config.training.monitor == "val_token_alignment"


def test_losses_and_ranks_are_better_when_lower():
    assert not any(map(higher_is_better, ["val_loss", "caption_loss", "val_my_own_part", "val_image_to_text_median_rank",
                                          "finding_contradictions"]))
    assert all(map(higher_is_better, ["val_shuffled_gap", "val_distinct_captions", "val_bleu_4", "val_text_to_image_r1"]))
