"""Optimizer and learning-rate schedule.

A schedule is a pure function of the optimizer step: nothing to save, nothing to restore. To add one, write it beside
`warmup_cosine`, choose it in `learning_rate_schedule`, and give `config/schema.py` the key it is chosen by
(worked example: tests/training/test_new_schedule.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import nn

from ..config.schema import TrainingConfig

_BETAS = (0.9, 0.98)  # CLIP's for contrastive training (arXiv 2103.00020, table 19)


def build_optimizer(named_parameters: Iterable[tuple[str, nn.Parameter]], learning_rate: float,
                    weight_decay: float) -> torch.optim.AdamW:
    """AdamW over the parameters that require gradients.

    Weight decay is for matrices only, not for norms, biases and the temperature, which all have less than 2 dimensions.

    Args:
        named_parameters: With the names that a checkpoint saves beside their moments.
    """
    matrices, vectors = [], []
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            (matrices if parameter.ndim >= 2 else vectors).append((name, parameter))
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]  # adapters are all matrices
    return torch.optim.AdamW(groups, lr=learning_rate, betas=_BETAS, fused=True)


def learning_rate_schedule(training: TrainingConfig, total_steps: int) -> Callable[[int], float]:
    """The learning rate as a function of the optimizer step (from 0), for a run of `total_steps` steps."""
    return partial(warmup_cosine, total_steps=total_steps, peak=training.learning_rate, warmup=training.warmup)


def warmup_cosine(step: int, total_steps: int, peak: float, warmup: float) -> float:
    """Linear warm-up to `peak`, then half a cosine down to 0 at `total_steps` (SGDR, arXiv 1608.03983).

    Args:
        step: Optimizer step, from 0.
        warmup: Below 1 a share of `total_steps`, else a number of steps.
    """
    warmup_steps = round(warmup * total_steps) if warmup < 1 else int(warmup)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
