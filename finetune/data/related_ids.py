"""Slides that may be of one patient or overlap, as far as ids tell: `P017_1` and `P017_2`, `region_8` and `region_9`."""

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
    members: dict[str, list[str]] = defaultdict(list)
    for slide_id in first + second:
        match = _LAST_NUMBER.fullmatch(slide_id) or _LAST_LETTER.fullmatch(slide_id)
        if match and not _REGION.fullmatch(slide_id):
            members[match[1]].append(slide_id)
    pairs = []
    in_second = set(second)
    for ids in members.values():
        ours = [i for i in ids if i not in in_second]
        theirs = [i for i in ids if i in in_second]
        if ours and theirs and len(ids) <= _MOST_OF_A_PATIENT:
            pairs.append((ours[0], theirs[0]))
    return pairs


def _neighbours(first: list[str], second: list[str]) -> list[tuple[str, str]]:
    """Regions of which one has the number after or before the other's."""
    numbered = {(match[1], int(match[2])): i for i in first if (match := _REGION.fullmatch(i))}
    pairs = []
    for slide_id in second:
        match = _REGION.fullmatch(slide_id)
        if match is None:
            continue
        number = int(match[2])
        neighbour = numbered.get((match[1], number - 1)) or numbered.get((match[1], number + 1))
        if neighbour:
            pairs.append((neighbour, slide_id))
    return pairs
