"""Captions scored while training, and the choice of the best model by them."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from finetune.common.distributed import World
from finetune.common.run_folder import CAPTIONS
from finetune.config.schema import Config, apply_overrides
from finetune.data.batch import Sample
from finetune.data.slides import SlideFile
from finetune.models.captioner import encoded
from finetune.models.generation import generate
from finetune.training import validation
from finetune.training.caption_validation import CaptionScores, check_monitor, choose_samples, validation_names
from finetune.training.collapse_check import CollapseCheck
from finetune.training.loop import fit, train_step, update_best
from finetune.training.state import TrainState
from finetune.training.validation import ObservedBatch
from tests.helpers.files import refused
from tests.helpers.training import TOKENIZER, a_batch, parts_of, tiny_model


def samples_of(*batches) -> list[Sample]:
    return [Sample(SlideFile(i, f"{i}.h5", "x", 1), row.tolist(), (TOKENIZER.decode(row.tolist()),))
            for b in batches for i, row in zip(b.ids, b.labels, strict=True)]


def observing(samples, folder) -> dict:
    return {"observers": [CollapseCheck(), CaptionScores(samples, TOKENIZER, 8, folder)], "max_length": 8}


def test_each_epoch_writes_and_scores_the_captions_of_the_chosen_slides(tmp_path):
    model, batches = tiny_model(), [a_batch(1, 3), a_batch(2, 2)]
    chosen = samples_of(*batches)[1:4]  # of both batches
    state = torch.get_rng_state()
    scores = parts_of(model, tmp_path, validation=batches, **observing(chosen, tmp_path)).validate(7)
    assert torch.equal(torch.get_rng_state(), state) and set(validation_names("text", "retrieval")) <= set(scores)
    lines = [json.loads(line) for line in (tmp_path / CAPTIONS).read_text(encoding="utf-8").splitlines()]
    assert [(r["epoch"], r["id"]) for r in lines] == [(7, s.slide.slide_id) for s in chosen]
    found = json.loads((tmp_path / "retrieval.json").read_text(encoding="utf-8"))
    cosines = np.array(found["similarity"])
    assert found["ids"] == [r["id"] for r in lines] and cosines.shape == (3, 3) and (abs(cosines) <= 1.0001).all()
    assert (cosines.diagonal() >= cosines.max(1)).mean() <= scores["val_image_to_text_r1"] + 1e-9
    for name in ("rouge_l", "cider", "exact_match"):
        assert scores[f"val_{name}"] == pytest.approx(sum(r["scores"][name] for r in lines) / 3, abs=1e-5)
    assert all(0 < r["confidence"] < 1 and r["references"] == list(s.references) for r, s in zip(lines, chosen, strict=True))
    assert 0 <= scores["val_image_to_text_r1"] <= 1 <= scores["val_text_to_image_median_rank"] <= 3


def test_a_slide_is_decoded_once_for_all_observers_and_the_collapse_check_compares_as_many_tokens_as_without_scores(
        tmp_path, monkeypatch):
    model, batches, rows = tiny_model(), [a_batch(1, 3), a_batch(2, 2)], []
    alone = parts_of(model, tmp_path, validation=batches, observers=[CollapseCheck()]).validate(1)

    def counting(decoder, image_tokens, *args, **kwargs):
        rows.append(len(image_tokens))
        return generate(decoder, image_tokens, *args, **kwargs)

    monkeypatch.setattr(validation, "generate", counting)
    scores = parts_of(model, tmp_path, validation=batches, **observing(samples_of(*batches), tmp_path)).validate(1)
    assert rows == [3, 2] and {name: scores[name] for name in alone} == alone


def test_ranks_together_score_what_one_process_scores(tmp_path):
    model, batches = tiny_model(), [a_batch(1, 3), a_batch(2, 2)]
    chosen = samples_of(*batches)[1:4]
    alone, *ranks = (CaptionScores(chosen, TOKENIZER, 8, tmp_path) for _ in range(3))
    alone.begin(1)
    with torch.no_grad():
        for batch, rank in zip(batches, ranks, strict=True):
            rank.begin(1)
            for evaluation in (alone, rank):
                evaluation.observe(ObservedBatch(model, encoded(model, batch), None, TOKENIZER, 8))
    together = SimpleNamespace(gather=lambda own: [rank._records for rank in ranks], is_main=False)
    assert ranks[1].scores(together) == alone.scores(World())
    assert {r["id"] for r in map(json.loads, (tmp_path / CAPTIONS).read_text(encoding="utf-8").splitlines())} == {
        s.slide.slide_id for s in chosen}


def test_a_captioner_that_has_learned_its_slides_scores_one(tmp_path):
    model, batch = tiny_model(), a_batch(1, 4)
    batch.text[:, 0], batch.labels[:, -1] = 1, 2  # texts that begin and end
    parts = parts_of(model, tmp_path, validation=[batch], **observing(samples_of(batch), tmp_path))
    for _ in range(150):
        train_step(parts, [batch], 1e-2, TrainState())
    scores = parts.validate(1)
    assert scores["val_exact_match"] == scores["val_image_to_text_r1"] == 1 and scores["val_bleu_4"] == pytest.approx(1)


@pytest.mark.parametrize(("monitor", "values", "best"), [
    ("last", [2, 1, 3], 3), ("last", [1, 2, float("nan")], 3),
    ("val_loss", [2, 1, 3], 2), ("val_bleu_4", [0.1, 0.3, 0.3], 2), ("val_image_to_text_median_rank", [5, 6, 4], 3),
    ("val_cider", [0.0, float("nan"), -1], 1), ("val_my_own_part", [3, 1, 2], 2)])
def test_the_best_model_is_chosen_by_any_score(tmp_path, monitor, values, best):
    parts = parts_of(tiny_model(), tmp_path, [a_batch(1, 2)], epochs=3, monitor=monitor)
    parts.validate = lambda epoch: {"val_loss": 1.0, monitor: values[epoch - 1]}
    assert fit(parts, TrainState()).best_epoch == best


def test_the_chosen_slides_do_not_depend_on_their_order():
    samples = samples_of(a_batch(1, 9))
    first, second = choose_samples(samples, 4, 42), choose_samples(samples[::-1], 4, 42)
    assert first == second and len(first) == 4 and choose_samples(samples, 99, 42) != samples[:4]


@pytest.mark.parametrize(("settings", "word"), [
    (["training.monitor=val_blue_4"], "val_bleu_4"), (["training.monitor=val_bleu_4"], "training.eval_captions"),
    (["training.eval_captions=3", "model.caption_loss_weight=0"], "caption_loss_weight"),
    (["training.monitor=val_distinct_captions", "model.caption_loss_weight=0"], "val_distinct_captions")])
def test_a_monitor_that_no_epoch_has_is_refused_before_training(settings, word):
    with refused(word):
        check_monitor(apply_overrides(Config(), settings))
    check_monitor(apply_overrides(Config(), ["training.loss=my.loss:part", "training.monitor=val_part"]))
    with refused("training.monitor", "val_prat", "val_part"):  # whose parts are known after the first epoch
        update_best(TrainState(epoch=1), "val_prat", {"val_loss": 1.0, "val_part": 1.0})
    check_monitor(apply_overrides(Config(), ["training.eval_captions=3", "training.monitor=val_cider"]))
