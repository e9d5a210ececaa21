"""Slides that may be of one patient or overlap, as far as ids tell: `P017_1` and `P017_2`, `region_8` and `_9`."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

# The part before has a digit, so that it names more than a kind: `slide_001` and `slide_002` have nothing in common.
_LAST_NUMBER = re.compile(r"(.*\d.*?)[-_. ]+\d{1,3}")
_LAST_LETTER = re.compile(r"(.*\d)[-_. ]*[A-Za-z]")
_REGION = re.compile(r"(.*(?:region|tile|patch|roi|area|crop)[a-z]*[-_. ]*)(\d+)", re.IGNORECASE)
_MOST_OF_A_PATIENT = 10  # more ids that begin alike share a year or a hospital


def related_pairs(first: Iterable[str], second: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of ids, one of each side, that may belong together; one for each patient or numbered neighbour."""
    first, second = sorted(first), sorted(second)
    return _same_patient(first, second) + _neighbours(first, second)


def _same_patient(first: list[str], second: list[str]) -> list[tuple[str, str]]:
    ours, theirs = _by_patient(first), _by_patient(second)
    pairs = []
    for patient, ids in ours.items():
        others = theirs.get(patient, [])
        if others and len(ids) + len(others) <= _MOST_OF_A_PATIENT:
            pairs.append((ids[0], others[0]))
    return pairs


def _by_patient(ids: list[str]) -> dict[str, list[str]]:
    """{what comes before a last number or letter: its ids}."""
    members: dict[str, list[str]] = defaultdict(list)
    for slide_id in ids:
        match = _LAST_NUMBER.fullmatch(slide_id) or _LAST_LETTER.fullmatch(slide_id)
        is_region = _REGION.fullmatch(slide_id) is not None
        if match and not is_region:
            members[match[1]].append(slide_id)
    return members


def _neighbours(first: list[str], second: list[str]) -> list[tuple[str, str]]:
    """Regions of which one has the number after or before the other's."""
    region_of = {_numbered(slide_id): slide_id for slide_id in first}
    pairs = []
    for slide_id in second:
        name, number = _numbered(slide_id)
        neighbour = region_of.get((name, number - 1)) or region_of.get((name, number + 1))
        if name and neighbour:
            pairs.append((neighbour, slide_id))
    return pairs


def _numbered(slide_id: str) -> tuple[str, int]:
    """(name, number) of a region; ("", 0) of anything else."""
    match = _REGION.fullmatch(slide_id)
    return (match[1], int(match[2])) if match else ("", 0)
