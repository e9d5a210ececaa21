"""A template as its file has it -> its pieces, each checked: a fault is one line with the slot and what to change."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any

from ..common.errors import UserError
from .graph import Group, Item, Slot

_MAX_SLOTS, _MAX_VALUES, _MAX_LENGTH = 200, 50_000, 10_000  # slots; values of all slots; characters of a value
FORMAT = "write text: \"{organ}，{diagnosis}\" and slots: {organ: [...], diagnosis: [...]}"
_SLOT_FORMAT = "write a list of values, or {values: [...], only_if: {earlier_slot: [...]}, optional: true}"
_PIECE = re.compile(r"(?P<twice>\{\{|\}\}|\[\[|\]\])|(?P<literal>[^{}\[\]]+)|\{(?P<slot>[^{}\[\]]*)\}"
                    r"|(?P<bracket>[\[\]])")
_FLAGS = {True: True, False: False, "true": True, "false": False}


def read_template(content: Any, where: str) -> tuple[Item, ...]:
    """The items of `Template` from {text, slots}. Raises UserError."""
    return _Reader(where).items(content)


def _outside(items: Iterable[Item]) -> Iterator[bool]:
    """Whether each item that stands in no [ ] prints something."""
    end = 0
    for index, item in enumerate(items):
        if isinstance(item, Group):
            end = item.end
        elif index >= end:
            yield isinstance(item, Slot) or bool(item.strip())


class _Reader:
    """Reads and checks one template."""

    def __init__(self, where: str) -> None:
        self._where = where

    def items(self, content: Any) -> tuple[Item, ...]:
        text, entries = self._parts(content)
        pieces = list(self._pieces(text))
        order = [name for kind, name in pieces if kind == "slot"]
        self._check_names(order, entries)
        return self._grouped(pieces, self._slots(order, entries))

    def _parts(self, content: Any) -> tuple[str, dict[str, Any]]:
        """The text, and what is said of each slot."""
        self._require(isinstance(content, dict) and set(content) == {"text", "slots"},
                      f"holds {_shown(content)}, not text and slots", FORMAT)
        text, entries = content["text"], content["slots"]
        self._require(isinstance(text, str) and bool(text.strip()), "text is not a text", FORMAT)
        self._require(isinstance(entries, dict) and bool(entries), "slots is not a mapping of names to values", FORMAT)
        self._refuse_invisible(text, "text")
        return text, entries

    def _pieces(self, text: str) -> Iterator[tuple[str, str]]:
        """(literal, text), (slot, name) and (bracket, [ or ]) of a text; neighbouring literals are one."""
        for kind, found in groupby(self._tokens(text), key=lambda token: token[0]):
            if kind == "literal":
                yield kind, "".join(piece for _, piece in found)
            else:
                yield from found

    def _tokens(self, text: str) -> Iterator[tuple[str, str]]:
        place = 0
        while place < len(text):
            found = _PIECE.match(text, place)
            if found is None:
                raise self._error(f"text has a single {text[place]} at {text[place:place + 20]!r}",
                                  "write {slot} and [part]; {{ }} [[ ]] are the characters themselves")
            place, kind = found.end(), found.lastgroup
            piece = found[kind]
            yield ("literal", piece[0]) if kind == "twice" else (kind, piece.strip() if kind == "slot" else piece)

    def _check_names(self, order: list[str], entries: dict[str, Any]) -> None:
        self._require(len(order) <= _MAX_SLOTS, f"text has {len(order)} slots", f"use at most {_MAX_SLOTS}")
        for name, count in Counter(order).items():
            hint = _similar(name, entries)
            self._require(name in entries, f"text has a slot {{{name}}} that slots does not list{hint}",
                          "add it to slots")
            self._require(count == 1, f"slot {name} stands {count} times in text", "give each place a slot of its own")
        for name in entries:
            self._require(name in order, f"slot {name} does not occur in text",
                          f"add {{{name}}} to text, or remove the slot")

    def _slots(self, order: list[str], entries: dict[str, Any]) -> dict[str, Slot]:
        """{name: slot} in the order of the text."""
        slots = {name: self._slot(name, entries[name]) for name in order}
        num_values = sum(len(slot.values) for slot in slots.values())
        self._require(num_values <= _MAX_VALUES, f"has more than {_MAX_VALUES} values",
                      "use fewer; a closed set is a short list")
        for number, name in enumerate(order):
            self._check_conditions(slots[name], slots, order[:number])
        return slots

    def _slot(self, name: str, entry: Any) -> Slot:
        entry = {"values": entry} if isinstance(entry, list) else entry
        self._require(isinstance(entry, dict) and "values" in entry, f"slot {name} has no values", _SLOT_FORMAT)
        unknown = [key for key in entry if key not in ("values", "only_if", "optional")]
        self._require(not unknown, f"slot {name}: unknown key {', '.join(map(str, unknown))}", _SLOT_FORMAT)
        values = self._values(f"slot {name}", entry["values"])
        return Slot(name, values, self._only_if(name, entry), self._optional(name, entry))

    def _optional(self, name: str, entry: dict[str, Any]) -> bool:
        flag = entry.get("optional", False)
        is_flag = isinstance(flag, (bool, str)) and flag in _FLAGS
        self._require(is_flag, f"slot {name}: optional is {_shown(flag)}", "write true or false")
        return _FLAGS[flag]

    def _only_if(self, name: str, entry: dict[str, Any]) -> dict[str, tuple[str, ...]]:
        only_if = entry.get("only_if") or {}
        self._require(isinstance(only_if, dict), f"slot {name}: only_if is {_shown(only_if)}",
                      "write {earlier_slot: [values]}")
        return {earlier: self._values(f"slot {name}: only_if {earlier}", values) for earlier, values in only_if.items()}

    def _values(self, what: str, values: Any) -> tuple[str, ...]:
        self._require(isinstance(values, list) and bool(values), f"{what} has no list of values", _SLOT_FORMAT)
        for value in values:
            self._check_value(what, value)
        repeated = [value for value, count in Counter(values).items() if count > 1]
        self._require(not repeated, f"{what} lists {_shown(next(iter(repeated), None))} twice", "list each value once")
        return tuple(values)

    def _check_value(self, what: str, value: Any) -> None:
        self._require(isinstance(value, str) and bool(value.strip()), f"{what} has the value {_shown(value)}",
                      "write texts that are not empty")
        self._require(len(value) <= _MAX_LENGTH, f"{what} has a value of {len(value)} characters",
                      f"use at most {_MAX_LENGTH}")
        self._refuse_invisible(value, what)

    def _check_conditions(self, slot: Slot, slots: Mapping[str, Slot], earlier: list[str]) -> None:
        for name, values in slot.only_if.items():
            what = f"slot {slot.name}: only_if"
            self._require(name in slots, f"{what} names {name}, which is not a slot", "name an earlier slot")
            self._require(name in earlier, f"{what} names {name}, which does not stand before it in text",
                          "name a slot that stands earlier in text")
            unknown = [value for value in values if value not in slots[name].index]
            self._require(not unknown, f"{what} has {_shown(next(iter(unknown), None))}, which {name} cannot be",
                          f"use values of {name}")

    def _grouped(self, pieces: list[tuple[str, str]], slots: Mapping[str, Slot]) -> tuple[Item, ...]:
        """The items, with a group before the pieces of each pair of brackets."""
        items: list[Item] = []
        opened: int | None = None
        for kind, piece in pieces:
            if kind == "bracket":
                opened = self._bracket(piece, items, opened)
            else:
                item = piece if kind == "literal" else slots[piece]
                self._check_place(item, opened)
                items.append(item)
        self._require(opened is None, "text has a [ without a ]", "write [[ for the character itself")
        self._require(any(_outside(items)), "text may be empty: all of it stands in [ ]",
                      "put a slot or a word outside of [ ]")
        return tuple(items)

    def _bracket(self, bracket: str, items: list[Item], opened: int | None) -> int | None:
        """Begin or end a group; returns the place of the group that is open then."""
        if bracket == "[":
            self._require(opened is None, "text has [ ] inside [ ]", "put the parts one after another")
            items.append(Group((), 0, False))
            return len(items) - 1
        self._require(opened is not None, "text has a ] without a [", "write ]] for the character itself")
        items[opened] = self._group(items[opened + 1:], len(items))
        return None

    def _check_place(self, item: Item, opened: int | None) -> None:
        if isinstance(item, Slot) and opened is None:
            self._require(not item.can_be_empty, f"slot {item.name} may have no value, but stands outside of [ ]",
                          f"put it into brackets with its punctuation, as in [，{{{item.name}}}]")

    def _group(self, inside: list[Item], end: int) -> Group:
        slots = [item for item in inside if isinstance(item, Slot)]
        names = tuple(slot.name for slot in slots)
        self._require(any(slot.can_be_empty for slot in slots),
                      f"text has [ ] around {', '.join(names) or 'no slot'}, which always has a value",
                      "give the slot optional: true or only_if, or take the brackets away")
        for slot in slots:
            within = ", ".join(name for name in slot.only_if if name in names)
            self._require(not within, f"slot {slot.name}: only_if names {within} of the same [ ]",
                          "give each a pair of brackets")
        return Group(names, end, any(slot.optional for slot in slots))

    def _refuse_invisible(self, text: str, what: str) -> None:
        hidden = next((c for c in text if not c.isprintable() and c != "\n"), None)
        if hidden is not None:
            raise self._error(f"{what} has the invisible character U+{ord(hidden):04X}", "remove it")

    def _require(self, is_right: bool, problem: str, fix: str) -> None:
        """Raise UserError with the problem unless all is right."""
        if not is_right:
            raise self._error(problem, fix)

    def _error(self, problem: str, fix: str) -> UserError:
        return UserError(self._where, problem, fix)


def _similar(name: str, names: Iterable[str]) -> str:
    found = difflib.get_close_matches(name, list(names), 1)
    return f"; did you mean {found[0]}?" if found else ""


def _shown(value: Any) -> str:
    """A value for a message, cut."""
    if isinstance(value, dict):
        return f"the keys {', '.join(map(str, list(value)[:5])) or 'none'}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
