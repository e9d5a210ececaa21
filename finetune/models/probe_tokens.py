"""Probe tokens: what a linear probe says of a slide, as tokens that the text attends to beside the pooled image tokens.

The probe is a closed form that hardly overfits, where the captioner learns the same map by gradients and memorises. So
in training a slide's evidence comes from a probe that was fitted without it; and half of the time it is made from the
text instead, with the errors of another slide and the image hidden, which teaches the text half to read evidence.
What it is worth: LOG.md, 2026-11-26.

Shapes: B slides, n image tokens of a slide, D their width, W tokens that the probe predicts, F folds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..data.batch import Batch
from .linear_probe import CrossFit, LinearProbe

_SHARE_MADE = 0.5  # of the slides of a batch whose evidence is made from the text


class Drawn(NamedTuple):
    """How the evidence of B training slides is computed: which weights, and for which slides it is given instead.

    Attributes:
        folds: Index into the weights, (B,).
        is_made: (B,).
        made: (B, W).
    """

    folds: Tensor
    is_made: Tensor
    made: Tensor


class TrainingEvidence:
    """What evidence of training slides is drawn from.

    Attributes:
        weights: Of the probe without each fold, and last of the whole one, (F + 1, D, W).
    """

    def __init__(self, fit: CrossFit, ids: Sequence[str], device: torch.device) -> None:
        """ids: of the N training slides to which the probe was fitted."""
        probe = fit.probe
        weights = [*fit.fold_weights, probe.weight]
        self.weights = torch.stack([torch.from_numpy(weight) for weight in weights]).to(device)
        self._fold_of = {ids[row]: fold for row, fold in zip(fit.kept.tolist(), fit.folds.tolist(), strict=True)}
        tensors = (probe.token_ids, probe.frequency, probe.strength, fit.residuals)
        self._token_ids, self._frequency, self._strength, self._residuals = (
            torch.from_numpy(array).to(device) for array in tensors)

    def draw(self, batch: Batch) -> Drawn:
        """A function of the samples and their epoch alone, so that a resumed run draws the same."""
        is_made, rows, signs = [], [], []
        for draw in batch.draws:
            rng = np.random.default_rng(draw)
            is_made.append(rng.random() < _SHARE_MADE)
            rows.append(int(rng.integers(len(self._residuals))))
            signs.append(float(rng.choice((-1, 1))))
        device, whole = self.weights.device, len(self.weights) - 1
        folds = torch.tensor([self._fold_of.get(i, whole) for i in batch.ids], device=device)
        errors = self._residuals[rows] * torch.tensor(signs, device=device)[:, None]
        made = self._strength * self._presence(batch.to(device)) + errors
        return Drawn(folds, torch.tensor(is_made, device=device), made)

    def _presence(self, batch: Batch) -> Tensor:
        """Whether each token stands in each text, centred and divided by its standard deviation, (B, W)."""
        labels = batch.labels.masked_fill(~batch.text_mask, -1)
        presence = torch.stack([torch.isin(self._token_ids, row) for row in labels]).float()
        return (presence - self._frequency) / (self._frequency * (1 - self._frequency)).sqrt()


class ProbeTokens(nn.Module):
    """`CoCa.img_context`: puts probe tokens before the pooled image tokens.

    Args:
        count: Number of tokens.
        dim: Their width.
        image_dim: D.
        num_predicted: W.
    """

    def __init__(self, count: int, dim: int, image_dim: int, num_predicted: int) -> None:
        super().__init__()
        self.count, self.dim = count, dim
        self.register_buffer("mean", torch.zeros(image_dim))
        self.register_buffer("std", torch.ones(image_dim))
        self.register_buffer("weight", torch.zeros(image_dim, num_predicted))
        self.register_buffer("scale", torch.ones(num_predicted))
        self.register_buffer("token_ids", torch.zeros(num_predicted, dtype=torch.int64))  # what the columns stand for
        self.project = nn.Linear(num_predicted, count * dim, bias=False)
        self.norm = nn.LayerNorm(dim, bias=False)
        self.evidence: TrainingEvidence | None = None  # of the training slides, if this is a training run
        self._drawn: Drawn | None = None

    @torch.no_grad()
    def set_probe(self, probe: LinearProbe) -> None:
        """Take over a fitted probe."""
        for name in ("mean", "std", "weight", "token_ids"):
            getattr(self, name).copy_(torch.from_numpy(getattr(probe, name)))
        # the log likelihood of a text is linear in this: see LinearProbe.text_scores
        self.scale.copy_(torch.from_numpy(probe.strength / probe.noise ** 2))

    @contextmanager
    def training_on(self, batch: Batch) -> Iterator[None]:
        """While open, a forward pass in training mode takes its evidence as drawn for this batch."""
        if self.training and self.evidence:
            self._drawn = self.evidence.draw(batch)
        try:
            yield
        finally:
            self._drawn = None

    def forward(self, image_tokens: Tensor, pooled: Tensor) -> Tensor:
        """image tokens (B, n, D), pooled (B, q, dim) -> (B, count + q, dim)."""
        with torch.autocast(image_tokens.device.type, enabled=False):
            features = (latent_mean(image_tokens.to(self.mean.dtype)) - self.mean) / self.std
            evidence = features @ self.weight if self._drawn is None else self._of_training(features, self._drawn)
            evidence = evidence * self.scale
        if self._drawn is not None:
            pooled = pooled.masked_fill(self._drawn.is_made[:, None, None], 0)
        tokens = self.norm(self.project(evidence.to(self.project.weight.dtype)).unflatten(-1, (self.count, self.dim)))
        return torch.cat([tokens.to(pooled.dtype), pooled], dim=1)

    def _of_training(self, features: Tensor, drawn: Drawn) -> Tensor:
        """Standardised features (B, D) -> evidence (B, W)."""
        by_fold = features @ self.evidence.weights  # (F + 1, B, W)
        left_out = by_fold[drawn.folds, torch.arange(len(features), device=features.device)]
        return torch.where(drawn.is_made[:, None], drawn.made, left_out)


def latent_mean(image_tokens: Tensor) -> Tensor:
    """Mean of the image latents, or the slide embedding if there are no latents: (B, n, D) -> (B, D)."""
    latents = image_tokens[:, 1:] if image_tokens.shape[1] > 1 else image_tokens
    return latents.mean(1)
