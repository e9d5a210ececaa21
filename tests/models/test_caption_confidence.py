"""The probability that a caption is right: its evidence and its fit against plain computations."""

from __future__ import annotations

import math

import numpy as np
import pytest

from finetune.models.caption_confidence import CaptionConfidence, evidence
from finetune.models.linear_probe import LinearProbe
from finetune.models.training_texts import SlideVectors, TrainingTexts
from tests.helpers.training import TOKENIZER

TEXTS = ["甲乙", "甲丙", "丁乙", "丁丙"]


def a_training(rng: np.random.Generator) -> tuple[TrainingTexts, np.ndarray]:
    texts = [TEXTS[i] for i in rng.choice(4, 40, p=[0.4, 0.3, 0.2, 0.1])]
    features = np.array([["甲" in t, "乙" in t, 1] for t in texts], np.float32) + rng.standard_normal((40, 3)) * 0.5
    ids = [[TOKENIZER.bos_id, *TOKENIZER.encode(text), TOKENIZER.eos_id] for text in texts]
    return TrainingTexts(texts, None, None, LinearProbe.fit(features, ids), TOKENIZER, 9), features.astype(np.float32)


def test_evidence_is_the_likelihood_and_the_posterior_of_the_probe_over_candidates_and_caption():
    rng = np.random.default_rng(0)
    training, features = a_training(rng)
    captions = ["甲乙", "丁丙", "甲乙丙", "戊"]  # two are training texts
    ids = [TOKENIZER.encode(text) for text in captions]
    slides = SlideVectors(np.zeros((4, 2)), np.zeros((4, 3)), features[:4])
    likelihood = np.array([-0.1, -3.0, 0.0, -200.0])
    found = evidence(likelihood, ids, captions, slides, training)
    assert found[:, 0].tolist() == pytest.approx([-math.log(1 - x) for x in likelihood])
    for row, caption in enumerate(captions):
        scores = {}
        for text in [*TEXTS, caption]:
            token_ids = [TOKENIZER.bos_id, *TOKENIZER.encode(text), TOKENIZER.eos_id]
            prior = training.texts.count(text) or 0.5
            scores[text] = math.exp(training.probe.text_scores(features[row:row + 1], [token_ids])[0, 0]) * prior
        expected = math.log(scores[caption] / sum(scores.values()))
        assert found[row, 1] == pytest.approx(-math.log(1 - expected), abs=1e-4)
    assert np.isfinite(found).all()


def test_without_a_probe_its_evidence_is_0():
    training = TrainingTexts(TEXTS, None, None, None, TOKENIZER, 9)
    slides = SlideVectors(*(np.zeros((1, 2)),) * 3)
    assert evidence(np.array([-1.0]), [[4]], ["甲"], slides, training).tolist() == [[-math.log(2), 0]]


def cost(parameters, found, right) -> float:
    """Written out slide by slide: two more of mean evidence, and half of the squared distance from (1, 2)."""
    mean = found.mean(0)
    total = ((parameters[1] - 1) ** 2 + (parameters[2] - 2) ** 2) / 2
    for (first, second), is_right in [*zip(found, right, strict=True), (mean, True), (mean, False)]:
        p = 1 / (1 + math.exp(-(parameters[0] + parameters[1] * first + parameters[2] * second)))
        total -= math.log(p if is_right else 1 - p)
    return total


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("count", [5, 60])
def test_the_fit_is_the_best_of_those_without_negative_weights(count, sign):
    rng = np.random.default_rng(count)
    found = -rng.exponential(1, (count, 2))
    right = rng.random(count) < 1 / (1 + np.exp(-2 - 3 * sign * found[:, 0]))  # against the evidence, for -1
    fitted = CaptionConfidence.fit(found, right)
    best = np.array([fitted.bias, *fitted.weights])
    assert (fitted.weights >= 0).all() and (sign > 0 or count == 5 or fitted.weights[0] == 0)
    least = cost(best, found, right)
    for _ in range(300):
        other = best + rng.standard_normal(3) * rng.choice([1e-3, 0.1, 1])
        other[1:] = np.maximum(other[1:], 0)
        assert cost(other, found, right) >= least - 1e-9
    probabilities = fitted.probabilities(found)
    assert np.isfinite(probabilities).all() and (probabilities > 0).all() and (probabilities < 1).all()
    again = CaptionConfidence.from_dict(fitted.to_dict() | {"auroc": 0.9})
    assert again.probabilities(found).tolist() == probabilities.tolist()


def test_where_all_are_right_the_probability_is_that_of_laplace_and_never_nan():
    fitted = CaptionConfidence.fit(np.zeros((36, 2)), np.ones(36, bool))
    assert fitted.probabilities(np.zeros((1, 2)))[0] == pytest.approx(37 / 38)
    extreme = fitted.probabilities(np.array([[-1e6, -1e6], [0, 0]]))
    assert np.isfinite(extreme).all() and extreme[0] < 1e-6
