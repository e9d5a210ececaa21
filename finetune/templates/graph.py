"""The graph of a template: its edges are pieces of text, its nodes what can follow. No circles, so that a product of
slots has as many edges as there are values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class Slot:
    """A place for one of a closed set of values.

    Attributes:
        only_if: {earlier slot: the values of it with which this slot has a value}; all of them must hold.
        optional: Whether it may have no value where it could have one.
    """

    name: str
    values: tuple[str, ...]
    only_if: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    optional: bool = False

    @cached_property
    def index(self) -> dict[str, int]:
        """{value: its number}."""
        return {value: number for number, value in enumerate(self.values)}

    @cached_property
    def lengths(self) -> list[int]:
        """How long values are, in characters."""
        return sorted({len(value) for value in self.values})

    @property
    def can_be_empty(self) -> bool:
        """Whether some text has no value here."""
        return self.optional or bool(self.only_if)

    def to_dict(self) -> Any:
        """As the file has it."""
        if not self.can_be_empty:
            return list(self.values)
        content: dict[str, Any] = {"values": list(self.values)}
        if self.only_if:
            content["only_if"] = {name: list(values) for name, values in self.only_if.items()}
        return content | ({"optional": True} if self.optional else {})


@dataclass(frozen=True)
class Group:
    """A part in [ ], printed with all its slots or not at all.

    Attributes:
        slots: Names of the slots in it.
        end: Index of the first item after it.
        optional: Whether it may be left out where its conditions hold.
    """

    slots: tuple[str, ...]
    end: int
    optional: bool


Item = str | Slot | Group


def escaped(literal: str) -> str:
    """A literal text as it stands in the text of a template."""
    return re.sub(r"([{}\[\]])", r"\1\1", literal)


@dataclass(frozen=True)
class Node:
    """A place in a template: between two pieces of its text.

    Attributes:
        index: Of the next item of `TemplateGraph.items`.
        ruled_out: Groups further on that a value chosen before excludes.
    """

    index: int
    ruled_out: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Edge:
    """A way on from a node: the text it prints, the fields it decides (None: no value), and where it leads."""

    text: str
    fields: tuple[tuple[str, str | None], ...]
    node: Node


@dataclass(frozen=True)
class TemplateGraph:
    """The pieces of a template in their order: a literal text, a slot, or a group, which stands before its own pieces.

    Attributes:
        where: The file, for messages.
    """

    items: tuple[Item, ...]
    where: str = "template"

    @cached_property
    def slots(self) -> dict[str, Slot]:
        """{name: slot} in the order of the text."""
        return {item.name: item for item in self.items if isinstance(item, Slot)}

    @property
    def start(self) -> Node:
        """Where every text begins."""
        return Node(0)

    def is_end(self, node: Node) -> bool:
        """Whether a text that came here is complete."""
        return node.index == len(self.items)

    def edges(self, node: Node) -> list[Edge]:
        """All ways on from a node that is not the end."""
        item, after = self.items[node.index], node.index + 1
        if isinstance(item, str):
            return [Edge(item, (), Node(after, node.ruled_out))]
        if isinstance(item, Slot):
            return [self._value_edge(item.name, value, node) for value in item.values]
        return self._group_edges(item, node)

    def num_edges(self, node: Node) -> int:
        """At most so many ways lead on from a node."""
        item = "" if self.is_end(node) else self.items[node.index]
        return len(item.values) if isinstance(item, Slot) else 2

    def edges_along(self, node: Node, text: str, place: int) -> list[Edge]:
        """The edges that print what stands at a place of a text; values are looked up, not tried one by one."""
        item = self.items[node.index]
        if isinstance(item, Slot):
            here = [text[place:place + length] for length in item.lengths]
            return [self._value_edge(item.name, value, node) for value in here if value in item.index]
        return [edge for edge in self.edges(node) if text.startswith(edge.text, place)]

    def slots_at(self, node: Node) -> tuple[str, ...]:
        """Names of the slots that a node decides on."""
        item = self.items[node.index]
        return item.slots if isinstance(item, Group) else (item.name,)

    def _group_edges(self, group: Group, node: Node) -> list[Edge]:
        """Into the group, past it, or both."""
        is_ruled_out = node.index in node.ruled_out
        left = node.ruled_out - {node.index}
        excluded = left.union(*(self._excluded(name, None) for name in group.slots))
        into = Edge("", (), Node(node.index + 1, left))
        past = Edge("", tuple((name, None) for name in group.slots), Node(group.end, excluded))
        if is_ruled_out:
            return [past]
        return [into, past] if group.optional else [into]

    def _value_edge(self, name: str, value: str, node: Node) -> Edge:
        return Edge(value, ((name, value),), Node(node.index + 1, node.ruled_out | self._excluded(name, value)))

    def _excluded(self, name: str, value: str | None) -> frozenset[int]:
        """Indices of the groups that cannot be printed once a slot has this value."""
        return frozenset(index for index, conditions in self._conditions.get(name, ()) if value not in conditions)

    @cached_property
    def _conditions(self) -> dict[str, list[tuple[int, frozenset[str]]]]:
        """{slot: (index of a group that depends on it, the values that allow the group)}."""
        found: dict[str, list[tuple[int, frozenset[str]]]] = {}
        for index, item in enumerate(self.items):
            for name in item.slots if isinstance(item, Group) else ():
                for earlier, values in self.slots[name].only_if.items():
                    found.setdefault(earlier, []).append((index, frozenset(values)))
        return found
