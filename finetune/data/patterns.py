"""Regular expressions in the config: what they extract is their first group, or the match if they have none.

They may come from anywhere, and `^(a+)+$` takes longer than anyone waits: each pattern has a limit of time and of size.
"""

from __future__ import annotations

import math
import re
import time

import regex

from ..common.errors import UserError

_MAX_SECONDS = 30  # of one pattern on all texts of a run; 100 000 ids take less than one
_MAX_LENGTH = 1000  # characters
_MAX_REPEATS = 10_000  # that a compiled pattern is unrolled to: (a{9999}){9999} would fill the memory
_SHOWN = 60  # characters of a pattern in a message
_REPEAT = re.compile(r"(\)?)\{(\d*)(?:,(\d*))?\}")


class Pattern:
    """The compiled value of a config key.

    Raises UserError if it is not a regular expression, or would be too large.
    """

    def __init__(self, pattern: str, key: str) -> None:
        self._pattern, self._key, self._seconds_left = pattern, key, float(_MAX_SECONDS)
        if len(pattern) > _MAX_LENGTH or _repeats(pattern) > _MAX_REPEATS:
            raise UserError(key, f"{pattern[:_SHOWN]!r}... is too large a regular expression", "write a shorter one")
        try:
            self._regex = regex.compile(pattern)
        except (regex.error, RecursionError, OverflowError, ValueError) as error:
            raise UserError(key, f"{pattern[:_SHOWN]!r} is not a regular expression ({error})",
                            r"for TCGA barcodes write ^TCGA-\w\w-\w{4}") from None

    def find(self, text: str) -> str | None:
        """What the pattern extracts from a text, None if nothing: an optional group may be empty.

        Raises UserError if it takes too long.
        """
        start = time.monotonic()
        try:
            match = self._regex.search(text, timeout=self._seconds_left)
        except TimeoutError:
            raise UserError(self._key, f"{self._pattern[:_SHOWN]!r} takes more than {_MAX_SECONDS} s on names such as "
                            f"{text[:_SHOWN]!r}",
                            "write it without a repeat inside a repeat") from None
        self._seconds_left = max(self._seconds_left - (time.monotonic() - start), 0.001)
        if match is None:
            return None
        return match[1 if self._regex.groups else 0] or None


def _repeats(pattern: str) -> int:
    """At most so many copies of a part are made: repeats of groups may be nested, those of characters are not."""
    of_groups, of_characters = [1], [1]
    for closes_group, low, high in _REPEAT.findall(pattern):
        digits = max(low[:6], high[:6], key=lambda number: int(number or 0))
        (of_groups if closes_group else of_characters).append(int(digits or 1))
    return math.prod(of_groups) * max(of_characters)
