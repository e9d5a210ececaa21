"""Each place in a training step where the host waits for the device: how many there are, and that each is needed."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
import torch

from finetune.common.device import Precision
from finetune.data.batch import Batch
from finetune.models.captioner import encoded
from finetune.training.loop import train_step
from finetune.training.objective import Objective, _count_equal_pairs
from finetune.training.state import TrainState
from tests.helpers.training import a_batch, parts_of, tiny_model
from tests.helpers.waits import host_waits

# Of a step: its losses, which must be finite before the weights change; the norm of its gradient, which decides whether
# the step counts; of each micro-batch: which of its positions are tokens, as the caption loss leaves padding out.
PER_STEP = {"tolist at objective.py:_step_losses": 1, "_local_scalar_dense at loop.py:train_step": 1}
PER_MICRO_BATCH = {"nonzero at coca_pytorch.py:outputs": 1}


def loaded(batch: Batch) -> Batch:
    """As the loader gives it: it knows the lengths of its texts."""
    return dataclasses.replace(batch, lengths=batch.text_mask.sum(1).tolist())


def waits_of(parts, batches: list[Batch]) -> Counter:
    """Of a step over encoded slides; masks of tiles stay on the CPU, so what reads them there is no wait."""
    state = TrainState()
    batches = [encoded(parts.model, loaded(batch)) for batch in batches]
    train_step(parts, batches, 1e-3, state)  # makes the state of the optimizer
    with host_waits() as found:
        train_step(parts, batches, 1e-3, state)
    return Counter(found)


@pytest.mark.parametrize("fp16", [False, True])
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_a_step_waits_for_its_losses_and_its_gradient_and_each_micro_batch_for_its_positions(tmp_path, micro_batches, fp16):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0, enabled=fp16)
    parts = parts_of(tiny_model(), tmp_path, [1], scaler=scaler)
    batches = [a_batch(seed, 2, [5, 3]) for seed in range(micro_batches)]
    assert waits_of(parts, batches) == Counter(PER_STEP) + Counter({k: micro_batches * v for k, v in PER_MICRO_BATCH.items()})


@pytest.mark.parametrize(("caption", "contrastive", "positions"), [(0.0, 1.0, 0), (1.0, 0.0, 1)])
def test_a_loss_of_weight_0_waits_for_nothing(tmp_path, caption, contrastive, positions):
    parts = parts_of(tiny_model(caption, contrastive), tmp_path, [1])
    assert waits_of(parts, [a_batch(1, 3)]) == Counter(PER_STEP) + Counter({k: positions for k in PER_MICRO_BATCH})


def test_a_custom_loss_of_two_parts_adds_no_wait(tmp_path):
    parts = parts_of(tiny_model(), tmp_path, [1])
    parts.objective.custom_loss = lambda inputs: {"a": inputs.logits.square().mean(), "b": inputs.image_latents.mean()}
    assert waits_of(parts, [a_batch(1, 3)]) == Counter(PER_STEP) + Counter(PER_MICRO_BATCH)


def test_the_counter_finds_each_kind_of_wait():
    x, mask = torch.arange(4.0), torch.tensor([True, False, True, False])
    for wait in (lambda: x.sum().item(), lambda: float(x[0]), lambda: bool(mask.any()), lambda: x[mask], lambda: x.tolist(),
                 lambda: x.unique(), lambda: x.cpu(), lambda: x.masked_select(mask), lambda: mask.nonzero()):
        with host_waits() as found:
            wait()
        assert found
    with host_waits() as found:
        x[torch.tensor([0, 2])] + (x * mask).sum()
    assert not found


@pytest.mark.parametrize("size", [1, 2, 7, 300])
def test_equal_pairs_are_counted_as_a_plain_loop_counts_them(size):
    groups = torch.randint(-3, 3, (size,), generator=torch.Generator().manual_seed(size)) * (1 << 61)
    listed = groups.tolist()
    assert _count_equal_pairs(groups).item() == sum(a == b for a in listed for b in listed)


@pytest.mark.gpu
def test_on_a_gpu_a_step_waits_no_more_often(tmp_path, recwarn):
    device = torch.device("cuda", 0)
    model = tiny_model().to(device)
    parts = parts_of(model, tmp_path, [1], scaler=torch.amp.GradScaler("cuda"))
    parts.objective = Objective(model, Precision("fp16", device, "test"), parts.objective.world)
    parts.optimizer.param_groups[0]["lr"] = 1e-3
    batches = [loaded(a_batch(seed, 2)).to(device) for seed in range(2)]
    train_step(parts, batches, 1e-3, TrainState())
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        train_step(parts, batches, 1e-3, TrainState())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [w for w in recwarn if "synchronizing CUDA operation" in str(w.message)]
    assert len(waits) <= sum(PER_STEP.values()) + 2 * sum(PER_MICRO_BATCH.values())
