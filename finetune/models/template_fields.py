"""The fields of a caption that follows a template, with their probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from .template_tokens import Decided


@dataclass(frozen=True)
class Field:
    """A slot of a caption.

    Attributes:
        value: None where the slot has none.
        probability: Of the value, given those before it.
        scores: {value: log probabilities of the texts with it}, of those that were scored.
    """

    value: str | None
    probability: float
    scores: dict[str | None, list[float]] = field(default_factory=dict, repr=False)

    def shares(self, temperature: float) -> dict[str | None, float]:
        """{value: probability} of the values that were scored."""
        return {value: probability_of(self.scores, value, temperature) for value in self.scores}


@dataclass(frozen=True)
class FilledTemplate:
    """A text of the template with its fields, {slot: field} in the order of the text."""

    text: str
    fields: dict[str, Field]

    @property
    def probability(self) -> float:
        """Of all fields together."""
        return math.prod(field.probability for field in self.fields.values())


def certain_fields(decided: Decided) -> dict[str, Field]:
    """Fields of slots that have no choice."""
    return {name: Field(value, 1.0, {value: [0.0]}) for name, value in decided}


def chosen_fields(chosen: Decided, scored: Sequence[tuple[Decided, float]], temperature: float) -> dict[str, Field]:
    """The fields of one decision, each with its probability given those before it.

    Args:
        chosen: The slots that the decision is about, with their values.
        scored: What could have been chosen, with its log probability; the chosen values among it.
        temperature: The log probabilities are divided by it.
    """
    fields = {}
    for place, (name, value) in enumerate(chosen):
        scores: dict[str | None, list[float]] = {}
        for decided, score in scored:
            scores.setdefault(decided[place][1], []).append(score)
        fields[name] = Field(value, probability_of(scores, value, temperature), scores)
        scored = [(decided, score) for decided, score in scored if decided[place][1] == value]
    return fields


def probability_of(scores: dict[str | None, list[float]], value: str | None, temperature: float) -> float:
    """The share of a value in {value: log probabilities of its texts}, these divided by a temperature."""
    highest = max(max(found) for found in scores.values())
    mass = {key: sum(math.exp((score - highest) / temperature) for score in found) for key, found in scores.items()}
    return mass.get(value, 0.0) / sum(mass.values())
