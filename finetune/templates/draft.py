"""Writes a template from blocks of parts: names of slots, values, conditions, brackets."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from .conditions import condition
from .graph import escaped
from .parts import Block, Part

_LONGEST_NAME = 16  # characters
_END_OF_CLAUSE = re.compile(r"[，。；、！？,;.!?\n]")


def draft(blocks: Sequence[Block], weights: Sequence[int]) -> dict[str, Any]:
    """{text, slots} as a template file has them.

    Args:
        weights: Numbers of slides with each text.
    """
    pattern, literal = "", ""
    slots: dict[str, Any] = {}
    earlier: dict[str, Part] = {}
    for block in blocks:
        inside, names = escaped(block.before), []
        literal += block.before
        for part in block.parts:
            name = _name(literal + part.before, part, slots)
            names.append(name)
            slots[name] = {"values": _values(part, weights)}
            inside += f"{escaped(part.before)}{{{name}}}{escaped(part.after)}"
            literal = part.after
        inside += escaped(block.after)
        literal += block.after
        if block.texts is not None:
            inside = f"[{inside}]"
            slots[names[0]] |= _when(block.texts, earlier, weights)
        pattern += inside
        earlier |= zip(names, block.parts, strict=True)
    return {"text": pattern, "slots": slots}


def _values(part: Part, weights: Sequence[int]) -> list[str]:
    """The most common first."""
    counts: Counter[str] = Counter()
    for i, value in part.values.items():
        counts[value] += weights[i]
    return [value for value, _ in counts.most_common()]


def _when(texts: frozenset[int], earlier: dict[str, Part], weights: Sequence[int]) -> dict[str, Any]:
    """The condition that rules a block out in the most texts, and whether it may be missing otherwise."""
    found = {name: condition(texts, part.values, weights) for name, part in earlier.items()}
    best = max((name for name, of_name in found.items() if of_name), default=None,
               key=lambda name: (found[name].is_enough, found[name].num_ruled_out))
    if best is None:
        return {"optional": True}
    entry: dict[str, Any] = {"only_if": {best: list(found[best].values)}}
    return entry if found[best].is_enough else entry | {"optional": True}


def _name(literal: str, part: Part, taken: dict[str, Any]) -> str:
    """The words before the value, or a single value itself, or slot_N."""
    words = _as_name(_END_OF_CLAUSE.split(literal)[-1])
    values = set(part.values.values())
    if not words and len(values) == 1:
        words = _as_name(values.pop())
    return words if words and words not in taken else _numbered(words or "slot", taken)


def _numbered(words: str, taken: dict[str, Any]) -> str:
    """The words with the number of the slot, or the next one that makes the name new."""
    number = len(taken) + 1
    while f"{words}_{number}" in taken:
        number += 1
    return f"{words}_{number}"


def _as_name(text: str) -> str:
    """Letters and digits of a text, joined by _; empty if that is long or begins with a digit."""
    words = "_".join(re.findall(r"\w+", text))
    return words if len(words) <= _LONGEST_NAME and not words[:1].isdigit() else ""
