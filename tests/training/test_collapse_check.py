"""Signs of a captioner that ignores its slides."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from finetune.models.captioner import encoded
from finetune.training.collapse_check import CollapseCheck
from finetune.training.loop import fit, train_step
from finetune.training.state import TrainState
from tests.helpers.training import a_batch, parts_of, tiny_model


@torch.no_grad()
def test_the_gap_is_the_loss_with_slides_exchanged_minus_the_loss(tmp_path):
    model, batches = tiny_model(), [a_batch(1, 3, [5, 2, 4]), a_batch(2, 2, [3, 3]), a_batch(3, 1)]
    scores = parts_of(model, tmp_path, validation=batches, observers=[CollapseCheck()]).validate(1)
    model.eval()
    gap = num_tokens = 0
    for batch in batches[:2]:  # one slide alone cannot be exchanged
        order = [len(batch.ids) - 1, *range(len(batch.ids) - 1)]
        other = replace(batch, tile_embeddings=batch.tile_embeddings[order], tile_mask=batch.tile_mask[order])
        gap += (model(other).caption_loss - model(batch).caption_loss).item()
        num_tokens += int(batch.text_mask.sum())
    assert scores["val_shuffled_gap"] == pytest.approx(gap / num_tokens, abs=1e-6)
    assert 1 / 6 <= scores["val_distinct_captions"] <= 1


def test_the_check_changes_no_weight_no_generator_and_no_score(tmp_path):
    model, batches = tiny_model(), [a_batch(1, 3, [5, 2, 4]), a_batch(2, 2)]
    plain = parts_of(model, tmp_path, validation=batches).validate(1)
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    watched = parts_of(model, tmp_path, validation=batches, observers=[CollapseCheck()]).validate(1)
    assert {k: watched[k] for k in plain} == plain and set(watched) - set(plain) == {
        "val_shuffled_gap", "val_distinct_captions"}
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_captioner_that_ignores_its_slides_is_reported_once(tmp_path, log_lines):
    model = tiny_model(contrastive_weight=0.0)
    with torch.no_grad():
        model.decoder.img_queries.zero_()
        for name, p in model.named_parameters():
            if "img_attn_pool" in name or "cross" in name:
                p.zero_()
    parts = parts_of(model, tmp_path, [a_batch(1, 2)], [a_batch(2, 4), a_batch(3, 4)], epochs=3, peak_lr=1e-9,
                     observers=[CollapseCheck(3)])
    fit(parts, TrainState())
    assert sum("hardly changes when slides are exchanged" in line for line in log_lines) == 1
    assert sum("one and the same caption for 8 slides with 8 different texts" in line for line in log_lines) == 1
    assert '"val_shuffled_gap": ' in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8")


def test_a_captioner_that_depends_on_its_slides_gets_no_warning(tmp_path, log_lines):
    model, batch = tiny_model(contrastive_weight=0.0), a_batch(1, 6)
    parts = parts_of(model, tmp_path, [batch], [batch], observers=[CollapseCheck()])
    for _ in range(150):
        train_step(parts, [batch], 1e-2, TrainState())
    scores = parts.validate(1)
    assert scores["val_shuffled_gap"] > 0.3 and scores["val_distinct_captions"] > 0.3
    assert not log_lines


def test_few_references_are_no_reason_to_warn(tmp_path, log_lines):
    parts = parts_of(tiny_model(), tmp_path, validation=[a_batch(1, 1)], observers=[CollapseCheck()])
    assert not any(k.startswith("val_sh") for k in parts.validate(1)) and math.isfinite(parts.validate(2)["val_loss"])
    assert not log_lines


def test_encoded_slides_are_not_encoded_again(tmp_path):
    model, batch = tiny_model(), a_batch(1, 2)
    once = encoded(model, batch)
    assert encoded(model, once) is once and once.image_tokens.shape == (2, 4, 16)
