"""Optimizer, learning-rate schedule and precision: each a choice made in one place, with its reason."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

_BETAS = (0.9, 0.98)  # CLIP's for contrastive training (arXiv 2103.00020, table 19)


def build_optimizer(named_parameters: Iterable[tuple[str, nn.Parameter]], learning_rate: float,
                    weight_decay: float) -> torch.optim.AdamW:
    """AdamW over what trains; decay on matrices only: not on norms, biases and the temperature (all below 2-D)."""
    # with their names, which are saved beside their moments
    trained = [(name, p) for name, p in named_parameters if p.requires_grad]
    groups = [{"params": [(n, p) for n, p in trained if p.ndim >= 2], "weight_decay": weight_decay},
              {"params": [(n, p) for n, p in trained if p.ndim < 2], "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]  # adapters are all matrices
    return torch.optim.AdamW(groups, lr=learning_rate, betas=_BETAS, fused=True)


def lr_at(step: int, total_steps: int, peak: float, warmup: float) -> float:
    """Learning rate of optimizer step `step` (from 0): linear warm-up, then a cosine to 0 at `total_steps`.

    warmup: below 1 a share of all steps, else their number. A pure function: nothing to save, nothing to restore.
    """
    warm = round(warmup * total_steps) if warmup < 1 else int(warmup)
    if step < warm:
        return peak * (step + 1) / warm
    progress = (step - warm) / max(1, total_steps - warm)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
