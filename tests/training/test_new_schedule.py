"""Adding a learning-rate schedule is a function with its choice and a config key: the example of the guide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest

from finetune.config.schema import TrainingConfig
from finetune.training import optim
from finetune.training.loop import fit
from finetune.training.optim import warmup_cosine
from finetune.training.state import TrainState
from tests.helpers.training import a_batch, parts_of, tiny_model

# what the guide adds to finetune/training/optim.py

def warmup_linear(step: int, total_steps: int, peak: float, warmup: float) -> float:
    """Linear warm-up to `peak`, then a straight line down to 0 at `total_steps`."""
    warmup_steps = round(warmup * total_steps) if warmup < 1 else int(warmup)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return peak * max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))


def learning_rate_schedule(training: TrainingConfigWithSchedule, total_steps: int) -> Callable[[int], float]:
    schedule = {"cosine": warmup_cosine, "linear": warmup_linear}[training.schedule]
    return partial(schedule, total_steps=total_steps, peak=training.learning_rate, warmup=training.warmup)


# and to TrainingConfig in finetune/config/schema.py, there as
#     schedule: str = _key("cosine", "...", choices=("cosine", "linear"))

@dataclass
class TrainingConfigWithSchedule(TrainingConfig):
    schedule: str = "cosine"


def test_the_loop_trains_at_the_rate_of_a_new_schedule(tmp_path):
    training = TrainingConfigWithSchedule(schedule="linear", learning_rate=1e-2, warmup=2)
    parts = parts_of(tiny_model(), tmp_path, [a_batch(1, 2), a_batch(2, 2), a_batch(3, 2)], epochs=2)
    parts.learning_rate = learning_rate_schedule(training, total_steps=6)
    rates = []
    parts.optimizer.register_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    fit(parts, TrainState())
    assert rates == pytest.approx([0.005, 0.01, 0.01, 0.0075, 0.005, 0.0025])


def test_the_default_of_the_new_key_is_the_current_schedule():
    ours, theirs = (make(TrainingConfigWithSchedule(learning_rate=1e-4), 50) for make in (learning_rate_schedule, optim.learning_rate_schedule))
    assert [ours(step) for step in range(60)] == [theirs(step) for step in range(60)]
