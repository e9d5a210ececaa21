"""A linear probe: which tokens stand in a slide's text, by ridge regression from the mean of its image latents.

Closed form, no training: it shows what the frozen features know without a captioner, and weighs candidate texts.
What it is worth is measured on training slides whose whole group was left out of the fit: slides that overlap, or are
of one patient, would otherwise vouch for each other.

Shapes: N training slides, K of them that are fitted, S slides, D features, W tokens that can be predicted, M texts, F
folds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch

_PENALTIES = 10 ** np.arange(1, 6, 0.5)  # of the ridge, for standardised features
_FOLDS = 8
_MIN_SLIDES = 8  # fewer cannot show what a prediction is worth
_MOST_SLIDES = 5000  # a fold is a system of as many equations as it has slides; these are a random choice of more
_MOST_TOKENS = 2000  # 10 MB of weights at D = 1280
_ROUNDS = 20  # of k-means
_SMALLEST = 1e-6  # standard deviation of a feature that never changes


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe; its arrays are float32, `token_ids` int64.

    A token's presence y is 0 or 1, centred and divided by its standard deviation; on slides of groups left out the
    prediction is `strength * y` plus noise of standard deviation `noise`.

    Attributes:
        mean, std: of the features, (D,).
        weight: (D, W).
        frequency: share of the training texts that have the token, (W,).
        strength, noise: (W,).
        token_ids: (W,).
    """

    mean: np.ndarray
    std: np.ndarray
    weight: np.ndarray
    frequency: np.ndarray
    strength: np.ndarray
    noise: np.ndarray
    token_ids: np.ndarray

    @classmethod
    def fit(cls, features: np.ndarray, token_ids: Sequence[Sequence[int]], groups: Sequence[str] | None = None,
            seed: int = 0) -> LinearProbe | None:
        """Fit a probe to training slides; None if they are too few or no token can be predicted.

        Args:
            features: (N, D), finite.
            token_ids: of each slide's text; order and repeats do not matter.
            groups: of each slide, such as its patient: a group is left out as a whole. None takes clusters of the
                features.
            seed: of the clusters and folds.
        """
        fit = _fit(features, token_ids, groups, seed)
        return fit.probe if fit else None

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Features (S, D) -> what they say about each token, in units of its standard deviation, (S, W)."""
        return (features - self.mean) / self.std @ self.weight

    def text_scores(self, features: np.ndarray, token_ids: Sequence[Sequence[int]]) -> np.ndarray:
        """How probable the tokens of each text are for each slide: log likelihood up to a constant per slide (S, M).

        Naive Bayes: tokens are taken as independent, their predictions as normally distributed.

        Args:
            features: (S, D).
            token_ids: of M texts.
        """
        expected = self._expected(token_ids)
        return self.predict(features) / self.noise @ expected.T - (expected ** 2).sum(1) / 2

    def _expected(self, token_ids: Sequence[Sequence[int]]) -> np.ndarray:
        """The prediction that each of M texts would give without noise, in units of the noise, (M, W)."""
        presence = np.zeros((len(token_ids), len(self.token_ids)), np.float32)
        column = {token: number for number, token in enumerate(self.token_ids.tolist())}
        for row, ids in zip(presence, token_ids, strict=True):
            row[[column[token] for token in set(ids) if token in column]] = 1
        spread = np.sqrt(self.frequency * (1 - self.frequency))
        return (presence - self.frequency) / spread * (self.strength / self.noise)

    def to_dict(self) -> dict[str, torch.Tensor]:
        """Tensors by name, for a file."""
        return {field.name: torch.from_numpy(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> LinearProbe:
        """The probe that `to_dict` gave; `checkpoints.nearest_index` has checked types and shapes."""
        return cls(**{field.name: state[field.name].numpy() for field in fields(cls)})


@dataclass(frozen=True)
class CrossFit:
    """A probe, and what it would be without each of its folds: what it then says of the training slides left out is
    what it says of new slides.

    Attributes:
        kept: Which of the N slides were fitted, sorted, (K,).
        folds: Number of the fold of each, (K,).
        fold_weights: The probe's weights without each fold, (F, D, W) float32.
        residuals: Predictions of the slides by the fit without their fold, less `strength * y`, (K, W) float32.
    """

    probe: LinearProbe
    kept: np.ndarray
    folds: np.ndarray
    fold_weights: np.ndarray
    residuals: np.ndarray

    @classmethod
    def fit(cls, features: np.ndarray, token_ids: Sequence[Sequence[int]], groups: Sequence[str] | None = None,
            seed: int = 0) -> CrossFit | None:
        """As `LinearProbe.fit`, whose arguments these are."""
        fit = _fit(features, token_ids, groups, seed)
        if fit is None:
            return None
        without = [_ridge_weights(fit.features[fit.folds != fold], fit.targets[fit.folds != fold], fit.penalty)
                   for fold in range(fit.folds.max() + 1)]
        residuals = fit.left_out - fit.probe.strength * fit.targets
        return cls(fit.probe, fit.kept, fit.folds, np.stack(without).astype(np.float32), residuals.astype(np.float32))


def predictable_tokens(token_ids: Sequence[Sequence[int]], seed: int = 0) -> np.ndarray:
    """The tokens (W,) that a probe fitted to slides with these texts predicts; none if the slides are too few."""
    kept = fitted_slides(len(token_ids), seed)
    if len(kept) < _MIN_SLIDES:
        return np.zeros(0, np.int64)
    return _presence([token_ids[i] for i in kept])[0]


def fitted_slides(num_slides: int, seed: int = 0) -> np.ndarray:
    """Which of N slides a probe is fitted to, sorted, (K,): all, or a random choice of many."""
    return _choose(num_slides, np.random.default_rng(seed))


class _Fit(NamedTuple):
    """features are standardised, (K, D); targets and left-out predictions are (K, W)."""

    probe: LinearProbe
    kept: np.ndarray
    folds: np.ndarray
    features: np.ndarray
    targets: np.ndarray
    left_out: np.ndarray
    penalty: float


def _fit(features: np.ndarray, token_ids: Sequence[Sequence[int]], groups: Sequence[str] | None,
         seed: int) -> _Fit | None:
    rng = np.random.default_rng(seed)
    kept = _choose(len(features), rng)
    predictable, presence = _presence([token_ids[i] for i in kept])
    if len(kept) < _MIN_SLIDES or not len(predictable):
        return None
    features = features[kept].astype(np.float64)
    mean, std = features.mean(0), np.maximum(features.std(0), _SMALLEST)
    standardised = (features - mean) / std
    folds = _clusters(standardised, rng) if groups is None else folds_of_groups([groups[i] for i in kept], rng)
    frequency = presence.mean(0)
    targets = (presence - frequency) / np.sqrt(frequency * (1 - frequency))
    weight, left_out, penalty = ridge(standardised, targets, folds)
    strength = (left_out * targets).mean(0)  # the targets have variance 1
    noise = np.maximum((left_out - strength * targets).std(0), _SMALLEST)
    arrays = (mean, std, weight, frequency, strength, noise)
    probe = LinearProbe(*(array.astype(np.float32) for array in arrays), predictable)
    return _Fit(probe, kept, folds, standardised, targets, left_out, penalty)


def _choose(num_slides: int, rng: np.random.Generator) -> np.ndarray:
    return np.sort(rng.permutation(num_slides)[:_MOST_SLIDES])


def ridge(features: np.ndarray, targets: np.ndarray, folds: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Ridge regression with the penalty of least squared error on folds that are left out.

    The predictions of a fold without its own slides need no second fit: with H the matrix that maps targets to
    predictions, its residuals are (I - H_ff)^-1 times those of the fit to all (Allen's PRESS for groups).

    Args:
        features: (N, D).
        targets: (N, W).
        folds: number of the fold of each slide, (N,).

    Returns:
        weights (D, W), the left-out predictions (N, W), and the penalty.
    """
    left, singular, right = _thin_svd(features)
    projected = left.T @ targets
    best_error, best = np.inf, (np.zeros(0), np.zeros(0), 0.0)
    for penalty in _PENALTIES:
        shrink = singular ** 2 / (singular ** 2 + penalty)
        residuals = targets - (left * shrink) @ projected
        for fold in np.unique(folds):
            rows = np.flatnonzero(folds == fold)
            hat = (left[rows] * shrink) @ left[rows].T
            residuals[rows] = np.linalg.solve(np.eye(len(rows)) - hat, residuals[rows])
        error = float((residuals ** 2).mean())
        if error < best_error:
            weight = right @ (projected * (singular / (singular ** 2 + penalty))[:, None])
            best_error, best = error, (weight, targets - residuals, float(penalty))
    return best


def _ridge_weights(features: np.ndarray, targets: np.ndarray, penalty: float) -> np.ndarray:
    """The weights (D, W) of one ridge regression, by the smaller of its two systems of equations."""
    count, width = features.shape
    if count < width:
        return features.T @ np.linalg.solve(features @ features.T + penalty * np.eye(count), targets)
    return np.linalg.solve(features.T @ features + penalty * np.eye(width), features.T @ targets)


def _thin_svd(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """U (N, r), s (r,), V (D, r) with matrix = U s V': by the smaller of the two squared forms, which is fast."""
    wide = matrix.shape[0] < matrix.shape[1]
    square = matrix @ matrix.T if wide else matrix.T @ matrix
    values, vectors = np.linalg.eigh(square)
    kept = values > values[-1] * 1e-12
    singular, vectors = np.sqrt(values[kept]), vectors[:, kept]
    if wide:
        return vectors, singular, matrix.T @ vectors / singular
    return matrix @ vectors / singular, singular, vectors


def _presence(token_ids: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that can be predicted (W,), and whether they stand in each text (N, W).

    Left out are tokens of fewer than 2 texts or of all but fewer than 2; of tokens that always stand together, all
    but the first.
    """
    vocabulary = sorted({token for ids in token_ids for token in ids})
    column = {token: number for number, token in enumerate(vocabulary)}
    presence = np.zeros((len(token_ids), len(vocabulary)), bool)
    for row, ids in zip(presence, token_ids, strict=True):
        row[[column[token] for token in ids]] = True
    chosen = _predictable(presence)
    return np.array(vocabulary, dtype=np.int64)[chosen], presence[:, chosen].astype(np.float64)


def _predictable(presence: np.ndarray) -> np.ndarray:
    """The columns of (N, vocabulary) that are kept, sorted; of too many those nearest to half of the texts."""
    counts = presence.sum(0)
    usable = np.flatnonzero((counts >= 2) & (counts <= len(presence) - 2))
    first_of: dict[bytes, int] = {}
    for number in usable.tolist():
        first_of.setdefault(presence[:, number].tobytes(), number)
    chosen = np.array(sorted(first_of.values()), dtype=np.int64)
    imbalance = np.abs(counts[chosen] - len(presence) / 2)
    return np.sort(chosen[np.argsort(imbalance, kind="stable")[:_MOST_TOKENS]])


def _clusters(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """k-means: the number of the cluster of each point (N, D) -> (N,). Near copies fall into one cluster."""
    count = min(_FOLDS, len(points) // 2)
    centres = points[rng.permutation(len(points))[:count]]
    nearest = np.zeros(len(points), np.int64)
    for _ in range(_ROUNDS):
        nearest = ((centres ** 2).sum(1) - 2 * points @ centres.T).argmin(1)
        for number in np.unique(nearest):
            centres[number] = points[nearest == number].mean(0)
    return nearest


def folds_of_groups(groups: Sequence[str], rng: np.random.Generator, count: int = _FOLDS) -> np.ndarray:
    """The number of the fold of each slide (N,): whole groups, dealt out at random to `count` folds or fewer."""
    names = sorted(set(groups))
    fold_of = {names[place]: number % count for number, place in enumerate(rng.permutation(len(names)))}
    return np.array([fold_of[group] for group in groups])
