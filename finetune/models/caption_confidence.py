"""How probable it is that a caption is right, word for word: a small logistic model of the validation slides.

The likelihood of a caption says how sure the decoder is, but not how often it is right, nor whether the slide supports
it: a linear probe of the slide that never saw the caption is a second witness. Both together tell wrong captions from
right ones better than either alone (LOG.md, 2026-11-26, "Confidence"). Few slides hardly move the weights from what
they were on other data, and where nearly all captions are right, the next one may be wrong (Laplace's rule).

Shapes: S slides, M candidate texts, F kinds of evidence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from .training_texts import SlideVectors, TrainingTexts

EVIDENCE = ("likelihood", "probe")  # F, each the greater the more it speaks for the caption
_PRIOR = np.array([1.0, 2.0])    # weights (F,), rounded down from fits to other data: 1.9 to 2.2, 2.6 to 3.8
_RIDGE = 1.0  # penalty of the squared distance of the weights from them; 30 slides speak about as loud
_MOST_STEPS = 100
_UNSEEN = 0.5  # slides with a text that no training slide has, for its prior


def evidence(log_likelihood: np.ndarray, captions: Sequence[Sequence[int]], texts: Sequence[str], slides: SlideVectors,
             training: TrainingTexts) -> np.ndarray:
    """What speaks for the captions of S slides, (S, F).

    Args:
        log_likelihood: Of each caption, summed over its tokens, at temperature 1, (S,).
        captions: Their token ids without begin and end token.
        texts: The same as texts.
        slides: The vectors of the slides.
        training: What looks up texts; without a probe its evidence is 0.
    """
    found = np.zeros((len(texts), len(EVIDENCE)))
    found[:, 0] = _compressed(log_likelihood)
    if training.probe is not None:
        found[:, 1] = _compressed(_log_posterior(captions, texts, slides, training))
    return found


def _compressed(log_probability: np.ndarray) -> np.ndarray:
    """Between sure and doubtful small differences count, among hopeless ones only orders of magnitude."""
    return -np.log1p(-np.minimum(log_probability, 0.0))


def _log_posterior(captions: Sequence[Sequence[int]], texts: Sequence[str], slides: SlideVectors,
                   training: TrainingTexts) -> np.ndarray:
    """Log probability by the probe that each slide's caption is its text, among the candidates and itself, (S,)."""
    tokenizer = training.tokenizer
    ids = [[tokenizer.bos_id, *caption, tokenizer.eos_id] for caption in captions]
    own = training.probe.text_scores(slides.latent_mean, ids).diagonal().astype(np.float64)
    own = own + np.log([training.counts.get(text, _UNSEEN) for text in texts])
    scores = training.probe_scores(slides).astype(np.float64)  # (S, M)
    for row, text in enumerate(texts):
        if text in training.candidate_places:  # it stands among the candidates: not to be counted twice
            scores[row, training.candidate_places[text]] = -np.inf
    highest = np.maximum(scores.max(1), own)
    return own - highest - np.log(np.exp(scores - highest[:, None]).sum(1) + np.exp(own - highest))


@dataclass(frozen=True)
class CaptionConfidence:
    """probability = sigmoid(bias + evidence . weights); no weight is negative.

    Attributes:
        weights: (F,).
    """

    bias: float
    weights: np.ndarray

    @classmethod
    def fit(cls, found: np.ndarray, right: np.ndarray) -> CaptionConfidence:
        """Logistic regression towards the prior weights, with one right and one wrong slide of mean evidence added.

        The best of all fits that leave out some kinds of evidence, without a negative weight: that is the optimum, as
        the penalised likelihood is concave.

        Args:
            found: Evidence (S, F) of at least one slide.
            right: Whether each caption is right, (S,).
        """
        points = np.concatenate([found, np.repeat(found.mean(0, keepdims=True), 2, axis=0)])
        points = np.column_stack([np.ones(len(points)), points])
        targets = np.concatenate([right, [True, False]]).astype(np.float64)
        best, best_cost = np.zeros(1 + len(_PRIOR)), np.inf
        for chosen in product((False, True), repeat=len(_PRIOR)):
            fitted = _newton(points, targets, np.array([True, *chosen]))
            cost = _cost(fitted, points, targets)
            if cost < best_cost and (fitted[1:] >= 0).all():
                best, best_cost = fitted, cost
        return cls(float(best[0]), best[1:])

    def probabilities(self, found: np.ndarray) -> np.ndarray:
        """Evidence (S, F) -> that each caption is right, (S,)."""
        return _sigmoid(self.bias + found @ self.weights)

    def to_dict(self) -> dict[str, float]:
        """Numbers by name, for a file."""
        return {"bias": self.bias, **dict(zip(EVIDENCE, self.weights.tolist(), strict=True))}

    @classmethod
    def from_dict(cls, numbers: Mapping[str, Any]) -> CaptionConfidence:
        """What `to_dict` gave, possibly with more beside it; `checkpoints.nearest_index` has checked it."""
        return cls(float(numbers["bias"]), np.array([float(numbers[name]) for name in EVIDENCE]))


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(values, -60, 60)))


def _cost(parameters: np.ndarray, points: np.ndarray, targets: np.ndarray) -> float:
    """Negative log likelihood and penalty of bias and weights (1 + F,); points (S, 1 + F), targets (S,)."""
    values = points @ parameters
    likelihood = (targets * values - np.logaddexp(0, values)).sum()
    return float(_RIDGE / 2 * ((parameters[1:] - _PRIOR) ** 2).sum() - likelihood)


def _newton(points: np.ndarray, targets: np.ndarray, free: np.ndarray) -> np.ndarray:
    """The parameters (1 + F,) of least cost, of which only the free ones, (1 + F,), are not 0; damped Newton steps."""
    parameters = np.where(free, [0.0, *_PRIOR], 0.0)
    penalty = np.array([0.0] + [_RIDGE] * len(_PRIOR))
    for _ in range(_MOST_STEPS):
        expected = _sigmoid(points @ parameters)
        slope = points.T @ (expected - targets) + penalty * (parameters - [0.0, *_PRIOR])
        curvature = (points.T * (expected * (1 - expected))) @ points + np.diag(penalty)
        step = np.zeros(len(free))
        step[free] = np.linalg.solve(curvature[np.ix_(free, free)], slope[free])
        size = 1.0
        while size > 1e-6 and _cost(parameters - size * step, points, targets) > _cost(parameters, points, targets):
            size /= 2
        parameters = parameters - size * step
        if np.abs(size * step).max() < 1e-9:
            break
    return parameters
