"""How text looks on a terminal: colour where it is wanted, lines no wider than the window.

Full-width characters take two columns. A file or a pipe gets the bare text in one line.
"""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Sequence
from typing import TextIO

from .visible import visible

_CODES = {"bold": "1", "red": "31", "green": "32", "yellow": "33"}
_NARROWEST, _USUAL = 20, 80  # columns


def is_terminal(stream: TextIO) -> bool:
    """Whether a person reads the stream as it is written: not in CI, some of which emulate a terminal."""
    return stream.isatty() and not os.environ.get("CI")


def has_colour(stream: TextIO) -> bool:
    """Whether the stream shows colours, and they are wanted (https://no-color.org)."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not is_terminal(stream):
        return False
    return sys.platform != "win32" or "WT_SESSION" in os.environ  # the old console of Windows prints the codes


def styled(text: str, style: str, stream: TextIO) -> str:
    """The text in bold, red, green or yellow where the stream has colour."""
    return f"\033[{_CODES[style]}m{text}\033[0m" if style and has_colour(stream) else text


def width_of(stream: TextIO) -> int | None:
    """Columns of the terminal that the stream is; None for a file or a pipe."""
    if not is_terminal(stream):
        return None
    asked = os.environ.get("COLUMNS", "")
    if asked.isdecimal():
        return max(_NARROWEST, int(asked))
    try:
        columns = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):  # a terminal that does not say, or none with a number
        columns = 0
    return max(_NARROWEST, columns or _USUAL)


def columns_of(text: str) -> int:
    """Columns that a printable text takes."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    marks = sum(unicodedata.combining(c) > 0 for c in text)  # drawn over the character before
    return len(text) + wide - marks


def wrapped(text: str, width: int | None, indent: int = 0) -> str:
    """A line, broken at its spaces into lines that fit; all but the first begin with `indent` spaces.

    A word that is wider than the window, such as a path, stays whole, so that it can be copied.
    """
    if width is None or columns_of(text) <= width:
        return text
    lines = [""]
    for word in _words(text):
        if lines[-1].strip() and columns_of(lines[-1] + word.rstrip(" ")) > width:
            lines.append(" " * indent)
            word = word.lstrip(" ")
        lines[-1] += word
    return "\n".join(line.rstrip(" ") for line in lines)


def _words(text: str) -> list[str]:
    """The words with the spaces before each, which together are the text."""
    words: list[str] = []
    for piece in text.split(" "):
        words.append(f" {piece}" if words else piece)
    return words


def shortened(text: str, width: int | None) -> str:
    """The text, cut to `width` columns with an ellipsis at its end."""
    if width is None or columns_of(text) <= width:
        return text
    while text and columns_of(text) > width - 3:
        text = text[: -max(1, (columns_of(text) - width + 3) // 2)]
    return text + "..."


def aligned_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of texts as lines, in columns two blanks apart; what nobody sees in a text is shown."""
    shown = [[visible(cell) for cell in row] for row in rows]
    widths = [max(map(columns_of, column)) for column in zip(*shown, strict=True)]
    lines = []
    for row in shown:
        cells = [cell + " " * (width - columns_of(cell)) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines
