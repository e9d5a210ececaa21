"""Values that are combinations are taken apart: of `胃高分化腺癌`, `肺低分化鳞癌` ... organ, grade and type.

As in the discovery of stems and endings (Harris 1955, https://doi.org/10.2307/411036) a value is cut where what is on
the left goes with many different right sides, and what is on the right with many left ones.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

from .clauses import atoms, common_beginning, common_end

_MOST_CUTS = 4  # of cuts of cuts
_SMALLER = 0.6  # the parts of a cut are at most this share of the values they make up
_LEAST_FILLED = 0.2  # of all combinations of the parts that the values are
_MOST_ODD = 0.5  # share of the texts whose value is one part only
_LEAST_VALUES = 4  # two by two
_ROUNDS = 3
_MOST_ATOMS = 60  # of a value that is cut: a sentence, not a page

Split = dict[str, tuple[str, ...]]  # value -> its parts, as many for each value; empty where it has none


def split_values(values: Mapping[str, int]) -> Split:
    """How each value is made up of parts, the same number for each; of one part where there is nothing to gain.

    Args:
        values: {value: number of texts}.
    """
    parts = _split(values, _MOST_CUTS)
    number = len(next(iter(parts.values()))) - 1
    for k in reversed(range(number)):
        parts = _with_middle(parts, k)
    return parts


def _split(values: Mapping[str, int], depth: int) -> Split:
    cut = _cut(values) if depth else None
    if cut is None:
        return {value: (value,) for value in values}
    left, right = (_split(_counts(values, cut, side), depth - 1) for side in (0, 1))
    no_left, no_right = (("",) * len(next(iter(side.values()))) for side in (left, right))
    return {value: left.get(a, no_left) + right.get(b, no_right) for value, (a, b) in cut.items()}


def _counts(values: Mapping[str, int], cut: Mapping[str, tuple[str, str]], side: int) -> Counter[str]:
    """{part: number of texts} of one side; without the empty one."""
    counts: Counter[str] = Counter()
    for value, parts in cut.items():
        counts[parts[side]] += values[value]
    del counts[""]
    return counts


def _cut(values: Mapping[str, int]) -> dict[str, tuple[str, str]] | None:
    """{value: (left, right)}, or None if the values are not combinations of two parts."""
    pieces = {value: atoms(value) for value in values}
    if len(values) < _LEAST_VALUES or max(map(len, pieces.values())) > _MOST_ATOMS:
        return None
    cuts = [_cut_at(pieces, _consistent(pieces, places)) for places in _first_places(pieces)]
    best = min(cuts, key=lambda cut: sum(map(len, _sides(cut))))
    return _with_whole_left(best) if _is_worth_it(values, best) else None


def _first_places(pieces: Mapping[str, Sequence[str]]) -> Iterator[dict[str, int]]:
    """For each value a place with different beginnings and ends on both sides: the most balanced one, the first and the
    last; 0 where there is none."""
    rights: defaultdict[str, set[str]] = defaultdict(set)
    lefts: defaultdict[str, set[str]] = defaultdict(set)
    for of_value in pieces.values():
        for left, right in _halves(of_value):
            rights[left].add(right)
            lefts[right].add(left)
    numbers = {value: [(len(rights[left]), len(lefts[right])) for left, right in _halves(of_value)]
               for value, of_value in pieces.items()}
    for key in (min, lambda both: both[0], lambda both: both[1]):
        yield {value: _best_place(both, key) for value, both in numbers.items()}


def _halves(pieces: Sequence[str]) -> list[tuple[str, str]]:
    """What is on the left and on the right of each place between two pieces."""
    return [("".join(pieces[:place]), "".join(pieces[place:])) for place in range(1, len(pieces))]


def _best_place(numbers: Sequence[tuple[int, int]], key: Callable[[tuple[int, int]], int]) -> int:
    """Of equally good places the last one, as Chinese has at the end what values have in common: 高分化|腺癌."""
    good = [place for place, both in enumerate(numbers, start=1) if min(both) > 1]
    return max(good, key=lambda place: (key(numbers[place - 1]), max(numbers[place - 1]), place), default=0)


def _consistent(pieces: Mapping[str, Sequence[str]], places: dict[str, int]) -> dict[str, int]:
    """Places at which the parts are those of as many other values as can be, found in rounds."""
    for _ in range(_ROUNDS):
        lefts = Counter("".join(pieces[value][:place]) for value, place in places.items() if place)
        rights = Counter("".join(pieces[value][place:]) for value, place in places.items() if place)
        places = {value: _best_place([(lefts[left], rights[right]) for left, right in _halves(of_value)], min)
                  for value, of_value in pieces.items()}
    return places


def _cut_at(pieces: Mapping[str, Sequence[str]], places: Mapping[str, int]) -> dict[str, tuple[str, str]]:
    """{value: (left, right)}."""
    cut = {value: ("".join(pieces[value][:place]), "".join(pieces[value][place:]))
           for value, place in places.items() if place}
    known = _sides(cut)
    return {value: cut.get(value) or _fit_in(of_value, known) for value, of_value in pieces.items()}


def _fit_in(pieces: Sequence[str], known: Sequence[set[str]]) -> tuple[str, str]:
    """A value that is no combination of others': with a part that others have, else alone on the right."""
    value = "".join(pieces)
    if value in known[0]:
        return value, ""
    if value in known[1]:
        return "", value
    for j in range(len(pieces) - 1, 0, -1):
        left, right = "".join(pieces[:j]), "".join(pieces[j:])
        if left in known[0] or right in known[1]:
            return left, right
    return "", value


def _sides(cut: Mapping[str, tuple[str, str]]) -> tuple[set[str], set[str]]:
    """The different left parts and the different right ones, without the empty one."""
    return {left for left, _ in cut.values()} - {""}, {right for _, right in cut.values()} - {""}


def _is_worth_it(values: Mapping[str, int], cut: Mapping[str, tuple[str, str]]) -> bool:
    """Whether a few parts make up many values, and most of what they can."""
    left, right = _sides(cut)
    if min(len(left), len(right)) < 2:
        return False
    both = [value for value, parts in cut.items() if all(parts)]
    if sum(values[value] for value in both) < _MOST_ODD * sum(values.values()):
        return False
    filled = len(both) / (len(left) * len(right))
    return filled == 1 or (filled >= _LEAST_FILLED and len(left) + len(right) <= _SMALLER * len(cut))


def _with_whole_left(cut: dict[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """腺癌|伴坏死, where 腺癌 stands alone as well, for 腺|癌伴坏死."""
    if not all(left for left, _ in cut.values()):
        return cut
    common = common_beginning(right for _, right in cut.values() if right)
    return {value: (left + common, right[len(common):]) if right else (left, right)
            for value, (left, right) in cut.items()}


def _with_middle(parts: Split, k: int) -> Split:
    """The parts with what all of the k-th end in as a part of its own, if that is text between two values."""
    length = len(_middle({of_value[k] for of_value in parts.values()} - {""}))
    if not length:
        return parts
    result = {}
    for value, of_value in parts.items():
        left = of_value[k]
        result[value] = (*of_value[:k], left[:-length], left[-length:], *of_value[k + 1:])
    return result


def _middle(lefts: set[str]) -> str:
    """What all values end in, unless it is the end of these: if it has a sign, or both it and the values are words
    without each other."""
    common = common_end(lefts)
    bare = [len(atoms(left[:len(left) - len(common)])) for left in lefts]
    if min(bare) == 0:
        return ""
    has_sign = any(not atom.isalnum() for atom in atoms(common))
    are_words = len(atoms(common)) > 1 and min(bare) > 1
    return common if has_sign or are_words else ""
