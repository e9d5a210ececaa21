"""What stands at each place of aligned texts: columns of clauses become blocks of literal text and parts that vary."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from .clauses import Clauses, atoms, common_beginning, common_end
from .columns import Column
from .values import split_values

_LABEL = re.compile(r".*[：:（(=]\s*", re.DOTALL)  # after these a value begins
_WORDS = re.compile(r".*[\s：:（(=]", re.DOTALL)
_CLOSING = re.compile(r"[）)]*\Z")
ALMOST_ALL = 0.98  # share of the texts: what so many have belongs to the template, and others do not follow it


@dataclass(eq=False)
class Part:
    """A place with one of several values.

    Attributes:
        values: {number of the text: value}; a text without one is missing.
        before: Literal text before the value.
        after: Literal text after it.
    """

    values: dict[int, str]
    before: str = ""
    after: str = ""

    def __post_init__(self) -> None:
        """Take what all values begin with out of them, if it is a label or words, and a bracket that it leaves open."""
        values = set(self.values.values())
        begin, end = _common_label(values), ""
        if re.search("[（(]", begin):
            end = _CLOSING.search(common_end(value[len(begin):] for value in values))[0]
        if any(len(value) <= len(begin) + len(end) for value in values):
            return
        self.before, self.after = begin, end
        self.values = {i: value[len(begin):len(value) - len(end)] for i, value in self.values.items()}


@dataclass
class Block:
    """Parts that stand in a text all together or not at all, and literal text before and after them.

    Attributes:
        texts: Those that have it; None for all.
    """

    parts: list[Part]
    texts: frozenset[int] | None = None
    before: str = ""
    after: str = ""


def _common_label(values: set[str]) -> str:
    """What all values begin with that is a label, or words of which the values leave words, too."""
    common = common_beginning(values)
    opened = (_WORDS if len(values) > 1 else _LABEL).match(common)
    if opened or len(values) == 1:
        return opened[0] if opened else ""
    rests = [atoms(value[len(common):]) for value in values]
    return common if len(atoms(common)) > 1 and min(map(len, rests)) > 1 else ""


def blocks_of(texts: Sequence[Clauses], places: Sequence[Sequence[Column]], columns: Sequence[Column],
              weights: Sequence[int], *, split: bool) -> list[Block]:
    """The blocks of texts that have clauses in these columns only.

    Args:
        split: Whether values that are combinations are taken apart.
    """
    clauses = _by_column(texts, places)
    blocks_of_each = [_blocks_of_column(clauses[column], len(texts), weights, split) for column in columns]
    in_all = [len(clauses[column]) == len(texts) for column in columns]
    leads = [column.lead() for column in columns]
    _add_leads(blocks_of_each, leads, in_all)
    return [*chain.from_iterable(blocks_of_each), *_end_of(texts, weights)]


def _add_leads(blocks_of_each: Sequence[Sequence[Block]], leads: Sequence[str], in_all: Sequence[bool]) -> None:
    """Put what stands between columns into their blocks: before a column once one before it is in all texts; until then
    after each, as any of these may be the first of a text.

    Args:
        blocks_of_each: The blocks of each column.
        leads: What stands before each.
        in_all: Whether all texts have a clause in it.
    """
    num_optional = in_all.index(True) if True in in_all else len(in_all)  # columns before the first that is in all
    for number in range(num_optional):
        following = leads[number + 1:number + 2]
        blocks_of_each[number][-1].after += "".join(following)
    for number in range(num_optional + 1, len(in_all)):
        first = blocks_of_each[number][0]
        first.before = leads[number] + first.before


def _by_column(texts: Sequence[Clauses], places: Sequence[Sequence[Column]]) -> dict[Column, dict[int, str]]:
    """{column: {number of the text: clause}}."""
    found: defaultdict[Column, dict[int, str]] = defaultdict(dict)
    for i, (text, of_text) in enumerate(zip(texts, places, strict=True)):
        for clause, column in zip(text.clauses, of_text, strict=True):
            found[column][i] = clause
    return found


def _blocks_of_column(clauses: dict[int, str], num_texts: int, weights: Sequence[int], split: bool) -> list[Block]:
    """The blocks of one column; of a column that some texts lack, one block, as its parts have its lead in common."""
    found = _taken_apart(clauses, weights) if split else [clauses]
    if len(clauses) < num_texts and min(map(len, found)) < len(clauses):
        found = [clauses]
    blocks: list[Block] = []
    for values in found:
        texts = None if len(values) == num_texts else frozenset(values)
        if not blocks or blocks[-1].texts != texts:
            blocks.append(Block([], texts))
        _append(blocks[-1], values)
    return blocks


def _taken_apart(clauses: dict[int, str], weights: Sequence[int]) -> list[dict[int, str]]:
    """Of each part of the clauses {number of the text: value}."""
    counts: Counter[str] = Counter()
    for i, clause in clauses.items():
        counts[clause] += weights[i]
    parts = split_values(counts)
    found: list[dict[int, str]] = [{} for _ in next(iter(parts.values()))]
    for i, clause in clauses.items():
        for values, part in zip(found, parts[clause], strict=True):
            if part:
                values[i] = part
    return found


def _append(block: Block, values: dict[int, str]) -> None:
    """Add a part, or literal text if it is the same in all texts of the block, unless it is all that the block has."""
    is_literal = len(set(values.values())) == 1
    if is_literal and block.parts:
        block.parts[-1].after += next(iter(values.values()))
    elif is_literal and block.texts is None:
        block.before += next(iter(values.values()))
    else:
        block.parts.append(Part(values))


def _end_of(texts: Sequence[Clauses], weights: Sequence[int]) -> list[Block]:
    """What stands after the last clause: literal text where almost all texts end in it, else one of several."""
    ends: Counter[str] = Counter()
    for text, weight in zip(texts, weights, strict=True):
        ends[text.end] += weight
    end, count = ends.most_common(1)[0]
    if count >= ALMOST_ALL * ends.total():
        return [Block([], None, end)] if end else []
    values = {i: text.end for i, text in enumerate(texts) if text.end}
    return [Block([Part(values)], None if len(values) == len(texts) else frozenset(values))]
