"""Scores of the fields of captions, read from captions and references by one template.

Shapes: S slides, C values of a field.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..common.terminal import aligned_lines
from ..templates.template import Fields, Template
from .reliability import calibration_error, resampled
from .scoring import auroc, mean_auroc
from .text_metrics import Statistic

NOT_SAID = ""  # in a confusion table, for a field that a text has no value of; no value is empty
_NO_FIELDS: Fields = {}


@dataclass(frozen=True)
class FieldAnswers:
    """One field over the S slides of which a reference follows the template and the field was answered.

    Attributes:
        name: Of the field.
        values: All that the template allows.
        said, true: Its value in the caption and in the reference of each slide; None where it has none.
        distributions: {value: its probability} for each slide, of the values of which it is known.
        rows: (S,) which of the captions they are.
    """

    name: str
    values: tuple[str, ...]
    said: list[str | None]
    true: list[str | None]
    distributions: list[Mapping[str, float]]
    rows: np.ndarray

    @property
    def probabilities(self) -> np.ndarray:
        """(S,): of the values said; NaN where they are not known."""
        known = zip(self.said, self.distributions, strict=True)
        return np.array([math.nan if value is None else found.get(value, math.nan) for value, found in known], float)

    @property
    def stated(self) -> np.ndarray:
        """(S,): whether the caption or the reference has a value. Where neither has, there is nothing to get right."""
        return np.array([pair != (None, None) for pair in zip(self.said, self.true, strict=True)], dtype=bool)

    @property
    def right(self) -> np.ndarray:
        """(S,): whether the caption has the reference's value, or has none as it does."""
        return np.array([said == true for said, true in zip(self.said, self.true, strict=True)], dtype=bool)

    @property
    def known(self) -> np.ndarray:
        """(S,): whether the caption has a value of known probability."""
        said = np.array([value is not None for value in self.said], dtype=bool)
        return said & ~np.isnan(self.probabilities)

    def statistics(self) -> dict[str, Statistic]:
        """{score: of indices of slides}.

        accuracy: Of the slides where caption or reference has a value.
        macro_f1: Mean over the values that occur of the F1 of each against the rest; having none is no value.
        auroc: Mean over the values that occur of the AUROC of each against the rest, by its probability. Values of
            unknown probability are taken to have equal parts of what the others leave.
        auroc_right: Probability that a right value has a higher probability than a wrong one.
        ece: Expected calibration error of the probabilities.
        """
        right, stated, known, probabilities = self.right, self.stated, self.known, self.probabilities
        spread, true = self._spread(), self._numbers(self.true)
        comparable = known & (true >= 0)

        def over(rows: np.ndarray, score: Callable[[np.ndarray], float]) -> Statistic:
            return lambda indices: score(indices[rows[indices]])

        return {"accuracy": over(stated, lambda rows: float(right[rows].mean()) if len(rows) else math.nan),
                "macro_f1": over(stated, self._macro_f1()),
                "auroc": over(comparable, lambda rows: mean_auroc(spread[rows], true[rows])),
                "auroc_right": over(known, lambda rows: _auroc(probabilities[rows], right[rows])),
                "ece": over(known, lambda rows: calibration_error(probabilities[rows], right[rows]))}

    def confusion(self) -> dict[str, dict[str, int]]:
        """{value of the reference: {value of the caption: slides}}, without what never occurs."""
        table: dict[str, dict[str, int]] = {}
        pairs = Counter(zip(map(_shown, self.true), map(_shown, self.said), strict=True))
        order = {value: number for number, value in enumerate((*self.values, NOT_SAID))}
        for (true, said), count in sorted(pairs.items(), key=lambda item: (order[item[0][0]], order[item[0][1]])):
            table.setdefault(true, {})[said] = count
        return table

    def _numbers(self, chosen: Sequence[str | None]) -> np.ndarray:
        """(S,) indices among `values`, -1 for none."""
        numbers = {value: number for number, value in enumerate(self.values)}
        return np.array([numbers.get(value, -1) for value in chosen], dtype=np.int64)

    def _spread(self) -> np.ndarray:
        """(S, C) probabilities of all values, the unknown ones equal parts of what the known ones leave."""
        spread = np.zeros((len(self.said), len(self.values)))
        for row, known in enumerate(self.distributions):
            unknown = max(1, sum(value not in known for value in self.values))
            left = max(0.0, 1 - sum(known.values())) / unknown
            spread[row] = [known.get(value, left) for value in self.values]
        return spread

    def _macro_f1(self) -> Callable[[np.ndarray], float]:
        """The mean F1 of indices of slides."""
        said, true = self._numbers(self.said), self._numbers(self.true)
        return lambda rows: _mean_f1(said[rows], true[rows], len(self.values))


@dataclass(frozen=True)
class FieldScores:
    """The fields of all captions.

    Attributes:
        fields: In the order of the template.
        rows: (S,) which of the captions were compared.
        captions_off: Captions among them that do not follow the template: they have no value of any field.
        references_off: Slides left out, as none of their references follows it.
        example_off: A reference of the first of these.
    """

    fields: list[FieldAnswers]
    rows: np.ndarray
    captions_off: int
    references_off: int
    example_off: str = ""

    @classmethod
    def of(cls, template: Template, captions: Sequence[str | Fields], references: Sequence[Sequence[str]],
           distributions: Sequence[Mapping[str, Mapping[str, float]]] = (),
           withheld: Sequence[Container[str]] = ()) -> FieldScores:
        """Read captions and references.

        Args:
            template: That the texts follow.
            captions: One per slide: its text, or what it says of the fields.
            references: Texts of each slide; the first that follows the template counts.
            distributions: {field: {value: its probability}} of each slide, as far as they are known.
            withheld: Fields of each slide that were not answered: there is nothing to compare.
        """
        true = [_first_read(template, texts) for texts in references]
        rows = np.array([row for row, fields in enumerate(true) if fields is not None], dtype=np.int64)
        said = {row: _read(template, captions[row]) for row in rows}
        compared = _Compared(template, rows, said, true, distributions, withheld)
        answers = [compared.field(name) for name in template.slots]
        off = sum(fields is None for fields in said.values())
        example = next((texts[0] for texts, fields in zip(references, true, strict=True) if fields is None), "")
        return cls(answers, rows, off, len(true) - len(rows), example)

    def to_dict(self) -> dict[str, Any]:
        """Strict JSON: {"slides", "captions_off_template", "references_off_template", "fields": {name: scores}}."""
        return {"slides": len(self.rows), "captions_off_template": self.captions_off,
                "references_off_template": self.references_off,
                "fields": {field.name: _scores_of(field) for field in self.fields}}


def field_lines(scores: Mapping[str, Any]) -> list[str]:
    """The table of `FieldScores.to_dict` for a terminal."""
    table = [["field", "slides", "accuracy", "macro-F1", "AUROC", "AUROC right/wrong", "ECE"]]
    for name, field in scores["fields"].items():
        numbers = [_cell(field[score]) for score in ("accuracy", "macro_f1", "auroc", "auroc_right", "ece")]
        table.append([name, str(field["slides"]), *numbers])
    head = (f"fields of {scores['slides']} slides; {scores['captions_off_template']} captions do not follow the "
            f"template, {scores['references_off_template']} slides are left out as their texts do not:")
    return [head, *aligned_lines(table)]


def _read(template: Template, caption: str | Fields) -> Fields | None:
    return template.parse(caption) if isinstance(caption, str) else caption


def _first_read(template: Template, texts: Sequence[str]) -> Fields | None:
    read = (template.parse(text) for text in texts)
    return next((fields for fields in read if fields is not None), None)


@dataclass(frozen=True)
class _Compared:
    """What captions and references say, by the numbers of the captions that are compared."""

    template: Template
    rows: np.ndarray
    said: Mapping[int, Fields | None]
    true: Sequence[Fields | None]
    distributions: Sequence[Mapping[str, Mapping[str, float]]]
    withheld: Sequence[Container[str]]

    def field(self, name: str) -> FieldAnswers:
        """One field of all of them."""
        rows = [row for row in self.rows if not self.withheld or name not in self.withheld[row]]
        return FieldAnswers(name, tuple(self.template.slots[name].values),
                            [(self.said[row] or _NO_FIELDS).get(name) for row in rows],
                            [(self.true[row] or _NO_FIELDS).get(name) for row in rows],
                            [self.distributions[row].get(name, {}) if self.distributions else {} for row in rows],
                            np.array(rows, dtype=np.int64))


def _scores_of(field: FieldAnswers) -> dict[str, Any]:
    """{"slides", score: [value, low, high], "confusion"} of a field; None for what is not defined."""
    every_slide = np.arange(len(field.said))
    result: dict[str, Any] = {"slides": int(field.stated.sum())}
    for name, statistic in field.statistics().items():
        value = statistic(every_slide)
        low, high = resampled(statistic, len(every_slide)) if math.isfinite(value) else (math.nan, math.nan)
        result[name] = [round(number, 6) if math.isfinite(number) else None for number in (value, low, high)]
    return result | {"confusion": field.confusion()}


def _mean_f1(said: np.ndarray, true: np.ndarray, num_values: int) -> float:
    """Mean F1 of the values that occur; said and true (S,) are their numbers, -1 for none."""
    counts = [np.bincount(numbers + 1, minlength=num_values + 1)[1:] for numbers in (said, true, said[said == true])]
    in_captions, in_references, in_both = counts
    either = in_captions + in_references
    occurs = either > 0
    return float(np.mean(2 * in_both[occurs] / either[occurs])) if occurs.any() else math.nan


def _auroc(probabilities: np.ndarray, right: np.ndarray) -> float:
    """AUROC of right against wrong; NaN where there is only one kind."""
    return auroc(probabilities, right) if 0 < right.sum() < len(right) else math.nan


def _cell(numbers: Sequence[float | None]) -> str:
    value, low, high = numbers
    if value is None:
        return "-"
    return f"{value:.3f}" + ("" if low is None or high is None else f" [{low:.3f}, {high:.3f}]")


def _shown(value: str | None) -> str:
    return NOT_SAID if value is None else value
