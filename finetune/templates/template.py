"""Templates: a text with named slots, each with a closed set of values, that a diagnosis is read from or written into.

    text: "{organ}，{diagnosis}[，{grade}]。"
    slots:
      organ: [乳腺, 胃]
      diagnosis: [浸润性癌, 原位癌]
      grade: {values: [高分化, 低分化], only_if: {diagnosis: [浸润性癌]}}

What stands in [ ] is printed only where all its slots have values; {{ }} [[ ]] are the characters themselves. Texts are
read and checked along a graph of pieces, so that products of slots are never enumerated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..config.yaml_file import dump_plain_yaml, load_plain_yaml
from .ambiguity import refuse_ambiguous
from .graph import Edge, Group, Node, TemplateGraph, escaped
from .reader import FORMAT, read_template

Fields = dict[str, str | None]
CHOICE = "text"  # the slot of a list of choices


class Template(TemplateGraph):
    """A text with slots. Two different sets of fields never give the same text."""

    @classmethod
    def from_file(cls, path: str | Path) -> Template:
        """Read a YAML file of `text` and `slots`. Raises UserError naming the file, the slot and what to change."""
        return cls.from_dict(load_plain_yaml(path, FORMAT), str(path))

    @classmethod
    def from_dict(cls, content: Any, where: str = "template") -> Template:
        """The template of what the YAML file holds, or `to_dict` gave. Raises UserError."""
        template = cls(read_template(content, where), where)
        refuse_ambiguous(template)
        return template

    @classmethod
    def of_choices(cls, texts: Iterable[str], where: str = "choices") -> Template:
        """The template of one slot, `text`, that is one of these texts. Raises UserError."""
        return cls.from_dict({"text": f"{{{CHOICE}}}", "slots": {CHOICE: list(texts)}}, where)

    def parse(self, text: str) -> Fields | None:
        """The fields of a text, None if it does not follow the template."""
        fields = next(self._readings(text), None)
        if fields is None:
            return None
        return {name: fields[name] for name in self.slots}

    def _readings(self, text: str) -> Iterator[Fields]:
        """The fields of the way through the graph that prints the text, if there is one."""
        waiting: list[tuple[Node, int, Fields]] = [(self.start, 0, {})]
        seen = set()
        while waiting:
            node, place, fields = waiting.pop()
            if self.is_end(node):
                if place == len(text):
                    yield fields
            elif (node, place) not in seen:
                seen.add((node, place))
                for edge in self.edges_along(node, text, place):
                    waiting.append((edge.node, place + len(edge.text), fields | dict(edge.fields)))

    def render(self, fields: Mapping[str, str | None]) -> str:
        """The text of fields; a slot that is left out has no value.

        Raises:
            ValueError: Naming the field that no text of the template has so.
        """
        unknown = [name for name in fields if name not in self.slots]
        if unknown:
            raise ValueError(f"{unknown[0]} is not a slot of the template")
        node, text = self.start, ""
        while not self.is_end(node):
            edge = self._edge_of(node, fields)
            text, node = text + edge.text, edge.node
        return text

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` reads, of plain types."""
        slots = {name: slot.to_dict() for name, slot in self.slots.items()}
        return {"text": self._pattern(), "slots": slots}

    def to_yaml(self) -> str:
        """The text of a file for `from_file`."""
        return dump_plain_yaml(self.to_dict())

    def _pattern(self) -> str:
        """The text with its slots and brackets."""
        ends = {item.end for item in self.items if isinstance(item, Group)}
        text = ""
        for index, item in enumerate(self.items):
            text += "]" * (index in ends)
            if isinstance(item, str):
                text += escaped(item)
            else:
                text += "[" if isinstance(item, Group) else f"{{{item.name}}}"
        return text + "]" * (len(self.items) in ends)

    def _edge_of(self, node: Node, fields: Mapping[str, str | None]) -> Edge:
        for edge in self.edges(node):
            if self._fits(node, edge, fields):
                return edge
        name = self.slots_at(node)[0]
        raise ValueError(f"{name} cannot be {fields.get(name)!r} beside the other fields")

    def _fits(self, node: Node, edge: Edge, fields: Mapping[str, str | None]) -> bool:
        """Whether an edge is the one of these fields."""
        if all(fields.get(name) == value for name, value in edge.fields):
            enters = isinstance(self.items[node.index], Group) and not edge.fields
            return not enters or any(fields.get(name) is not None for name in self.slots_at(node))
        return False
