"""The ways on from a place as a trie over tokens, searched from the most probable beginning on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

_TOGETHER = 8  # leaves below a node that are scored in one pass, without passes for the branchings between


@dataclass(frozen=True)
class OpenNode:
    """Ways that share their first tokens.

    Attributes:
        low, high: Of the ways in sorted order.
        depth: Number of shared tokens behind the place.
        log_probability: Of the shared tokens: none of the ways has more.
    """

    low: int
    high: int
    depth: int
    log_probability: float

    def bound(self, temperature: float, highest: float) -> float:
        """At most so much is the sum of (p / highest p) ** (1 / temperature) over its ways.

        By Jensen's inequality, equal shares give the largest sum where the exponent is below 1.
        """
        ways = self.high - self.low
        return ways ** max(0.0, 1 - 1 / temperature) * math.exp((self.log_probability - highest) / temperature)


@dataclass(frozen=True)
class Expansion:
    """What to score of a node: the tokens down to its next branching, or all its ways.

    Attributes:
        branching: Ids down to the branching, those before the place included; None for ways.
        next_ids: The tokens that follow there.
        leaves: Numbers of the ways.
    """

    branching: tuple[int, ...] | None
    next_ids: tuple[int, ...]
    leaves: tuple[int, ...]


class TokenTrie:
    """Sequences of ids in sorted order; a node is a range of them."""

    def __init__(self, sequences: Sequence[tuple[int, ...]], place: int) -> None:
        """
        Args:
            sequences: All with the same first `place` ids; none begins another one.
            place: Where they may begin to differ.
        """
        self._order = sorted(range(len(sequences)), key=lambda number: sequences[number])
        self._ids = [sequences[number] for number in self._order]
        self._place = place

    def first(self, front: Mapping[int, float]) -> list[OpenNode]:
        """The nodes of the first tokens, or one of all ways where these are not known.

        Args:
            front: {token: log probability}.
        """
        if not front:
            return [OpenNode(0, len(self._ids), 0, 0.0)]
        return self._split(0, len(self._ids), 0, 0.0, front)

    def children(self, node: OpenNode, log_probability: float, front: Mapping[int, float]) -> list[OpenNode]:
        """The nodes behind the branching below a node.

        Args:
            log_probability: Of the tokens down to the branching.
            front: {token: log probability} there.
        """
        depth = self._shared(node) - self._place
        return self._split(node.low, node.high, depth, log_probability, front)

    def expand(self, node: OpenNode) -> Expansion:
        """What to score of a node."""
        if node.high - node.low <= _TOGETHER:
            return Expansion(None, (), tuple(self._order[node.low:node.high]))
        shared = self._shared(node)
        next_ids = tuple(dict.fromkeys(ids[shared] for ids in self._ids[node.low:node.high]))
        return Expansion(self._ids[node.low][:shared], next_ids, ())

    def _shared(self, node: OpenNode) -> int:
        """Length of what the ways of a node share: in sorted order the first and the last one differ first."""
        first, last = self._ids[node.low], self._ids[node.high - 1]
        return next(i for i in range(self._place + node.depth, len(first)) if first[i] != last[i])

    def _split(self, low: int, high: int, depth: int, log_probability: float,
               front: Mapping[int, float]) -> list[OpenNode]:
        """Nodes of a range by their next token."""
        nodes, column = [], self._place + depth
        for begin, end in _runs([ids[column] for ids in self._ids[low:high]]):
            token = self._ids[low + begin][column]
            nodes.append(OpenNode(low + begin, low + end, depth + 1, log_probability + front[token]))
        return nodes


def _runs(values: Sequence[int]) -> Iterable[tuple[int, int]]:
    """(begin, end) of equal neighbours."""
    begin = 0
    for end in range(1, len(values) + 1):
        if end == len(values) or values[end] != values[begin]:
            yield begin, end
            begin = end
