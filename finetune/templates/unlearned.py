"""What a template asks for and no training text says: a model has not learned it, however sure its answer looks."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

from .graph import Group, Slot
from .template import Template

_MOST_NAMED = 3  # values
_MARKS = re.compile(r"^[\W_]+|[\W_]+$")  # around the words of a text


def unlearned(template: Template, texts: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(slot, what of it stands in no text), compared without regard to case and width of characters.

    The words before a slot belong to it: a value such as 有 stands in many texts.
    """
    known = "\n".join(map(_folded, set(texts)))
    words = ""
    for item in template.items:
        if isinstance(item, Slot):
            yield from ((item.name, what) for what in _missing(item, words, known))
        words = "" if isinstance(item, (Group, Slot)) else _MARKS.sub("", item)


def _missing(slot: Slot, words: str, known: str) -> Iterator[str]:
    """What of a slot and the words before it does not stand in the texts, as words for a message."""
    if words and _folded(words) not in known:
        yield f"its words {words!r} stand"
        return
    missing = [value for value in slot.values if _folded(value) not in known]
    if missing:
        named = ", ".join(map(repr, missing[:_MOST_NAMED])) + ", ..." * (len(missing) > _MOST_NAMED)
        yield f"{len(missing)} of its {len(slot.values)} values ({named}) stand"


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()
