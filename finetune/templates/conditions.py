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
    with_it = _count(has, earlier, weights)
    everywhere = _count(range(len(weights)), earlier, weights)
    ruled_out = _ruled_out(with_it, everywhere)
    if not ruled_out or "" in everywhere.keys() - ruled_out:
        return None
    allowed = everywhere - Counter({value: everywhere[value] for value in ruled_out})
    return Condition(tuple(value for value, _ in allowed.most_common()), is_enough=with_it == allowed,
                     num_ruled_out=everywhere.total() - allowed.total())


def _count(numbers: Iterable[int], earlier: Mapping[int, str], weights: Sequence[int]) -> Counter[str]:
    """{value of the earlier part, empty where there is none: number of texts}."""
    counts: Counter[str] = Counter()
    for i in numbers:
        counts[earlier.get(i, "")] += weights[i]
    return counts


def _ruled_out(with_it: Counter[str], everywhere: Counter[str]) -> set[str]:
    """The values beside which the part never stands although they are frequent."""
    beside = sum(everywhere[value] for value in with_it)
    lack = 1 - (with_it.total() + 0.5) / (beside + 1)  # share of texts that lack it although it may be there
    without = everywhere.keys() - with_it.keys()
    return {value for value in without if lack ** everywhere[value] * len(without) <= _CHANCE}
