"""Slips of the keyboard in a YAML file that its parser blames on another line, or reads as something else.

Looked for only in a file that cannot be used: what is found is then the likely cause.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple


class Slip(NamedTuple):
    """A slip: its line, counted from 1, what it is, and what to write."""

    line: int
    what: str
    fix: str


_PATTERNS = (  # (pattern of a line, what is wrong, what to write); {} are the groups of the pattern
    (re.compile(r"[ ]*[\t\u3000\u00a0]\s*[^\s#]"), "a tab or a full-width space before its first word",
     "indent with plain spaces only"),
    (re.compile(r"\s*([\w.]+)\s*：\s*(.*)"), "a full-width colon (：) after {0}",
     "write the ASCII colon and a space: {0}: {1}"),
    (re.compile(r"[^#\"']*[{,]\s*([A-Za-z_]\w*)\s*：\s*([^,}]*)"), "a full-width colon (：) after {0}",
     "write the ASCII colon and a space: {0}: {1}"),
    (re.compile(r"\s*([\w.]+)\s*=\s*(.*)"), "'=' after {0}", "write a colon and a space: {0}: {1}"),
    (re.compile(r"\s*([\w.]+):(?!//)([^\s:].*)"), "no space after the colon of {0}", "write {0}: {1}"),
    (re.compile(r"\s*([\w.]+)\s*:\s+[｛［]"), "a full-width bracket after {0}", "write {{ }} or [ ]"),
)
_SETTING = re.compile(r"([\w.]+)\s*([＝：:])\s*(.*)")
_SIGNS = {"＝": "a full-width equals sign (＝)", "：": "a full-width colon (：)", ":": "a colon"}
_QUOTES = {"“": "”", "”": "”", "‘": "’", "「": "」", "『": "』", "＂": "＂", "＇": "＇"}


def find_slip(text: str) -> Slip | None:
    """The first slip in the text of a YAML file."""
    for number, line in enumerate(text.splitlines(), start=1):
        for pattern, what, fix in _PATTERNS:
            found = pattern.match(line)
            if found:
                groups = [group.strip() for group in found.groups()]
                return Slip(number, what.format(*groups), fix.format(*groups).rstrip())
    return None


def setting_slip(pair: str) -> tuple[str, str]:
    """(what, fix) of a `section.key=value` without '='."""
    found = _SETTING.fullmatch(pair.strip())
    if not found:
        return f"{pair!r} has no '='", "write --set section.key=value"
    key, sign, value = found.groups()
    return f"{pair!r} has {_SIGNS[sign]} in place of '='", f"write --set {key}={value}"


def unquoted(value: str) -> str | None:
    """What stands between quotation marks that YAML takes for a part of the value; None without them."""
    if len(value) > 1 and _QUOTES.get(value[0]) == value[-1]:
        return value[1:-1]
    return None


def in_ascii(value: str) -> str | None:
    """A value with ASCII in place of full-width characters, such as １０ or ，; None if it has none."""
    plain = unicodedata.normalize("NFKC", value).replace("、", ",").replace("。", ".")
    return None if plain == value else plain
