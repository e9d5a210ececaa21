"""The temperature of the token probabilities, fitted to the validation slides and judged on slides that did not fit it.

Temperature scaling (Guo et al. 2017, https://arxiv.org/abs/1706.04599). Shapes: S slides, K temperatures, B bins.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..common.device import Precision
from ..common.log import logger
from ..data.batch import Batch
from ..data.splits import patients
from ..evaluation.reliability import BINS, bin_of, resampled
from ..models.captioner import SlideCaptioner, encoded
from ..models.linear_probe import folds_of_groups

TEMPERATURES = np.array([2 ** (k / 8) for k in range(-16, 17)])  # 1/4 to 4 in steps of 9 %
_AS_IT_IS = 16  # the place of temperature 1
_FOLDS = 5
# A temperature below 1 says "more often right than it says", which only errors can show: where all is right, the most
# probable temperature is always the lowest. With 20 wrong tokens their share is known to about a fifth of itself.
_LEAST_SLIDES = 20
_LEAST_WRONG = 20


@dataclass(frozen=True)
class TokenSums:
    """Sums over the reference tokens of each of S slides, float64.

    Attributes:
        ids: Of the slides.
        likelihood: Log likelihood of the tokens at each temperature, (S, K).
        count, confidence, right: Number of tokens, their highest probability and how many of those are right, in each
            bin of that probability, (S, K, B).
    """

    ids: list[str]
    likelihood: np.ndarray
    count: np.ndarray
    confidence: np.ndarray
    right: np.ndarray

    @classmethod
    def of(cls, model: SlideCaptioner, precision: Precision, batches: Iterable[Batch]) -> TokenSums:
        """Of slides and their reference texts."""
        ids, rows = [], []
        for batch in _one_by_one(model, precision, batches):
            with precision.autocast():
                logits = model.decoder(batch.text, image_tokens=model.encode(batch), text_mask=batch.text_mask)
            ids += batch.ids
            rows.append(_sums(logits[batch.text_mask].float(), batch.labels[batch.text_mask]))
        arrays = [np.stack(column) for column in zip(*rows, strict=True)] if rows else [np.zeros((0, 1))] * 4
        return cls(ids, *arrays)

    @property
    def num_tokens(self) -> int:
        """Of all slides."""
        return int(self.count[:, 0].sum()) if self.ids else 0

    @property
    def accuracy(self) -> float:
        """Share of the tokens whose most probable choice is right."""
        return float(self.right[:, 0].sum() / self.num_tokens)

    def mean_confidence(self, temperature: int) -> float:
        """Mean highest probability of a token. temperature: its place in `TEMPERATURES`."""
        return float(self.confidence[:, temperature].sum() / self.num_tokens)

    def calibration_error(self, rows: np.ndarray, temperatures: np.ndarray) -> float:
        """Expected calibration error of the tokens of some slides, each at its own temperature.

        Args:
            rows: Indices of the slides, with repeats, (R,).
            temperatures: Their places in `TEMPERATURES`, of all slides, (S,).
        """
        places = rows, temperatures[rows]
        gaps = np.abs((self.confidence[places] - self.right[places]).sum(0))
        return float(gaps.sum() / self.count[places].sum())


def _sums(logits: torch.Tensor, labels: torch.Tensor) -> tuple[np.ndarray, ...]:
    """The sums of `TokenSums` of one slide, from logits (tokens, vocabulary) and labels (tokens,)."""
    is_right = (logits.argmax(-1) == labels).double().cpu().numpy()
    likelihood, sums = [], []
    for temperature in TEMPERATURES.tolist():
        log_probabilities = (logits / temperature).log_softmax(-1)
        likelihood.append(log_probabilities.gather(1, labels[:, None]).sum().item())
        highest = log_probabilities.max(-1).values.exp().double().cpu().numpy()
        bins = bin_of(highest)
        sums.append([np.bincount(bins, weights, BINS) for weights in (np.ones(len(bins)), highest, is_right)])
    return np.array(likelihood), *np.array(sums).transpose(1, 0, 2)


def _one_by_one(model: SlideCaptioner, precision: Precision, batches: Iterable[Batch]) -> Iterator[Batch]:
    """Encoded slides, one at a time: with the 152 000 words of some language models the logits of a text of 256 tokens
    are 160 MB, and calibration holds them three times."""
    for batch in batches:
        with precision.autocast():
            yield from encoded(model, batch.to(precision.device)).split(1)


@torch.no_grad()
def calibrate(model: SlideCaptioner, precision: Precision, batches: Iterable[Batch],
              group_pattern: str | None = None) -> dict[str, float]:
    """The temperature at which the reference texts of the validation slides are most probable; 1 where they cannot
    show that another one is better.

    Args:
        group_pattern: `data.group_pattern`: slides of a patient are left out together.

    Returns:
        `temperature` (1.0 without batches) and `words`, the number of tokens. With batches also the share of tokens
        predicted `right`, their mean highest probability before and after (`confidence_before`, `confidence`), whether
        the temperature is `at_bound`, and, from 2 patients on, the expected calibration error of slides that did not
        fit it, before and after: `error_before`, `error`, with its 95 % interval `error_low`, `error_high`.
    """
    sums = TokenSums.of(model, precision, batches)
    if not sums.num_tokens:
        return {"temperature": 1.0, "words": 0}
    left_out = _left_out(sums, list(patients(sums.ids, group_pattern).values()))
    best = _chosen(sums, left_out)
    judged = {} if left_out is None else _judged(sums, left_out)
    found = {"temperature": float(TEMPERATURES[best]), "words": sums.num_tokens, "right": sums.accuracy,
             "confidence_before": sums.mean_confidence(_AS_IT_IS), "confidence": sums.mean_confidence(best),
             "at_bound": best in (0, len(TEMPERATURES) - 1), **judged}
    _log(found)
    return found


def _fitted(sums: TokenSums, rows: np.ndarray) -> int:
    """The place of the temperature that fits some slides best, as far as they can show it."""
    best = int(sums.likelihood[rows].sum(0).argmax())
    return best if best >= _AS_IT_IS or _can_sharpen(sums, rows) else _AS_IT_IS


def _can_sharpen(sums: TokenSums, rows: np.ndarray) -> bool:
    num_wrong = (sums.count[rows, 0] - sums.right[rows, 0]).sum()
    return len(rows) >= _LEAST_SLIDES and num_wrong >= _LEAST_WRONG


def _left_out(sums: TokenSums, groups: Sequence[str]) -> np.ndarray | None:
    """For each slide the temperature that the patients of other folds fit, (S,); None for a single patient."""
    folds = folds_of_groups(groups, np.random.default_rng(0), _FOLDS)
    if len(set(folds.tolist())) < 2:
        return None
    places = np.empty(len(folds), np.int64)
    for fold in np.unique(folds):
        places[folds == fold] = _fitted(sums, np.flatnonzero(folds != fold))
    return places


def _chosen(sums: TokenSums, left_out: np.ndarray | None) -> int:
    """The temperature to keep, with the reason in the log where it is not the one of highest likelihood."""
    everything = np.arange(len(sums.ids))
    wanted = int(sums.likelihood.sum(0).argmax())
    best = _fitted(sums, everything)
    if best != wanted:
        num_wrong = round((sums.count[:, 0] - sums.right[:, 0]).sum())
        logger.warning("confidence: %d validation slides with %d wrong tokens cannot show that the model is more often "
                       "right than it says (that takes %d and %d): temperature %.2f instead of %.2f",
                       len(everything), num_wrong, _LEAST_SLIDES, _LEAST_WRONG, TEMPERATURES[best],
                       TEMPERATURES[wanted])
    if left_out is None or best == _AS_IT_IS:
        return best
    gain = (sums.likelihood[everything, left_out] - sums.likelihood[:, _AS_IT_IS]).sum()
    if gain > 0:
        return best
    logger.warning("confidence: temperature %.2f does not pay on slides that did not fit it: it stays 1",
                   TEMPERATURES[best])
    return _AS_IT_IS


def _judged(sums: TokenSums, left_out: np.ndarray) -> dict[str, float]:
    everything = np.arange(len(sums.ids))
    before = sums.calibration_error(everything, np.full(len(everything), _AS_IT_IS))
    after = sums.calibration_error(everything, left_out)
    low, high = resampled(lambda rows: sums.calibration_error(rows, left_out), len(everything))
    return {"error_before": before, "error": after, "error_low": low, "error_high": high}


def _log(found: dict[str, float]) -> None:
    logger.info("confidence: %.1f %% of the validation tokens are right; their mean probability is %.1f %%, and "
                "%.1f %% at temperature %.2f", 100 * found["right"], 100 * found["confidence_before"],
                100 * found["confidence"], found["temperature"])
    if "error" in found:
        logger.info("confidence: calibration error of tokens of slides that did not fit it %.4f [%.4f, %.4f], before "
                    "%.4f", *(found[name] for name in ("error", "error_low", "error_high", "error_before")))
    if found["at_bound"]:
        logger.warning("confidence: temperature %.2f is the end of what is tried: the confidence may still be off",
                       found["temperature"])
