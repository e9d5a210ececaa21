"""The probability that a caption is right: fitted where validation slides can show it, judged on those left out."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from finetune.evaluation.reliability import calibration_error, resampled
from finetune.evaluation.scoring import Answers
from finetune.models.caption_confidence import CaptionConfidence
from finetune.models.linear_probe import folds_of_groups
from finetune.training.confidence_fit import fit_confidence
from finetune.training.held_out import HeldOutSlides


def held_out(right: list[bool], strength: float = 2.0) -> HeldOutSlides:
    rng = np.random.default_rng(0)
    found = -rng.exponential(1, (len(right), 2)) - strength * (~np.array(right))[:, None]
    answers = Answers(["right" if is_right else "wrong" for is_right in right], [["x", "right"]] * len(right))
    return HeldOutSlides([f"p{i // 2}_{i}" for i in range(len(right))], answers, None, found, 1, False)


@pytest.mark.parametrize("pattern", [None, "^p[0-9]+"])
def test_what_it_is_worth_is_measured_on_slides_whose_patient_did_not_fit_it(pattern, log_lines):
    right = [i % 3 > 0 for i in range(30)]
    slides = held_out(right)
    fitted = fit_confidence(slides, pattern)
    groups = [name.split("_")[0] for name in slides.ids] if pattern else slides.ids
    folds = folds_of_groups(groups, np.random.default_rng(0), 5)
    expected = np.empty(30)
    for row in range(30):
        others = np.flatnonzero(folds != folds[row])
        assert groups[row] not in {groups[i] for i in others}
        model = CaptionConfidence.fit(slides.evidence[others], slides.is_right[others])
        expected[row] = 1 / (1 + math.exp(-(model.bias + sum(model.weights * slides.evidence[row]))))
    assert fitted.left_out == pytest.approx(expected)
    wrong, good = expected[~slides.is_right], expected[slides.is_right]
    area = np.mean([(a < b) + 0.5 * (a == b) for a, b in itertools.product(wrong, good)])
    assert fitted.numbers["auroc"] == pytest.approx(area) and "AUROC" in log_lines[1]
    assert fitted.numbers["auroc_low"] <= area <= fitted.numbers["auroc_high"] <= 1
    assert all(math.isfinite(value) for value in fitted.numbers.values())
    assert fitted.numbers["bias"] == CaptionConfidence.fit(slides.evidence, slides.is_right).bias


@pytest.mark.parametrize(("num_right", "count", "is_fitted"), [(4, 4, False), (2, 4, False), (30, 30, False), (29, 30, True),
                                                               (3, 30, True), (2, 30, False), (0, 30, False), (3, 5, True)])
def test_nothing_is_fitted_to_too_few_slides_no_errors_or_hardly_a_right_caption(num_right, count, is_fitted, log_lines):
    fitted = fit_confidence(held_out([i < num_right for i in range(count)]), None)
    assert (fitted is not None) == is_fitted
    assert is_fitted or log_lines == [f"confidence: the mean probability of the tokens; {num_right} of {count} validation "
                                      "captions are right word for word, which cannot show how right and wrong ones differ "
                                      "(that takes 5 slides, an error, and 10 % right)"]


def test_evidence_that_says_nothing_is_reported(log_lines):
    fit_confidence(held_out([i % 2 == 0 for i in range(40)], strength=-0.5), None)
    assert "says no more than how often captions are right" in log_lines[-1]


def test_the_calibration_error_is_the_mean_gap_of_ten_bins():
    probabilities = np.array([0.05, 0.0, 0.55, 0.57, 0.99, 1.0, 0.3])
    right = np.array([0, 0, 1, 0, 1, 1, 1])
    gaps = [(0.05 + 0.0) - 0, (0.55 + 0.57) - 1, (0.99 + 1.0) - 2, 0.3 - 1]
    assert calibration_error(probabilities, right) == pytest.approx(sum(map(abs, gaps)) / 7)
    assert math.isnan(calibration_error(np.zeros(0), np.zeros(0)))


def test_an_interval_over_slides_covers_the_mean_and_leaves_out_what_is_not_defined():
    values = np.random.default_rng(1).standard_normal(200) + 3
    low, high = resampled(lambda rows: float(values[rows].mean()), 200)
    error = values.std() / math.sqrt(200)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.3 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.3 * error)
    assert all(map(math.isnan, resampled(lambda rows: math.nan, 3)))
    assert resampled(lambda rows: 1.0 if 0 in rows else math.nan, 3) == (1.0, 1.0)
