"""Regular expressions of users, in the config and in rules files.

They may come from anywhere, and `^(a+)+$` takes longer than anyone waits: each pattern has a limit of time and of size.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator

import regex

from ..common.errors import UserError

_MAX_SECONDS = 30  # of one pattern on all texts of a run; 100 000 ids take less than one
_MAX_SECONDS_OF_TEXT = 5  # of one pattern of a rules file on one text; 75 of them take 1 ms
_MAX_LENGTH = 1000  # characters
_MAX_REPEATS = 10_000  # that a compiled pattern is unrolled to: (a{9999}){9999} would fill the memory
_SHOWN = 60  # characters of a pattern in a message
_REPEAT = re.compile(r"(\)?)\{(\d*)(?:,(\d*))?\}")


class Pattern:
    """The compiled value of a config key: what it extracts is its first group, or the match if it has none.

    Raises UserError if it is not a regular expression, or would be too large.
    """

    def __init__(self, pattern: str, key: str) -> None:
        self._pattern, self._key, self._seconds_left = pattern, key, float(_MAX_SECONDS)
        if len(pattern) > _MAX_LENGTH or repeats_too_much(pattern):
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


class LimitedPattern:
    """A pattern with the methods of `re.Pattern` that cleaning uses, of which none takes long.

    Raises re.error, OverflowError or RecursionError for what is no regular expression.
    """

    def __init__(self, pattern: str, file: object, name: str) -> None:
        """file, name: Of the pattern, for the error if it takes too long."""
        self.pattern, self._file, self._name = re.compile(pattern).pattern, str(file), name
        try:
            self._regex = regex.compile(pattern)
        except regex.error as error:
            raise re.error(str(error)) from None

    def search(self, text: str) -> re.Match[str] | None:
        """As `re.Pattern.search`. Raises UserError if it takes too long, as the other methods do."""
        try:
            return self._regex.search(text, timeout=_MAX_SECONDS_OF_TEXT)
        except TimeoutError:
            raise self._too_slow() from None

    def finditer(self, text: str, start: int = 0, end: int | None = None) -> Iterator[re.Match[str]]:
        """As `re.Pattern.finditer`."""
        try:
            yield from self._regex.finditer(text, start, end, timeout=_MAX_SECONDS_OF_TEXT)
        except TimeoutError:
            raise self._too_slow() from None

    def sub(self, replacement: str | Callable[[re.Match[str]], str], text: str) -> str:
        """As `re.Pattern.sub`."""
        try:
            return self._regex.sub(replacement, text, timeout=_MAX_SECONDS_OF_TEXT)
        except TimeoutError:
            raise self._too_slow() from None

    def _too_slow(self) -> UserError:
        # without the text, which is a report
        return UserError(self._file, f"{self._name} takes more than {_MAX_SECONDS_OF_TEXT} s on a text",
                         "write it without a repeat inside a repeat")


def repeats_too_much(pattern: str) -> bool:
    """Whether compiling a pattern would take too much memory."""
    return _repeats(pattern) > _MAX_REPEATS


def _repeats(pattern: str) -> int:
    """At most so many copies of a part are made: repeats of groups may be nested, those of characters are not."""
    of_groups, of_characters = [1], [1]
    for closes_group, low, high in _REPEAT.findall(pattern):
        digits = max(low[:6], high[:6], key=lambda number: int(number or 0))
        (of_groups if closes_group else of_characters).append(int(digits or 1))
    return math.prod(of_groups) * max(of_characters)
