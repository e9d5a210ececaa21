"""Fits the probability that a caption is right to the captions of the validation slides, and judges it on those of them
that did not fit it.

Shapes: V validation slides, F kinds of evidence.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..common.log import logger
from ..common.score_table import RARELY_EXACT
from ..data.splits import patients
from ..evaluation.reliability import calibration_error, resampled
from ..evaluation.scoring import auroc
from ..models.caption_confidence import CaptionConfidence
from ..models.linear_probe import folds_of_groups
from .held_out import HeldOutSlides

_FOLDS = 5
_LEAST_SLIDES = 5  # one of each fold
_SMALLEST = 1e-9  # a probability, before its logarithm


class FittedConfidence(NamedTuple):
    """What `fit_confidence` found.

    Attributes:
        numbers: `CaptionConfidence.to_dict`, and what it is worth on slides that did not fit it: area under the ROC
            curve of "this caption is wrong" (`auroc`) and expected calibration error (`error`), each with the ends of
            its 95 % interval (`_low`, `_high`), over so many `slides`.
        left_out: For each slide the probability by a fit without its fold, (V,).
    """

    numbers: dict[str, float]
    left_out: np.ndarray


def fit_confidence(slides: HeldOutSlides, group_pattern: str | None) -> FittedConfidence | None:
    """The probability that a caption is right, None where the validation slides cannot show it; logs why.

    Args:
        group_pattern: `data.group_pattern`: slides of a patient are left out together.
    """
    right = slides.is_right
    num_right, count = int(right.sum()), len(right)
    if count < _LEAST_SLIDES or num_right == count or num_right < RARELY_EXACT * count:
        logger.info("confidence: the mean probability of the tokens; %d of %d validation captions are right word for "
                    "word, which cannot show how right and wrong ones differ (that takes %d slides, an error, and %.0f "
                    "%% right)", num_right, count, _LEAST_SLIDES, 100 * RARELY_EXACT)
        return None
    left_out = _left_out(slides.evidence, right, list(patients(slides.ids, group_pattern).values()))
    numbers = CaptionConfidence.fit(slides.evidence, right).to_dict()
    numbers |= {"slides": count, "right": num_right, **_judged(left_out, right)}
    logger.info("confidence: the probability that a caption is right word for word, fitted to %d validation slides, %d "
                "of them right", count, num_right)
    _log_worth(numbers, slides.evidence, left_out, right)
    return FittedConfidence(numbers, left_out)


def _log_worth(numbers: dict[str, float], evidence: np.ndarray, left_out: np.ndarray, right: np.ndarray) -> None:
    """Log what the probability is worth."""
    logger.info("confidence: on slides that did not fit it AUROC of \"this caption is wrong\" %.3f [%.3f, %.3f] "
                "(likelihood alone %.3f), calibration error %.3f [%.3f, %.3f]",
                *(numbers[name] for name in ("auroc", "auroc_low", "auroc_high")), auroc(-evidence[:, 0], ~right),
                *(numbers[name] for name in ("error", "error_low", "error_high")))
    if _loss(left_out, right) >= _loss(np.full(len(right), right.mean()), right):
        logger.warning("confidence: on slides that did not fit it the probability says no more than how often captions "
                       "are right: more validation slides are needed")


def _left_out(evidence: np.ndarray, right: np.ndarray, groups: list[str]) -> np.ndarray:
    """Probabilities by fits without the fold of each slide, (V,); of a single patient by the fit to all."""
    folds = folds_of_groups(groups, np.random.default_rng(0), _FOLDS)
    found = np.empty(len(right))
    for fold in np.unique(folds):
        others = folds != fold if (folds != fold).any() else folds == fold
        rows = folds == fold
        found[rows] = CaptionConfidence.fit(evidence[others], right[others]).probabilities(evidence[rows])
    return found


def _loss(probabilities: np.ndarray, right: np.ndarray) -> float:
    """Mean negative log likelihood."""
    return float(-np.log(np.maximum(np.where(right, probabilities, 1 - probabilities), _SMALLEST)).mean())


def _judged(probabilities: np.ndarray, right: np.ndarray) -> dict[str, float]:
    def area(rows: np.ndarray) -> float:
        has_both = 0 < right[rows].sum() < len(rows)
        return auroc(-probabilities[rows], ~right[rows]) if has_both else np.nan

    def error(rows: np.ndarray) -> float:
        return calibration_error(probabilities[rows], right[rows])

    numbers = {}
    everything = np.arange(len(right))
    for name, statistic in (("auroc", area), ("error", error)):
        low, high = resampled(statistic, len(right))
        numbers |= {name: statistic(everything), f"{name}_low": low, f"{name}_high": high}
    return numbers
