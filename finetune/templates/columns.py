"""Which clauses answer the same question: common clauses of texts of one kind are sorted into columns, and ordered.

Clauses that stand together in a text, or one after the other by way of others, are of different columns. Of the rest,
those are of one column that are alike, or so common that they would stand together had they nothing to do with
each other. C common clauses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

import numpy as np

from .clauses import Clauses, likeness

_T = TypeVar("_T")
_MOST_COMMON = 200  # clauses that are sorted into columns by their order; others are aligned with these
_COMPARED = 8  # values of a column that a clause is compared with
_CERTAIN = 3.0  # texts in which two clauses would be expected together, had they nothing to do with each other
_LIKE, _EXCLUSIVE, _NEEDED, _SAME_PLACE, _BOTH_FIRST = 2.0, 1.5, 1.0, 0.3, 0.9
_FOLLOWS, _FULL = 0.5, 0.1  # that both follow the same clauses, and that the column is in all texts


@dataclass(eq=False)
class Column:
    """Clauses of which a text has one or none.

    Attributes:
        values: The clauses, with the number of texts that have each.
        leads: What stands before them.
    """

    values: Counter[str] = field(default_factory=Counter)
    leads: Counter[str] = field(default_factory=Counter)

    def lead(self) -> str:
        """The most common one; at the beginning of a text there is none."""
        return max((lead for lead in self.leads if lead), key=self.leads.__getitem__, default="")

    def fit(self, clause: str, lead: str, expected: float) -> float:
        """How much speaks for a clause being of this column, provided that no text has it beside one; 0: nothing.

        Args:
            expected: Texts in which it would be beside one by chance.
        """
        # its first values are common ones
        like = max((likeness(clause, value) for value in islice(self.values, _COMPARED)), default=0.0)
        is_usual = lead == self.leads.most_common(1)[0][0]
        return _LIKE * like + _EXCLUSIVE * min(1.0, expected / _CERTAIN) - _NEEDED + _place(lead, is_usual)


def _place(lead: str, is_usual: bool) -> float:
    """What the text before a clause says: nothing else is at the beginning of a text."""
    if not lead:
        return _BOTH_FIRST * is_usual
    return _SAME_PLACE if is_usual else -_SAME_PLACE


def common_columns(texts: Sequence[Clauses], weights: Sequence[int], count: Counter[str]) -> list[Column]:
    """The columns of the most common clauses, in the order of the texts.

    Args:
        count: Number of texts of each clause.
    """
    names = [clause for clause, n in count.most_common(_MOST_COMMON) if n > 1]
    common = _CommonClauses({name: i for i, name in enumerate(names)})
    for text, weight in zip(texts, weights, strict=True):
        common.read(text, weight)
    counts = np.array([count[name] for name in names], dtype=float)
    return _Merging(names, counts, common, sum(weights)).columns()


class _CommonClauses:
    """What texts have of C clauses.

    Attributes:
        leads: What stands before each.
        pairs: (C, C), texts in which the second stands after the first.
        previous: (C, C + 1), texts in which the second stands directly before the first; the last: nothing does.
    """

    def __init__(self, number: dict[str, int]):
        self._number = number
        self.leads: list[Counter[str]] = [Counter() for _ in number]
        self.pairs = np.zeros((len(number), len(number)))
        self.previous = np.zeros((len(number), len(number) + 1))

    def read(self, text: Clauses, weight: int) -> None:
        """Count what a text has, which stands for so many."""
        here: list[int] = []
        for clause, lead in zip(text.questions, text.leads, strict=True):
            number = self._number.get(clause)
            if number is None:
                continue
            self.leads[number][lead] += weight
            self.pairs[here, number] += weight
            self.previous[number, here[-1] if here else -1] += weight
            here.append(number)


class _Merging:
    """Columns that begin with one clause each and are merged two by two, the best two first.

    Attributes:
        members: The clauses of each of the C columns; none once it is part of another.
        after: (C, C), whether the second stands after the first, directly or by way of others.
        together: (C, C), whether a text has both.
    """

    def __init__(self, names: list[str], counts: np.ndarray, common: _CommonClauses, total: int):
        order = _order(common.pairs)
        self.names = _in_order(names, order)
        self.counts, self.total = counts[order], total
        self.leads = _in_order(common.leads, order)
        self.members = [[i] for i in range(len(order))]

        pairs = common.pairs[np.ix_(order, order)]
        self.together = (pairs + pairs.T) > 0
        self.after = _all_after(np.triu(pairs > pairs.T, 1))
        self._previous = common.previous[np.ix_(order, [*order, -1])]
        self._like = _like_table(self.names)
        self._places = _place_table(self.leads)

    def columns(self) -> list[Column]:
        """Merge as long as two columns fit; those that are left."""
        while len(self.names) > 1:
            fit = self._fit()
            first, second = np.unravel_index(fit.argmax(), fit.shape)
            if fit[first, second] <= 0:
                break
            self._merge(int(first), int(second))
        left = [i for i, members in enumerate(self.members) if members]
        # whoever stands after another one has all its predecessors and more
        left.sort(key=lambda i: self.after[:, i].sum())
        return [self._column(i) for i in left]

    def _fit(self) -> np.ndarray:
        """How well columns fit each other, (C, C), as `Column.fit`; -inf where they cannot be one."""
        rivals = ~(self.together | self.after | self.after.T)
        np.fill_diagonal(rivals, False)
        # clauses that may be of the column as well count as its own: thirty organs are rare each, and exclusive
        pool = self.counts[None, :] + (rivals * self.counts) @ rivals.T.astype(float)
        expected = self.counts[:, None] * pool / self.total
        previous = self._previous / np.maximum(np.linalg.norm(self._previous, axis=1, keepdims=True), 1e-9)
        fit = (_LIKE * self._like + _EXCLUSIVE * np.minimum(1, expected / _CERTAIN) - _NEEDED + self._places
               + _FOLLOWS * previous @ previous.T + _FULL * (self.counts[:, None] + self.counts) / self.total)
        return np.where(rivals, np.minimum(fit, fit.T), -np.inf)

    def _merge(self, first: int, second: int) -> None:
        """Make the second a part of the first."""
        self.members[first] += self.members[second]
        self.members[second] = []
        larger = first if self.counts[first] >= self.counts[second] else second
        self._places[first], self._places[:, first] = self._places[larger].copy(), self._places[:, larger].copy()
        self._previous[first] += self._previous[second]
        self._previous[:, first] += self._previous[:, second]
        self._like[first] = np.maximum(self._like[first], self._like[second])
        self._like[:, first] = self._like[first]
        self.counts[first] += self.counts[second]
        self.counts[second] = 0
        self.together[first] |= self.together[second]
        self.together[:, first] |= self.together[:, second]
        later = self.after[first] | self.after[second]
        before = self.after[:, first] | self.after[:, second]
        self.after[first] = later
        self.after[np.ix_(before, later)] = True
        self.after[before, first] = True
        for table in (self.after, self.together):
            table[second] = table[:, second] = False
        self.together[second] = self.together[:, second] = True  # it fits nothing any more

    def _column(self, number: int) -> Column:
        column = Column()
        for member in self.members[number]:
            column.leads.update(self.leads[member])
            column.values[self.names[member]] = self.leads[member].total()
        return column


def _all_after(directly: np.ndarray) -> np.ndarray:
    """(C, C), what stands after each directly or by way of others; the order of the clauses is kept by all."""
    after = directly.copy()
    for i in reversed(range(len(after))):
        after[i] |= after[after[i]].any(0)
    return after


def _like_table(names: Sequence[str]) -> np.ndarray:
    """`likeness` of each two clauses, (C, C)."""
    return np.array([[likeness(one, other) for other in names] for one in names])


def _place_table(leads: Sequence[Counter[str]]) -> np.ndarray:
    """`_place` of each two clauses, (C, C)."""
    usual = [of_clause.most_common(1)[0][0] for of_clause in leads]
    return np.array([[_place(one, one == other) for other in usual] for one in usual])


def _in_order(values: Sequence[_T], order: np.ndarray) -> list[_T]:
    return [values[i] for i in order]


def _order(pairs: np.ndarray) -> np.ndarray:
    """Numbers such that few texts have clauses in another order: next is always who stands after the fewest of
    those that are left (Eades, Lin and Smyth 1993, https://doi.org/10.1016/0020-0190(93)90079-O)."""
    surplus = np.maximum(pairs - pairs.T, 0)
    earlier = surplus.sum(0)
    order = []
    for _ in range(len(pairs)):
        number = int(earlier.argmin())
        order.append(number)
        earlier -= surplus[number]
        earlier[number] = np.inf
    return np.array(order, dtype=int)
