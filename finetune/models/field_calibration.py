"""One temperature for the probabilities of all fields, fitted where the right values are known.

Temperature scaling (Guo et al. 2017, https://arxiv.org/abs/1706.04599) of the values of a slot. One number for all
slots: a validation set has too few slides to fit each of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..templates.template import Fields
from .template_fields import Field, probability_of

_TEMPERATURES = [2 ** (k / 8) for k in range(-16, 17)]  # 1/4 to 4 in steps of 9 %
_FOLDS = 5
# A temperature below 1 says "more often right than it says", which only errors can show; with 20 of them their share is
# known to about a fifth of itself.
_LEAST_SLIDES = 20
_LEAST_WRONG = 20
_FLOOR = 1e-6  # probability of a value that the chosen values before it exclude


@dataclass(frozen=True)
class FieldCalibration:
    """What the fields of slides with known values say of their probabilities.

    Attributes:
        temperature: 1 where the slides cannot show that another one is better, and `why` says so.
        num_fields, num_wrong: Fields that have a choice, and those of them that are wrong.
        before, after: Mean negative log likelihood of the right values at 1, and at the temperature on slides that did
            not fit it (at 1 if that is it).
    """

    temperature: float
    num_slides: int
    num_fields: int
    num_wrong: int
    before: float
    after: float
    why: str = ""

    def line(self) -> str:
        """For people."""
        found = (f"field probabilities: {self.num_wrong} of {self.num_fields} fields of {self.num_slides} slides are "
                 "wrong")
        if self.why:
            return f"{found}; not calibrated, {self.why}"
        at_bound = ", the bound" if self.temperature in (_TEMPERATURES[0], _TEMPERATURES[-1]) else ""
        return (f"{found}; calibrated at --field_temperature {self.temperature:.2f}{at_bound} (log loss "
                f"{self.before:.3f} -> {self.after:.3f} on slides that did not fit it)")


Known = list[tuple[Field, str | None]]  # fields of a slide with their right values


def known_fields(fields: Mapping[str, Field], truth: Fields) -> Known:
    """Those fields of a slide that had a choice, with the right values."""
    return [(found, truth[name]) for name, found in fields.items() if len(found.scores) > 1]


def calibrate_fields(slides: Sequence[Known]) -> FieldCalibration:
    """The temperature at which the right values are most probable.

    Args:
        slides: Of each slide, with the scores of all values.
    """
    num_fields = sum(map(len, slides))
    num_wrong = _num_wrong(slides)
    before = _loss(slides, 1.0)
    if len(slides) < _LEAST_SLIDES:
        why = f"as that needs {_LEAST_SLIDES} slides whose text follows the template"
        return FieldCalibration(1.0, len(slides), num_fields, num_wrong, before, before, why)
    best, after = _fitted(slides), _loss_of_left_out(slides)
    if best == 1.0 or after >= before:
        why = "as no other temperature is better on slides that did not fit it"
        return FieldCalibration(1.0, len(slides), num_fields, num_wrong, before, before, why)
    return FieldCalibration(best, len(slides), num_fields, num_wrong, before, after)


def _loss_of_left_out(slides: Sequence[Known]) -> float:
    """As `_loss`, each slide at the temperature that the slides of the other folds give."""
    total = 0.0
    for fold in range(_FOLDS):
        temperature = _fitted([slide for number, slide in enumerate(slides) if number % _FOLDS != fold])
        left_out = slides[fold::_FOLDS]
        total += _loss(left_out, temperature) * len(left_out)
    return total / len(slides)


def _fitted(slides: Sequence[Known]) -> float:
    """Of the temperatures, those below 1 only if there are errors that allow it, the one of lowest loss."""
    allowed = _TEMPERATURES
    if _num_wrong(slides) < _LEAST_WRONG:
        allowed = [temperature for temperature in _TEMPERATURES if temperature >= 1]
    return min(allowed, key=lambda temperature: _loss(slides, temperature))


def _num_wrong(slides: Sequence[Known]) -> int:
    return sum(found.value != right for slide in slides for found, right in slide)


def _loss(slides: Sequence[Known], temperature: float) -> float:
    """Mean over slides of the summed negative log probability of the right values."""
    total = 0.0
    for found, right in (pair for slide in slides for pair in slide):
        total -= math.log(max(_FLOOR, probability_of(found.scores, right, temperature)))
    return total / max(1, len(slides))
