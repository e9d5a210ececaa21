"""Finds the template that texts follow: fixed text, slots with closed sets of values, optional parts, conditions."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

from ..common.errors import UserError
from .alignment import Alignment
from .clauses import CUTS, Clauses, atoms
from .columns import Column
from .draft import draft
from .parts import ALMOST_ALL, Block, Part, blocks_of
from .template import Template

# Texts that do not follow a template are out of reach of a captioner that fills it, so that this is also the highest
# accuracy left. Of texts written to a form 95 to 100 % follow theirs, of free ones less than 1 %; in between are
# mixtures (PatchGastricADC22, whose reports repeat whole sentences: 83 %).
MIN_EXPECTED = 0.8
_LEAST_TEXTS = 8
_SAMPLE, _HOPELESS = 1000, 0.2  # different texts that show whether a search is of use, and the share that must follow
_RARE_COLUMNS = (0.001, 0.02)  # share of the texts with a clause in a column: below it these do not follow
_LONGEST_SINGLE = 12  # atoms of a value that one text only has: a longer one is free text, maybe of a patient


@dataclass(frozen=True)
class FoundTemplate:
    """The template that fits texts best.

    Attributes:
        candidate: None if there is none at all.
        coverage: Share of the texts that follow it.
        expected: Share of new texts of the kind that would: that of the texts each value of which stands in another
            text, too, so that they would follow a template found without them.
        num_texts: Of how many texts.
    """

    candidate: Template | None
    coverage: float
    expected: float
    num_texts: int

    @property
    def template(self) -> Template | None:
        """None if the texts do not follow one."""
        is_enough = self.expected >= MIN_EXPECTED and self.num_texts >= _LEAST_TEXTS
        return self.candidate if is_enough else None

    def summary(self) -> str:
        """One line on what was found, or why nothing, without a word of the texts."""
        if self.num_texts < _LEAST_TEXTS:
            return f"no template: {self.num_texts} texts are too few to find one ({_LEAST_TEXTS} are needed)"
        if self.candidate is None:
            return f"no template: the {self.num_texts} texts have no slots in common"
        numbers = (f"{self.coverage:.0%} of {self.num_texts} texts follow it, and about {self.expected:.0%} of new "
                   "ones would")
        if self.template is None:
            return f"no template: of the best one found, {numbers} ({MIN_EXPECTED:.0%} are needed)"
        num_values = sum(len(slot.values) for slot in self.template.slots.values())
        return f"template with {len(self.template.slots)} slots and {num_values} values: {numbers}"


def find_template(texts: Sequence[str]) -> FoundTemplate:
    """The template that texts follow, if they do.

    Texts are cut into clauses, sentences, or not at all; clauses that answer the same question are values of one slot,
    and what is the same in all is the text between the slots.

    Args:
        texts: As often as they occur. A search takes some seconds for 20 000.
    """
    counts = Counter(text.strip() for text in texts)
    del counts[""]
    repeated = sum(n for n in counts.values() if n > 1)
    if len(counts) > 2 * _SAMPLE and repeated < MIN_EXPECTED * counts.total():
        chosen = random.Random(0).sample(sorted(counts), _SAMPLE)
        sample = _best_of({text: counts[text] for text in chosen})
        if sample.expected < _HOPELESS:
            return sample
    return _best_of(counts)


def _best_of(counts: dict[str, int]) -> FoundTemplate:
    """The template that most new texts would follow, of equally good ones that of the fewest values."""
    best = FoundTemplate(None, 0.0, 0.0, sum(counts.values()))
    for template in _candidates(list(counts), list(counts.values())):
        found = _judged(template, counts)
        if _merit(found) > _merit(best):
            best = found
        if best.expected >= ALMOST_ALL:
            break  # the finest cut that does
    return best


def _merit(found: FoundTemplate) -> tuple[float, int]:
    slots = found.candidate.slots.values() if found.candidate else ()
    return round(found.expected, 2), -sum(len(slot.values) for slot in slots)


def _judged(template: Template, counts: dict[str, int]) -> FoundTemplate:
    fields = {text: found for text in counts if (found := template.parse(text)) is not None}
    seen: Counter[tuple[str, str | None]] = Counter()
    for text, of_text in fields.items():
        for item in of_text.items():
            seen[item] += counts[text]
    supported = [text for text, of_text in fields.items()
                 if all(item[1] is None or seen[item] > 1 for item in of_text.items())]
    total = sum(counts.values())
    return FoundTemplate(template, sum(map(counts.__getitem__, fields)) / total,
                         sum(map(counts.__getitem__, supported)) / total, total)


def _candidates(texts: list[str], weights: list[int]) -> Iterator[Template]:
    """Templates of the texts cut ever less finely; of each cut the first two that are unambiguous, one with values that
    are combinations taken apart and one without."""
    for cut in CUTS:
        alignment = Alignment([Clauses.of(text, cut) for text in texts], weights)
        for split in (True, False):
            yield from _first_usable(_content(alignment, rare, split) for rare in _RARE_COLUMNS)


def _first_usable(contents: Iterator[dict[str, Any] | None]) -> Iterator[Template]:
    for content in contents:
        try:
            yield Template.from_dict(content)
            return
        except UserError:  # ambiguous, or nothing in it stands in all texts
            continue


def _content(alignment: Alignment, rare: float, split: bool) -> dict[str, Any] | None:
    """{text, slots} of the texts that have clauses in common columns only and are not odd otherwise."""
    follows = _in_common_columns(alignment, rare)
    numbers = list(compress(range(len(follows)), follows))
    for i in _odd(_blocks(alignment, follows, split), list(compress(alignment.weights, follows))):
        follows[numbers[i]] = False
    blocks = _blocks(alignment, follows, split)
    return draft(blocks, list(compress(alignment.weights, follows))) if blocks else None


def _blocks(alignment: Alignment, follows: list[bool], split: bool) -> list[Block]:
    places = [of_text for of_text in compress(alignment.places, follows) if of_text]
    used = {column for of_text in places for column in of_text}
    columns = [column for column in alignment.columns if column in used]
    if not columns:
        return []
    return blocks_of(list(compress(alignment.texts, follows)), places, columns,
                     list(compress(alignment.weights, follows)), split=split)


def _in_common_columns(alignment: Alignment, rare: float) -> list[bool]:
    """Which texts have clauses in common columns only, and one in each column in which almost all texts have one."""
    counts: Counter[Column] = Counter()
    for places, weight in zip(alignment.places, alignment.weights, strict=True):
        for column in places or ():
            counts[column] += weight
    total = sum(alignment.weights)
    common = {column for column, count in counts.items() if count >= max(2, rare * total)}
    always = {column for column, count in counts.items() if count >= ALMOST_ALL * total}
    return [bool(places) and always <= set(places) <= common for places in alignment.places]


def _odd(blocks: list[Block], weights: list[int]) -> list[int]:
    """Numbers of the texts with two values, or a long one, that no other text has."""
    num_single: Counter[int] = Counter()
    for part in (part for block in blocks for part in block.parts):
        singles = _singles(part, weights)
        num_single.update(singles)
        num_single.update(i for i in singles if len(atoms(part.values[i])) > _LONGEST_SINGLE)
    return [i for i, n in num_single.items() if n > 1]


def _singles(part: Part, weights: list[int]) -> list[int]:
    """Numbers of the texts whose value no other text has."""
    counts: Counter[str] = Counter()
    for i, value in part.values.items():
        counts[value] += weights[i]
    return [i for i, value in part.values.items() if counts[value] == 1]
