"""The ways on from a place as a trie over tokens, searched from the most probable beginning on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class OpenNode:
    """Ways that share their first tokens.

    Attributes:
        low, high: Of the ways in sorted order.
        depth: Number of shared tokens behind the place.
        log_probability: Of coming to the shared tokens: that of all its ways together.
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

    @property
    def root(self) -> OpenNode:
        """The node of all ways."""
        return OpenNode(0, len(self._ids), 0, 0.0)

    def way(self, node: OpenNode) -> int:
        """The number of the first way of a node."""
        return self._order[node.low]

    def branching(self, node: OpenNode) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids down to the branching of a node, those before the place included, and the tokens that can follow."""
        shared = self._shared(node)
        next_ids = tuple(dict.fromkeys(ids[shared] for ids in self._ids[node.low:node.high]))
        return self._ids[node.low][:shared], next_ids

    def children(self, node: OpenNode, shares: Mapping[int, float]) -> list[OpenNode]:
        """The nodes behind the branching of a node.

        Args:
            shares: {token: log probability} there.
        """
        shared = self._shared(node)
        nodes = []
        for begin, end in _runs([ids[shared] for ids in self._ids[node.low:node.high]]):
            token = self._ids[node.low + begin][shared]
            nodes.append(OpenNode(node.low + begin, node.low + end, shared + 1 - self._place,
                                  node.log_probability + shares[token]))
        return nodes

    def _shared(self, node: OpenNode) -> int:
        """Length of what the ways of a node share: in sorted order the first and the last one differ first."""
        first, last = self._ids[node.low], self._ids[node.high - 1]
        return next(i for i in range(self._place + node.depth, len(first)) if first[i] != last[i])


def _runs(values: Sequence[int]) -> Iterable[tuple[int, int]]:
    """(begin, end) of equal neighbours."""
    begin = 0
    for end in range(1, len(values) + 1):
        if end == len(values) or values[end] != values[begin]:
            yield begin, end
            begin = end
