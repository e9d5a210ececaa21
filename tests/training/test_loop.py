"""The loop and its step, against plain versions and with poisoned batches."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from finetune.common.errors import UserError
from finetune.training.loop import fit, train_step
from finetune.training.loss_means import means_of
from finetune.training.optim import warmup_cosine
from finetune.training.resume import saved_state
from finetune.training.run_log import RunLog
from finetune.training.state import TrainState
from tests.helpers.training import a_batch, joined, parts_of, tiny_model


def test_N07_accumulated_uneven_micro_batches_step_like_one_big_batch(tmp_path):
    first, second = a_batch(1, 3, [5, 2, 4]), a_batch(2, 1, [3])
    stepped = []
    for group in ([first, second], [joined(first, second)]):
        model = tiny_model()
        parts = parts_of(model, tmp_path, grad_clip_norm=None)
        # plain SGD: Adam's first step is the sign of the gradient, where rounding decides what is nearly 0
        parts.optimizer = torch.optim.SGD(model.trained_parameters(), lr=1.0)
        train_step(parts, group, 1.0, TrainState())
        stepped.append(model.decoder.state_dict())
    for key, value in stepped[0].items():
        torch.testing.assert_close(value, stepped[1][key], atol=1e-5, rtol=1e-5)


def test_the_reported_losses_are_those_of_the_model(tmp_path):
    batch, model = a_batch(1, 4), tiny_model(caption_weight=2.0, contrastive_weight=0.5)
    encoded = model.image_tokens(batch.tile_embeddings, batch.tile_mask)
    expected = model.decoder.compute_losses(batch.text, batch.labels, text_mask=batch.text_mask, image_tokens=encoded)
    report = train_step(parts_of(model, tmp_path), [batch], 1e-2, TrainState())
    assert report["caption_loss"] == pytest.approx(expected.caption_loss.item(), rel=1e-6)
    assert report["contrastive_loss"] == pytest.approx(expected.contrastive_loss.item(), rel=1e-6)
    assert report["loss"] == pytest.approx(2 * report["caption_loss"] + 0.5 * report["contrastive_loss"], rel=1e-6)


def test_N01_a_poisoned_batch_stops_before_the_weights_see_it_and_names_its_slides(tmp_path):
    model, batch = tiny_model(), a_batch(3, 2)
    batch.tile_embeddings[0, 0, 0] = math.nan
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(UserError, match="not finite at epoch 1, step 1, slides s3_0, s3_1"):
        train_step(parts_of(model, tmp_path), [batch], 1e-2, TrainState())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_N02_an_overflowing_loss_scale_skips_the_step_and_the_schedule_and_is_counted(tmp_path):
    model, state = tiny_model(), TrainState()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=1)
    parts = parts_of(model, tmp_path, scaler=scaler)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    # a gradient that overflows once scaled by 2^127
    for p in model.trained_parameters():
        p.register_hook(lambda g: g * 2.0**20)
    train_step(parts, [a_batch(1, 2)], 1e-2, state)
    assert (state.step, state.skipped) == (0, 1) and scaler.get_scale() == 2.0**126
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with pytest.raises(UserError, match="gradient is not finite"):
        for _ in range(30):
            train_step(parts, [a_batch(1, 2)], 1e-2, state)


def test_N08_validation_is_the_same_however_it_is_batched_and_leaves_no_trace(tmp_path):
    batches = [a_batch(1, 3, [5, 2, 4]), a_batch(2, 2, [3, 3])]
    model = tiny_model(contrastive_weight=0.0)
    model.train()
    random_state = torch.get_rng_state()
    two = parts_of(model, tmp_path, validation=batches).validate(1)
    one = parts_of(model, tmp_path, validation=[joined(*batches)]).validate(1)
    assert two["val_caption_loss"] == pytest.approx(one["val_caption_loss"], rel=1e-5)
    assert model.training and not model.prism.training
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(p.grad is None for p in model.parameters())


def test_N08_a_lone_slide_counts_in_every_mean_but_the_contrastive(tmp_path):
    """A single slide has no negatives, but SigLIP's loss of one pair is not 0."""
    batches = [a_batch(1, 3, [5, 2, 4]), a_batch(2, 1, [3])]
    model = tiny_model(1.0, 0.5)
    parts = parts_of(model, tmp_path, validation=batches)
    parts.objective.custom_loss = lambda inputs: {"own": inputs.labels.float().sum(1).mean()}
    found = parts.validate(1)
    own = [float(b.labels.sum()) for b in batches]
    assert found["val_own"] == pytest.approx(sum(own) / 4)
    first = parts_of(model, tmp_path, validation=batches[:1]).validate(1)
    assert found["val_contrastive_loss"] == pytest.approx(first["val_contrastive_loss"]) and first["val_contrastive_loss"] > 0
    parts.validate.batches[:] = batches[1:]
    assert parts.validate(1)["val_own"] == pytest.approx(own[1])


def test_the_loop_runs_every_batch_at_the_scheduled_rate_and_saves_each_epoch(tmp_path):
    saved, rates, model = [], [], tiny_model()
    batches = [a_batch(i, 2) for i in range(5)]
    parts = parts_of(model, tmp_path, [batches[:2], batches[2:4], batches[4]], [a_batch(9, 2)], saved, epochs=3)
    step = parts.optimizer.step
    parts.optimizer.step = lambda *a, **k: (rates.append(parts.optimizer.param_groups[0]["lr"]), step(*a, **k))[1]
    state = fit(parts, TrainState())
    assert rates == [warmup_cosine(i, 9, 1e-2, 0.0) for i in range(9)]  # 3 steps an epoch
    assert [(s.epoch, s.batches_done, s.step) for s in saved] == [(0, 3, 3), (1, 0, 3), (1, 3, 6), (2, 0, 6), (2, 3, 9), (3, 0, 9)]
    assert all(bool(s.sums) == (s.batches_done > 0) for s in saved), "what is saved before a validation has the epoch's losses"
    assert state.best_loss == min(s.best_loss for s in saved)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_stop_inside_an_epoch_saves_its_position_and_resumes_to_the_same_end(tmp_path):
    batches, ends = [a_batch(i, 2) for i in range(4)], []
    for stop_after in (None, 3):
        folder = tmp_path / str(stop_after)
        folder.mkdir()
        model, saved = tiny_model(), []
        parts = parts_of(model, folder, batches, [a_batch(9, 2)], saved)
        state = TrainState()
        if stop_after:
            parts.stop = lambda state=state, n=stop_after: state.step >= n
            fit(parts, state)
            assert (saved[-1].epoch, saved[-1].batches_done, saved[-1].step) == (0, 3, 3)
            parts.stop = lambda: False
        fit(parts, state)
        ends.append((model.decoder.state_dict(), (folder / "metrics.jsonl").read_bytes()))
    assert ends[0][1] == ends[1][1]
    assert all(torch.equal(v, ends[1][0][k]) for k, v in ends[0][0].items())


def test_the_running_sums_of_a_checkpoint_of_an_earlier_version_are_read():
    old = {"caption_loss": 6.0, "contrastive_loss": 1.0, "words": 3.0, "slides": 2.0}
    sums = saved_state(SimpleNamespace(progress={"sums": old}, path="c.pth")).sums
    assert list(sums) == ["caption_loss", "contrastive_loss", "num_tokens", "num_slides"]
    assert means_of(sums, tiny_model()) == {"loss": 2.5, "caption_loss": 2.0, "contrastive_loss": 0.5}


def test_K20_a_score_of_nan_is_never_the_best(tmp_path):
    model, state = tiny_model(), TrainState(best_loss=1.0, best_epoch=1)
    parts = parts_of(model, tmp_path, [a_batch(1, 2)], [a_batch(2, 2)], epochs=1)
    outputs = model.decoder.outputs
    model.decoder.outputs = lambda *a, **k: replace(
        found := outputs(*a, **k), caption_loss=found.caption_loss * (1.0 if model.training else math.nan))
    assert fit(parts, state).best_epoch == 1


def test_a_shortened_metrics_file_is_not_filled_with_zero_bytes(tmp_path, log_lines):
    log = RunLog(tmp_path)
    log.path.write_bytes(b"123\n")
    log.truncate(9)
    assert log.path.read_bytes() == b"123\n" and any("has lost 5 bytes" in line for line in log_lines)
    log.truncate(2)
    assert log.path.read_bytes() == b"12"
