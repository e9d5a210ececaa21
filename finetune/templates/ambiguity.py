"""Whether two different sets of fields give the same text, found without enumerating texts.

Two ways through the template are followed side by side, in the manner of Sardinas and Patterson's test of codes: all
that counts of them is where each is and which text the one ahead has printed beyond the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..common.errors import UserError
from .graph import Edge, Node, TemplateGraph

_MAX_STATES = 100_000  # places, and pairs of them; a sane template has some hundred
_MAX_EDGES = 3_000_000  # looked at, some seconds


@dataclass(frozen=True)
class _Pair:
    """Two ways of one text: the one behind, the one ahead, and what that has printed more.

    Attributes:
        text: What the one behind has printed.
    """

    behind: Node
    ahead: Node
    more: str
    text: str

    @property
    def state(self) -> tuple[Node, Node, str]:
        """All that what follows depends on."""
        return self.behind, self.ahead, self.more


def refuse_ambiguous(template: TemplateGraph) -> None:
    """Raise UserError with a text that has two readings, or if the template is too large to tell."""
    num_edges = 0
    for number, pair in enumerate(_pairs(template), start=1):
        num_edges += template.num_edges(pair.behind)
        if number > _MAX_STATES or num_edges > _MAX_EDGES:
            raise _too_large(template)
        _refuse_meeting(template, pair)


def _pairs(template: TemplateGraph) -> Iterator[_Pair]:
    """Two ways of one text that part somewhere, each state once."""
    waiting: list[_Pair] = []
    for node, text in _nodes(template):
        waiting.extend(_forks(template, node, text))
    seen = set()
    while waiting:
        pair = waiting.pop()
        if pair.state in seen:
            continue
        seen.add(pair.state)
        yield pair
        waiting.extend(_continued(template, pair))


def _refuse_meeting(template: TemplateGraph, pair: _Pair) -> None:
    if not pair.more and pair.behind == pair.ahead:
        raise UserError(template.where, f"ambiguous: two sets of fields give a text that begins {pair.text!r}",
                        "change the values or the text between the slots, so that each text has one reading")


def _nodes(template: TemplateGraph) -> Iterator[tuple[Node, str]]:
    """(node, a text that leads to it) of all nodes that are not the end."""
    texts = {template.start: ""}
    waiting = [template.start]
    while waiting:
        node = waiting.pop()
        yield node, texts[node]
        new = {edge.node: texts[node] + edge.text for edge in template.edges(node) if edge.node not in texts}
        texts |= new
        waiting += [node for node in new if not template.is_end(node)]
        if len(texts) > _MAX_STATES:
            raise _too_large(template)


def _forks(template: TemplateGraph, node: Node, text: str) -> Iterator[_Pair]:
    """All pairs of different edges of a node of which one's text begins with the other's."""
    beginnings: list[Edge] = []  # of the edge that is looked at; in sorted order they come before it
    for edge in sorted(template.edges(node), key=lambda edge: edge.text):
        while beginnings and not edge.text.startswith(beginnings[-1].text):
            beginnings.pop()
        for shorter in beginnings:
            yield _Pair(shorter.node, edge.node, edge.text[len(shorter.text):], text + shorter.text)
        beginnings.append(edge)


def _continued(template: TemplateGraph, pair: _Pair) -> Iterator[_Pair]:
    """The pairs that come of a pair when the one behind goes on."""
    behind, ahead = pair.behind, pair.ahead
    if not pair.more and behind.index > ahead.index:  # the same text: the one with more to print goes on
        behind, ahead = ahead, behind
    if template.is_end(behind):
        return
    for edge in template.edges(behind):
        if pair.more.startswith(edge.text):
            yield _Pair(edge.node, ahead, pair.more[len(edge.text):], pair.text + edge.text)
        elif edge.text.startswith(pair.more):
            yield _Pair(ahead, edge.node, edge.text[len(pair.more):], pair.text + pair.more)


def _too_large(template: TemplateGraph) -> UserError:
    return UserError(template.where, "has too many combinations of conditions to be checked",
                     "use fewer slots with only_if, or fewer values that are the beginning of others")
