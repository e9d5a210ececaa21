"""One report from the cells of its row to the text of a label."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .final_check import Suspect, suspects
from .identifiers import Masked, Masker
from .normalise import normalise, renumber
from .rules import Rules, simplify_name
from .sections import Part, SectionFinder
from .statements import Removed, drop


@dataclass(frozen=True)
class CleanedText:
    """What became of one report.

    Attributes:
        text: The text of the label, '' if nothing is left.
        before: The kept sections as they were, normalised only.
        sections: Names of the kept sections that it has.
        other_parts: The sections that are not kept.
        removed, masked: What the rules took out.
        suspects: What in `text` still looks like an identifier.
        placeholder: The whole report if it says nothing, such as `见图`; '' otherwise.
    """

    text: str
    before: str
    sections: tuple[str, ...]
    other_parts: tuple[Part, ...]
    removed: tuple[Removed, ...]
    masked: tuple[Masked, ...]
    suspects: tuple[Suspect, ...]
    placeholder: str = ""


class Cleaner:
    """Cleans the reports of a table."""

    def __init__(self, rules: Rules, doctors: Iterable[str] = ()) -> None:
        """Args: rules; doctors: names that are masked in every text."""
        self._rules = rules
        self._finder = SectionFinder(rules.sections)
        self._masker = Masker(rules.identifiers, rules.protect, doctors)

    def clean(self, cells: Sequence[tuple[str, str]], known: Sequence[str] = ()) -> CleanedText:
        """Clean the texts of a row.

        Args:
            cells: (section, text) of each text column; headings inside a text may name other sections.
            known: Values of the row that identify its patient.
        """
        parts = self._parts(cells)
        kept = self._kept(parts)
        before = "\n".join(part.text for part in kept)
        text, removed, masked, says_something = "", [], [], False
        for part in kept:
            if simplify_name(part.text) not in self._rules.placeholders:
                says_something = True
                text += "\n" + self._clean_part(part.text, known, removed, masked)
        text = normalise(text)
        if not simplify_name(text):  # punctuation is left
            text = ""
        sections = dict.fromkeys(part.section for part in kept)
        return CleanedText(
            text=text,
            before=before,
            sections=tuple(sections),
            other_parts=tuple(part for part in parts if part.section not in sections),
            removed=tuple(removed),
            masked=tuple(masked),
            suspects=tuple(suspects(text)),
            placeholder="" if says_something else before,
        )

    def _kept(self, parts: Sequence[Part]) -> list[Part]:
        """The parts of the sections to keep, in the order of the rules, without repeats."""
        kept: dict[Part, None] = {}
        for section in self._rules.keep_sections:
            kept |= dict.fromkeys(part for part in parts if part.section == section)
        return list(kept)

    def _parts(self, cells: Sequence[tuple[str, str]]) -> list[Part]:
        parts: list[Part] = []
        for section, cell in cells:
            parts += self._finder.split(normalise(cell), section)
        return parts

    def _clean_part(self, text: str, known: Sequence[str], removed: list[Removed], masked: list[Masked]) -> str:
        # first what identifies: the clauses around a name tell that it is one
        text, found = self._masker.mask(text, known)
        masked += found
        text, pieces = drop(text, self._rules.drop)
        removed += pieces
        return renumber(self._masker.tidy(text)) if pieces else text

    def without_identifiers(self, text: str, known: Iterable[str] = ()) -> str:
        """`text` as it may be shown as an example."""
        return self._masker.mask(normalise(text), known)[0]
