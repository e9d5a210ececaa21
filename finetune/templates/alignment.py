"""Texts of one kind laid below each other: each clause in the column of those that answer the same question."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate

from .clauses import Clauses
from .columns import Column, common_columns

_MOST_COLUMNS = 64
_SKIPPED, _EXACT = -1.5, 3.0
_NEW_COLUMN, _NEW_FOR_ONE = -0.2, -1.2  # the latter for a clause of one text only
_FORBIDDEN = -1e9


class Alignment:
    """Different texts, cut into clauses, in columns.

    Common clauses have their columns from the start; each text is aligned with these, and gets columns of its own for
    clauses that fit none (as a profile in progressive multiple alignment: Feng and Doolittle 1987,
    https://doi.org/10.1007/BF02603120).

    Attributes:
        columns: In the order of the texts.
        places: The column of each clause of each text; None for a text that needs more columns than there may be.
    """

    def __init__(self, texts: Sequence[Clauses], weights: Sequence[int]):
        self.texts, self.weights = texts, weights
        self.places: list[list[Column] | None] = [None] * len(texts)
        self._total = sum(weights)
        self._count: Counter[str] = Counter()
        self._texts_with: dict[str, int] = {}  # a bit for each text
        self._count_clauses()

        self.columns: list[Column] = []
        self._place: dict[Column, int] = {}
        self._texts_of: dict[Column, int] = {}  # a bit for each text
        self._homes: dict[str, list[Column]] = {}
        self._begin_with(common_columns(texts, weights, self._count))

        # texts of common clauses first, long before short
        for i in sorted(range(len(texts)), key=self._order):
            self._align(i)

    def _count_clauses(self) -> None:
        for i, (text, weight) in enumerate(zip(self.texts, self.weights, strict=True)):
            for clause in set(text.questions):
                self._count[clause] += weight
                self._texts_with[clause] = self._texts_with.get(clause, 0) | 1 << i

    def _begin_with(self, columns: list[Column]) -> None:
        """Take the columns of common clauses, or none where these are too many."""
        if len(columns) > _MOST_COLUMNS:
            return
        self.columns = columns
        self._number_columns()
        for column in columns:
            self._texts_of[column] = self._all_with(column.values)
            self._homes |= {clause: [column] for clause in column.values}

    def _number_columns(self) -> None:
        self._place = {column: i for i, column in enumerate(self.columns)}

    def _all_with(self, clauses: Iterable[str]) -> int:
        texts = 0
        for clause in clauses:
            texts |= self._texts_with[clause]
        return texts

    def _order(self, index: int) -> tuple[int, int, int]:
        clauses = self.texts[index].questions
        return sum(self._count[c] < 2 for c in clauses), -len(clauses), -self.weights[index]

    def _align(self, index: int) -> None:
        text = self.texts[index]
        places = self._known_places(text) or self._best_places(text)
        if len(self.columns) + places.count(None) <= _MOST_COLUMNS:
            self.places[index] = self._placed(text, places)

    def _placed(self, text: Clauses, places: Sequence[Column | None]) -> list[Column]:
        """The column of each clause, with new ones made where there is none; the clauses are of these from now on."""
        start = 0
        columns = []
        for i, (clause, lead) in enumerate(zip(text.questions, text.leads, strict=True)):
            column = places[i] or self._new_column(clause, start, places[i:])
            start = self._place[column] + 1
            self._take(column, clause, lead)
            columns.append(column)
        return columns

    def _take(self, column: Column, clause: str, lead: str) -> None:
        """Make a clause one of a column, if it is not."""
        if clause not in column.values:
            column.values[clause] = self._count[clause]
            column.leads[lead] += self._count[clause]
            self._texts_of[column] |= self._texts_with[clause]
            self._homes.setdefault(clause, []).append(column)

    def _new_column(self, clause: str, start: int, following: Sequence[Column | None]) -> Column:
        """A column that begins at place `start` or later and before the first one that follows: after the last one of
        those in between whose values stand before the clause in other texts."""
        end = next((self._place[column] for column in following if column), len(self.columns))
        place = max((j + 1 for j in range(start, end) if self._is_after(clause, self.columns[j])), default=start)
        column = Column()
        self.columns.insert(place, column)
        self._number_columns()
        self._texts_of[column] = 0
        return column

    def _is_after(self, clause: str, column: Column) -> bool:
        """Whether the clause follows one of a column's in the first text with both."""
        common = self._texts_with[clause] & self._texts_of[column]
        if not common:
            return False
        clauses = self.texts[(common & -common).bit_length() - 1].questions
        return any(c in column.values for c in clauses[:clauses.index(clause)])

    def _known_places(self, text: Clauses) -> list[Column | None] | None:
        """The columns of clauses each of which stands in one column only, if these are in order."""
        places: list[Column | None] = []
        position = -1
        for clause in text.questions:
            homes = self._homes.get(clause, ())
            here = self._place[homes[0]] if len(homes) == 1 else -1
            if here <= position:
                return None
            position = here
            places.append(homes[0])
        return places

    def _best_places(self, text: Clauses) -> list[Column | None]:
        """The best alignment of clauses with columns (Needleman and Wunsch 1970); None: a new column."""
        skipped = [_SKIPPED * min(1.0, column.values.total() / self._total) for column in self.columns]
        best = [0.0, *accumulate(skipped)]
        moves = []
        for clause, lead in zip(text.questions, text.leads, strict=True):
            new = _NEW_COLUMN if self._count[clause] > 1 else _NEW_FOR_ONE
            scores = [self._score(clause, lead, column) for column in self.columns]
            best, row = _next_row(best, skipped, new, scores)
            moves.append(row)
        return self._traced(moves)

    def _traced(self, moves: list[list[str]]) -> list[Column | None]:
        places: list[Column | None] = []
        j = len(self.columns)
        for row in reversed(moves):
            while row[j] == "skip":
                j -= 1
            if row[j] == "here":
                j -= 1
                places.append(self.columns[j])
            else:
                places.append(None)
        return places[::-1]

    def _score(self, clause: str, lead: str, column: Column) -> float:
        if clause in column.values:
            return _EXACT
        if self._texts_of[column] & self._texts_with[clause]:
            return _FORBIDDEN
        expected = self._count[clause] * column.values.total() / self._total
        return column.fit(clause, lead, expected) + _NEW_COLUMN


def _next_row(above: list[float], skipped: list[float], new: float, scores: list[float],
              ) -> tuple[list[float], list[str]]:
    """Best scores with one clause more, by the number of columns used, and the last move of each."""
    best, moves = [above[0] + new], ["new"]
    for j, score in enumerate(scores):
        options = ((above[j] + score, "here"), (best[j] + skipped[j], "skip"), (above[j + 1] + new, "new"))
        value, move = max(options)
        best.append(value)
        moves.append(move)
    return best, moves
