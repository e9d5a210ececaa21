"""Regular expressions in the config: what they extract is their first group, or the match if they have none."""

from __future__ import annotations

import re

from ..common.errors import UserError


def compile_pattern(pattern: str, key: str) -> re.Pattern[str]:
    """The compiled value of the config key `key`. Raises UserError if it is not a regular expression."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(key, f"{pattern!r} is not a regular expression ({error})",
                        r"for TCGA barcodes write ^TCGA-\w\w-\w{4}") from None


def find(regex: re.Pattern[str], text: str) -> str | None:
    """What the pattern extracts from a text, None if nothing: an optional group may be empty."""
    match = regex.search(text)
    if match is None:
        return None
    return match[1 if regex.groups else 0] or None
