"""The parts of a report: diagnosis, microscopy, gross description ..., by the headings inside a text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from .rules import Section

DEFAULT = "diagnosis"  # of a text without headings
PREAMBLE = "preamble"  # what stands before the first heading of a text that names its diagnosis: names, numbers, dates


@dataclass(frozen=True)
class Part:
    """A part of a text: the name of its section, and its text without the heading."""

    section: str
    text: str


class SectionFinder:
    """Cuts texts at headings."""

    def __init__(self, sections: Mapping[str, Section]) -> None:
        self._sections = sections
        self._section_of: dict[str, str] = {}
        for name, section in sections.items():
            for heading in section.headings:
                self._section_of.setdefault(_key(heading), name)
        self._pattern = _heading_pattern([heading for section in sections.values() for heading in section.headings])

    def split(self, text: str, section: str = DEFAULT) -> list[Part]:
        """The parts of a normalised text in their order.

        A heading begins a line or sentence; a colon follows it, or it stands in 【】 or alone on its line.

        Args:
            text: The text.
            section: That of the text before the first heading. For the default it is the preamble if a heading of the
                diagnosis comes later.
        """
        headings = [heading for heading in self._pattern.finditer(text) if self._counts(heading, text)]
        names = list(map(self._section_at, headings))
        first = PREAMBLE if section == DEFAULT and DEFAULT in names else section
        begins = [0, *(heading.end() for heading in headings)]
        ends = [*(heading.start() for heading in headings), len(text)]
        parts = [Part(name, text[begin:end].strip())
                 for name, begin, end in zip([first, *names], begins, ends, strict=True)]
        return [part for part in parts if part.text]

    def _section_at(self, heading: re.Match[str]) -> str:
        return self._section_of[_key(heading["box"] or heading["bracket"] or heading["colon"])]

    def _counts(self, heading: re.Match[str], text: str) -> bool:
        """Whether a heading stands where one of its section may."""
        at_line = heading.start() == 0 or text[heading.start() - 1] == "\n"
        return at_line or heading["colon"] is None or self._sections[self._section_at(heading)].inline


def _heading_pattern(headings: list[str]) -> re.Pattern[str]:
    """A pattern of any of the headings; blanks between the characters of a Chinese heading do not matter."""
    if not headings:
        return re.compile("(?!)")
    ordered = sorted(headings, key=len, reverse=True)
    any_of = "|".join(r"[ ]?".join(map(re.escape, h)) if not h.isascii() else re.escape(h).replace(r"\ ", "[ -]*")
                      for h in ordered)
    number = r"(?:[一二三四五六七八九十]、|\d{1,2}[.、][ ]?(?=[^\d]))?"
    begin = rf"(?:^|(?<=[\n。；;!?！？])|(?<=[.)）\]】,，] )|(?<=  ))[ ]*{number}[#*]*[ ]*"
    note = r"[ ]*(?:[(（][^()（）\n]{0,20}[)）])?[ ]*[#*]*"
    return re.compile(rf"(?:【[ ]*(?P<box>{any_of})[^】\n]{{0,10}}】[:：]?|"
                      rf"{begin}\[[ ]*(?P<bracket>{any_of})[ ]*\][:：]?|"
                      rf"{begin}(?P<colon>{any_of})(?:{note}[:：]|(?=[ ]*\n)))[ ]*", re.IGNORECASE)


def _key(heading: str) -> str:
    """A heading without blanks and case."""
    return re.sub(r"[\s-]+", "", heading).casefold()
