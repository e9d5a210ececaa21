"""Conditions of a template: a part that stands only beside certain values of an earlier one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

_CHANCE = 0.01  # that a value would so often lack the part if it had it as often as others


@dataclass(frozen=True)
class Condition:
    """A part stands only where an earlier one has one of these values.

    Attributes:
        is_enough: Whether all texts with one of the values have the part.
        num_ruled_out: Texts with another value, or none.
    """

    values: tuple[str, ...]
    is_enough: bool
    num_ruled_out: int


def condition(has: Iterable[int], earlier: Mapping[int, str], weights: Sequence[int]) -> Condition | None:
    """The condition on an earlier part under which a part stands, None if there is none.

    Values beside which it never stands rule it out if they are so frequent that this is no chance.

    Args:
        has: Numbers of the texts with the part.
        earlier: {number of the text: value of the earlier part}.
        weights: Of all texts.
    """
    with_it: Counter[str] = Counter()
    for i in has:
        with_it[earlier.get(i, "")] += weights[i]
    everywhere: Counter[str] = Counter()
    for i, weight in enumerate(weights):
        everywhere[earlier.get(i, "")] += weight
    beside = sum(everywhere[value] for value in with_it)
    lack = 1 - (with_it.total() + 0.5) / (beside + 1)  # share of texts that lack it although it may be there
    without = [value for value in everywhere if value not in with_it]
    ruled_out = {value for value in without if lack ** everywhere[value] * len(without) <= _CHANCE}
    if not ruled_out or ("" in everywhere and "" not in ruled_out):
        return None
    allowed = tuple(value for value, _ in everywhere.most_common() if value not in ruled_out)
    is_enough = with_it.total() == sum(everywhere[value] for value in allowed)
    return Condition(allowed, is_enough, sum(everywhere[value] for value in ruled_out))
