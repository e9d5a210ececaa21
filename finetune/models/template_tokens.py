"""The texts of a template as token ids: from each place, the ways on up to the next decision.

A tokenizer joins characters across the borders of slots (byte-pair merges, words), so ids are always those of whole
texts. Of a text that goes on, only those ids count that stay the same however it goes on. The ways on from a place are
a prefix-free code: where the ids of one begin those of another, it is followed further. Their probabilities
therefore add up to that of the place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise, takewhile

from ..common.errors import UserError
from ..data.tokenizer import Tokenizer
from ..templates.graph import Edge, Node, Slot
from ..templates.template import Template

Decided = tuple[tuple[str, str | None], ...]  # slots with their values, in the order of the text
_MOST_WAYS = 60_000  # from one place
_MOST_JOINED = 4_000  # ways that are followed further because ids of one begin those of another
_TRIED = 12  # texts behind a place by which its ids are found
_TEXTS_KEPT = 100_000
_CHARACTERS = "use the characters of the training texts"
_DIFFERENT = "use values that differ in more than case or spaces"
_APART = "put a word or a punctuation mark between the slots, or use values that do not begin alike"


@dataclass(frozen=True)
class Place:
    """Where a text of the template has come to: in front of a decision, or at its end."""

    text: str
    node: Node


@dataclass(frozen=True)
class Way:
    """A way on from a place.

    Attributes:
        decided: What it decides.
        place: Where it leads.
        ids: Of the whole text up to there, without begin token: those that every further text has; of a complete
            text with the end token.
        is_end: Whether the text is complete.
    """

    decided: Decided
    place: Place
    ids: tuple[int, ...]
    is_end: bool


@dataclass
class TemplateTokens:
    """A template in the tokens of a tokenizer. Ways are computed where decoding comes, never all of them."""

    template: Template
    tokenizer: Tokenizer
    _ids: dict[str, tuple[int, ...]] = field(default_factory=dict, repr=False)
    _ways: dict[Place, list[Way]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Raises UserError for values that the tokenizer does not have or cannot tell apart."""
        for item in self.template.items:
            if isinstance(item, str):
                self._refuse_unknown(item, "the text")
            elif isinstance(item, Slot):
                self._check_values(item)

    @property
    def longest(self) -> int:
        """At most so many tokens has a text, begin and end token included."""
        total = 2
        for item in self.template.items:
            if isinstance(item, str):
                total += len(self.encode(item))
            elif isinstance(item, Slot):
                total += max(len(self.encode(value)) for value in item.values)
        return total

    def start(self) -> tuple[Decided, Place]:
        """What is decided before any choice, and the place of the first one."""
        return self._to_decision((), Place("", self.template.start))

    def ways(self, place: Place) -> list[Way]:
        """All ways on from a place that is not the end, none of whose ids begin those of another. Raises UserError."""
        if place not in self._ways:
            if len(self._ways) > _TEXTS_KEPT:
                self._ways.clear()
            self._ways[place] = self._prefix_free([self._way(*branch) for branch in self._branches((), place)])
        return self._ways[place]

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of a text."""
        if text not in self._ids:
            if len(self._ids) > _TEXTS_KEPT:
                self._ids.clear()
            self._ids[text] = tuple(self.tokenizer.encode(text))
        return self._ids[text]

    def _branches(self, decided: Decided, place: Place) -> Iterator[tuple[Decided, Place]]:
        """The nearest places that a place leads to, each with a value chosen, text printed, or at the end."""
        for edge in self.template.edges(place.node):
            after, there = self._to_decision(decided + edge.fields, _along(place, edge))
            prints_value = any(value is not None for _, value in after[len(decided):])
            if prints_value or self.template.is_end(there.node):
                yield after, there
            else:
                yield from self._branches(after, there)

    def _to_decision(self, decided: Decided, place: Place) -> tuple[Decided, Place]:
        """Along all that is forced, up to a node with several edges or the end."""
        while not self.template.is_end(place.node) and len(edges := self.template.edges(place.node)) == 1:
            decided, place = decided + edges[0].fields, _along(place, edges[0])
        return decided, place

    def _way(self, decided: Decided, place: Place) -> Way:
        if self.template.is_end(place.node):
            return Way(decided, place, (*self._known(place.text), self.tokenizer.eos_id), True)
        further = _different([there.text for _, there in self._branches((), place)], len(place.text))
        return Way(decided, place, common_prefix([self._known(text) for text in further]), False)

    def _known(self, text: str) -> tuple[int, ...]:
        """The ids of a text. Raises UserError if one of them stands for anything."""
        ids = self.encode(text)
        if self.tokenizer.unk_id is not None and self.tokenizer.unk_id in ids:
            raise UserError(self.template.where, "the tokenizer of the model has no token for a part of "
                            f"{text[-60:]!r}", _CHARACTERS)
        return ids

    def _prefix_free(self, ways: list[Way]) -> list[Way]:
        """The ways, each that begins another one followed further."""
        followed = 0
        while beginnings := _beginnings(ways):
            followed += len(beginnings)
            if len(ways) > _MOST_WAYS or followed > _MOST_JOINED:
                raise UserError(self.template.where, "has too many texts that the tokenizer joins into the same tokens "
                                f"around {ways[0].place.text[-30:]!r}", _APART)
            kept = [way for number, way in enumerate(ways) if number not in beginnings]
            ways = kept + [further for number in beginnings for further in self._followed(ways[number])]
        return ways

    def _followed(self, way: Way) -> list[Way]:
        if way.is_end:  # no other text has the end token inside: two complete texts are equal
            raise self._same_tokens(way)
        return [self._way(*branch) for branch in self._branches(way.decided, way.place)]

    def _same_tokens(self, way: Way) -> UserError:
        return UserError(self.template.where, f"the tokenizer of the model cannot tell {way.place.text[-60:]!r} from "
                         "another text", _DIFFERENT)

    def _check_values(self, slot: Slot) -> None:
        seen: dict[tuple[int, ...], str] = {}
        for value in slot.values:
            self._refuse_unknown(value, f"slot {slot.name}")
            other = seen.setdefault(self.encode(value), value)
            if other != value:
                raise UserError(self.template.where, f"slot {slot.name}: the tokenizer of the model cannot tell "
                                f"{value!r} from {other!r}", _DIFFERENT)

    def _refuse_unknown(self, text: str, what: str) -> None:
        unknown = self.tokenizer.unk_id
        if unknown is None or unknown not in self.encode(text):
            return
        missing = [character for character in text if unknown in self.encode(character)]
        raise UserError(self.template.where, f"{what}: the tokenizer of the model has no token for "
                        f"{missing[0] if missing else text!r} of {text!r}", _CHARACTERS)


def common_prefix(sequences: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """The longest beginning that all sequences share."""
    columns = takewhile(lambda column: len(set(column)) == 1, zip(*sequences, strict=False))
    return tuple(column[0] for column in columns)


def _different(texts: list[str], place: int) -> set[str]:
    """Of texts, those that differ most: together they begin with no more than all of them, and at a place they have
    many of its characters."""
    by_character = {text[place:place + 1]: text for text in texts}
    return {min(texts), max(texts), *islice(by_character.values(), _TRIED)}


def _along(place: Place, edge: Edge) -> Place:
    return Place(place.text + edge.text, edge.node)


def _beginnings(ways: Sequence[Way]) -> set[int]:
    """Numbers of the ways whose ids begin those of another one. In sorted order the next one begins with them."""
    order = sorted(range(len(ways)), key=lambda number: ways[number].ids)
    return {number for number, after in pairwise(order)
            if ways[after].ids[:len(ways[number].ids)] == ways[number].ids}
