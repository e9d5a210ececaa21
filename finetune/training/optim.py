"""Optimizer and learning-rate schedule.

A schedule is a pure function of the optimizer step: nothing to save, nothing to restore. To add one, write it beside
`warmup_cosine`, choose it in `learning_rate_schedule`, and give `config/schema.py` the key it is chosen by
(worked example: tests/training/test_new_schedule.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

from ..config.schema import Config, TrainingConfig

_ADAPTER_RATE, _WHOLE_MODEL_RATE = 2e-4, 2e-5  # usual for LoRA, and for fine-tuning all of a language model
_BETAS = (0.9, 0.98)  # CLIP's for contrastive training (arXiv 2103.00020, table 19)


def build_optimizer(named_parameters: Iterable[tuple[str, nn.Parameter]], learning_rate: float, weight_decay: float,
                    pretrained_factor: float = 1.0) -> torch.optim.AdamW:
    """AdamW over the parameters that require gradients.

    Weight decay is for matrices only, not for norms, biases and the temperature, which all have less than 2 dimensions.

    Args:
        named_parameters: With the names that a checkpoint saves beside their moments.
        pretrained_factor: The learning rate of a language model's adapters or weights, as a multiple of that of the
            rest; the groups of these parameters have it under "lr_factor".
    """
    members: dict[tuple[bool, bool], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            kind = is_of_language_model(name), parameter.ndim < 2
            members.setdefault(kind, []).append((name, parameter))
    groups = []
    for is_pretrained, is_vector in sorted(members):
        group: dict[str, Any] = {"params": members[is_pretrained, is_vector]}
        group["weight_decay"] = 0.0 if is_vector else weight_decay
        if is_pretrained:
            group["lr_factor"] = pretrained_factor
        groups.append(group)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=_BETAS, fused=True)


def configured_optimizer(config: Config, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.AdamW:
    """`build_optimizer` with what `training` says."""
    training = config.training
    return build_optimizer(named_parameters, training.learning_rate, training.weight_decay, pretrained_factor(config))


def pretrained_factor(config: Config) -> float:
    """The learning rate of what trains of a language model as a multiple of `training.learning_rate`; 1 without one."""
    if config.model.language_model is None:
        return 1.0
    default = _ADAPTER_RATE if config.model.lora_rank else _WHOLE_MODEL_RATE
    return (config.training.decoder_learning_rate or default) / config.training.learning_rate


def describe_rates(config: Config) -> str | None:
    """The two learning rates of a run in which a language model trains too; None for other runs."""
    model, rate = config.model, config.training.learning_rate
    if model.language_model is None or (model.freeze_decoder and not model.lora_rank):
        return None
    part = "the adapters" if model.lora_rank else "the weights"
    return (f"peak learning rate {rate:g} for the prefix, {rate * pretrained_factor(config):g} for {part} of the "
            "language model")


def is_of_language_model(name: str) -> bool:
    """Whether a parameter, by its name in a checkpoint, is of a pretrained language model or its adapters."""
    return name.startswith("coca.lm.")


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
