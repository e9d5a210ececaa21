"""A template as its file has it -> its pieces, each checked: a fault is one line with the slot and what to change."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..common.errors import UserError
from .template_graph import Group, Item, Slot

_MAX_SLOTS, _MAX_VALUES, _MAX_LENGTH = 200, 50_000, 10_000  # slots; values of all slots; characters of a value
_FORMAT = "write text: \"{organ}，{diagnosis}\" and slots: {organ: [...], diagnosis: [...]}"
_SLOT_FORMAT = "write a list of values, or {values: [...], only_if: {earlier_slot: [...]}, optional: true}"
_PIECE = re.compile(r"(?P<literal>\{\{|\}\}|\[\[|\]\]|[^{}\[\]]+)|\{(?P<slot>[^{}\[\]]*)\}|(?P<bracket>[\[\]])")
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
    def __init__(self, where: str) -> None:
        self._where = where

    def items(self, content: Any) -> tuple[Item, ...]:
        if not isinstance(content, dict) or set(content) != {"text", "slots"}:
            raise self._error(f"holds {_shown(content)}, not text and slots", _FORMAT)
        text, entries = content["text"], content["slots"]
        if not isinstance(text, str) or not text.strip():
            raise self._error("text is not a text", _FORMAT)
        if not isinstance(entries, dict) or not entries:
            raise self._error("slots is not a mapping of names to values", _FORMAT)
        self._refuse_invisible(text, "text")
        pieces = list(self._pieces(text))
        order = [name for kind, name in pieces if kind == "slot"]
        self._check_names(order, entries)
        slots = {name: self._slot(name, entries[name]) for name in order}
        if sum(len(slot.values) for slot in slots.values()) > _MAX_VALUES:
            raise self._error(f"has more than {_MAX_VALUES} values", "use fewer; a closed set is a short list")
        for number, name in enumerate(order):
            self._check_conditions(slots[name], slots, order[:number])
        return self._grouped(pieces, slots)

    def _pieces(self, text: str) -> Iterable[tuple[str, str]]:
        """(literal, text), (slot, name) and (bracket, [ or ]) of a text; a literal is joined from its parts."""
        place, literal = 0, ""
        while place < len(text):
            found = _PIECE.match(text, place)
            if found is None:
                raise self._error(f"text has a single {text[place]} at {text[place:place + 20]!r}",
                                  "write {slot} and [part]; {{ }} [[ ]] are the characters themselves")
            place = found.end()
            if found["literal"]:
                literal += found["literal"][0] if found["literal"] in ("{{", "}}", "[[", "]]") else found["literal"]
                continue
            if literal:
                yield "literal", literal
                literal = ""
            yield ("bracket", found["bracket"]) if found["bracket"] else ("slot", found["slot"].strip())
        if literal:
            yield "literal", literal

    def _check_names(self, order: list[str], entries: dict[str, Any]) -> None:
        if len(order) > _MAX_SLOTS:
            raise self._error(f"text has {len(order)} slots", f"use at most {_MAX_SLOTS}")
        for name in order:
            if name not in entries:
                similar = difflib.get_close_matches(name, list(entries), 1)
                hint = f"; did you mean {similar[0]}?" if similar else ""
                raise self._error(f"text has a slot {{{name}}} that slots does not list{hint}", "add it to slots")
        for name, count in Counter(order).items():
            if count > 1:
                raise self._error(f"slot {name} stands {count} times in text", "give each place a slot of its own")
        for name in entries:
            if name not in order:
                raise self._error(f"slot {name} does not occur in text", f"add {{{name}}} to text, or remove the slot")

    def _slot(self, name: str, entry: Any) -> Slot:
        entry = {"values": entry} if isinstance(entry, list) else entry
        if not isinstance(entry, dict) or "values" not in entry:
            raise self._error(f"slot {name} has no values", _SLOT_FORMAT)
        unknown = [key for key in entry if key not in ("values", "only_if", "optional")]
        if unknown:
            raise self._error(f"slot {name}: unknown key {unknown[0]}", _SLOT_FORMAT)
        flag = entry.get("optional", False)
        if not isinstance(flag, (bool, str)) or flag not in _FLAGS:
            raise self._error(f"slot {name}: optional is {_shown(flag)}", "write true or false")
        only_if = entry.get("only_if") or {}
        if not isinstance(only_if, dict):
            raise self._error(f"slot {name}: only_if is {_shown(only_if)}", "write {earlier_slot: [values]}")
        conditions = {earlier: self._values(f"slot {name}: only_if {earlier}", values)
                      for earlier, values in only_if.items()}
        return Slot(name, self._values(f"slot {name}", entry["values"]), conditions, _FLAGS[flag])

    def _values(self, what: str, values: Any) -> tuple[str, ...]:
        if not isinstance(values, list) or not values:
            raise self._error(f"{what} has no list of values", _SLOT_FORMAT)
        for value in values:
            if not isinstance(value, str) or not value.strip():
                raise self._error(f"{what} has the value {_shown(value)}", "write texts that are not empty")
            if len(value) > _MAX_LENGTH:
                raise self._error(f"{what} has a value of {len(value)} characters", f"use at most {_MAX_LENGTH}")
            self._refuse_invisible(value, what)
        repeated = [value for value, count in Counter(values).items() if count > 1]
        if repeated:
            raise self._error(f"{what} lists {_shown(repeated[0])} twice", "list each value once")
        return tuple(values)

    def _check_conditions(self, slot: Slot, slots: Mapping[str, Slot], earlier: list[str]) -> None:
        for name, values in slot.only_if.items():
            if name not in slots:
                raise self._error(f"slot {slot.name}: only_if names {name}, which is not a slot",
                                  "name an earlier slot")
            if name not in earlier:
                raise self._error(f"slot {slot.name}: only_if names {name}, which does not stand before it in text",
                                  "name a slot that stands earlier in text")
            unknown = [value for value in values if value not in slots[name].index]
            if unknown:
                raise self._error(f"slot {slot.name}: only_if has {_shown(unknown[0])}, which {name} cannot be",
                                  f"use values of {name}")

    def _grouped(self, pieces: list[tuple[str, str]], slots: Mapping[str, Slot]) -> tuple[Item, ...]:
        """The items, with a group before the pieces of each pair of brackets."""
        items: list[Item] = []
        opened: int | None = None
        for kind, piece in pieces:
            if piece == "[" and kind == "bracket":
                if opened is not None:
                    raise self._error("text has [ ] inside [ ]", "put the parts one after another")
                opened = len(items)
                items.append(Group((), 0, False))
            elif kind == "bracket":
                if opened is None:
                    raise self._error("text has a ] without a [", "write ]] for the character itself")
                items[opened] = self._group(items, opened)
                opened = None
            else:
                self._check_place(kind, piece, slots, opened)
                items.append(piece if kind == "literal" else slots[piece])
        if opened is not None:
            raise self._error("text has a [ without a ]", "write [[ for the character itself")
        if not any(_outside(items)):
            raise self._error("text may be empty: all of it stands in [ ]", "put a slot or a word outside of [ ]")
        return tuple(items)

    def _check_place(self, kind: str, name: str, slots: Mapping[str, Slot], opened: int | None) -> None:
        if kind == "slot" and opened is None and slots[name].can_be_empty:
            raise self._error(f"slot {name} may have no value, but stands outside of [ ]",
                              f"put it into brackets with its punctuation, as in [，{{{name}}}]")

    def _group(self, items: list[Item], opened: int) -> Group:
        """The group of the items after `opened`."""
        inside = [item for item in items[opened + 1:] if isinstance(item, Slot)]
        names = tuple(slot.name for slot in inside)
        if not any(slot.can_be_empty for slot in inside):
            raise self._error(f"text has [ ] around {', '.join(names) or 'no slot'}, which always has a value",
                              "give the slot optional: true or only_if, or take the brackets away")
        for slot in inside:
            within = [name for name in slot.only_if if name in names]
            if within:
                raise self._error(f"slot {slot.name}: only_if names {within[0]} of the same [ ]",
                                  "give each a pair of brackets")
        return Group(names, len(items), any(slot.optional for slot in inside))

    def _refuse_invisible(self, text: str, what: str) -> None:
        hidden = next((c for c in text if not c.isprintable() and c != "\n"), None)
        if hidden is not None:
            raise self._error(f"{what} has the invisible character U+{ord(hidden):04X}", "remove it")

    def _error(self, problem: str, fix: str) -> UserError:
        return UserError(self._where, problem, fix)


def _shown(value: Any) -> str:
    """A value for a message, cut."""
    if isinstance(value, dict):
        return f"the keys {', '.join(map(str, list(value)[:5])) or 'none'}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
