"""One rule for all that people see: terminal, logs, pages, CSV and Markdown show no character that deceives.

Control characters move the cursor of a terminal, U+202E turns a text around, U+2028 breaks a line: each is shown as an
escape such as \\u202e. JSON keeps what it stands for, as its own escapes are read back.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Callable
from typing import Any

# Control, format (U+202E, U+200B, ...), line and paragraph separators, surrogates, unassigned, private
_INVISIBLE = frozenset(("Cc", "Cf", "Zl", "Zp", "Cs", "Cn", "Co"))
_FORMULA = tuple("=+-@")  # a spreadsheet runs a cell that begins so


def visible(text: str, keep: str = "") -> str:
    """`text` with escapes in place of characters that nobody sees or that turn the text around.

    Args:
        keep: Those that stay, such as a line end.
    """
    if text.isprintable():
        return text
    return _replace_invisible(text, keep, lambda c: c.encode("unicode_escape", "backslashreplace").decode())


def visible_values(value: Any, keep: str = "") -> Any:
    """Lists and dicts of JSON with all their texts as `visible` makes them."""
    if isinstance(value, str):
        return visible(value, keep)
    if isinstance(value, (list, tuple)):
        return [visible_values(item, keep) for item in value]
    if isinstance(value, dict):
        return {visible_values(key, keep): visible_values(item, keep) for key, item in value.items()}
    return value


def spreadsheet_cell(value: Any) -> Any:
    """A value as a cell of CSV: visible, on one line, and no formula.

    Spreadsheets skip blanks before a formula, and those for Chinese and Japanese take full-width signs for ASCII ones.
    """
    if not isinstance(value, str):
        return value
    text = visible(value)
    is_formula = unicodedata.normalize("NFKC", text.lstrip()[:1]).startswith(_FORMULA)
    return f"'{text}" if is_formula else text


def json_text(value: Any, indent: int | None = None) -> str:
    """Valid JSON in readable characters; invisible ones are escaped, and a number that is not finite is null."""
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, indent=indent)
    return _replace_invisible(text, "\n", lambda c: json.dumps(c)[1:-1])


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return value


def _replace_invisible(text: str, keep: str, escape: Callable[[str], str]) -> str:
    for character in set(text).difference(keep):
        if unicodedata.category(character) in _INVISIBLE:
            text = text.replace(character, escape(character))
    return text
