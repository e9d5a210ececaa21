"""What the summary says in numbers: counts per rule, repeats, near duplicates, conflicts, lengths, patients."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ..data.near_duplicates import near_duplicate_pairs
from .dataset import Case
from .report_text import CleanedText


@dataclass
class RuleCount:
    """How often a rule took something out, in how many rows, and what."""

    pieces: int = 0
    rows: int = 0
    texts: Counter[str] = field(default_factory=Counter)
    first_row: dict[str, int] = field(default_factory=dict)  # of each text


@dataclass(frozen=True)
class Distribution:
    """A sorted list of numbers, as a reader wants them: count, smallest, median, 95th percentile, largest, mean."""

    count: int
    smallest: int
    median: int
    percentile_95: int
    largest: int
    mean: float


def count_rules(pieces_by_row: Iterable[Sequence[tuple[str, str]]]) -> dict[str, RuleCount]:
    """Counts per rule, the commonest first, of the (rule, text) pieces of each row."""
    counts: dict[str, RuleCount] = defaultdict(RuleCount)
    for row, pieces in enumerate(pieces_by_row):
        for rule, text in pieces:
            counts[rule].pieces += 1
            counts[rule].texts[text] += 1
            counts[rule].first_row.setdefault(text, row)
        for rule in {rule for rule, _ in pieces}:
            counts[rule].rows += 1
    return dict(sorted(counts.items(), key=lambda item: -item[1].pieces))


def count_sections(results: Iterable[CleanedText]) -> Counter[str]:
    """In how many rows each kept section occurs."""
    return Counter(section for result in results for section in result.sections)


def repeated_texts(cases: Iterable[Case]) -> list[tuple[str, int]]:
    """[(text, number of cases)] of all texts, the commonest first."""
    return Counter(text for case in cases for text in case.texts).most_common()


def near_duplicates(texts: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of different texts that are alike."""
    return [(texts[number], texts[earlier]) for number, earlier in near_duplicate_pairs(texts)]


def conflicts(cases: Iterable[Case]) -> list[Case]:
    """Cases with several different texts."""
    return [case for case in cases if len(case.texts) > 1]


def distribution(numbers: Iterable[int]) -> Distribution | None:
    """The distribution of some numbers; None of none."""
    ordered = sorted(numbers)
    if not ordered:
        return None
    last = len(ordered) - 1
    return Distribution(len(ordered), ordered[0], ordered[last // 2], ordered[round(0.95 * last)], ordered[last],
                        sum(ordered) / len(ordered))
