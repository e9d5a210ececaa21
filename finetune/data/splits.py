"""Which cases train, which validate, which are kept for a test: by patient, so that none is on two sides."""

from __future__ import annotations

import csv
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from ..common.errors import UserError
from ..common.files import expand
from ..common.log import logger
from ..config.schema import DataConfig
from .labels import SPLITS, Label, slide_name
from .near_duplicates import _NEAR, overlap

_TCGA = re.compile(r"TCGA-\w\w-\w{4}")


@dataclass(frozen=True)
class Split:
    """Ids of each side, in the order in which the samples stand."""

    train: list[str]
    val: list[str]
    test: list[str]


def make_split(labels: Mapping[str, Label], config: DataConfig, seed: int) -> Split:
    """The split of these cases: what `data.split_file` or the labels say, else by patient.

    Of what is to train, `data.val_split` is held out, or fold `data.fold` of `data.folds`, unless validation cases are
    named. Raises UserError for a patient on two sides, a case without a side, or an empty side.
    """
    groups = patients(labels, config.group_pattern)
    named = _named_sides(labels, config.split_file)
    rest, val, test = ([i for i in labels if named.get(i, "train") == side] for side in SPLITS)
    if config.folds and val:
        raise UserError("data.folds", f"{len(val)} validation cases are named already", "use one of the two")
    if config.folds:
        train, val = split_fold(rest, config.folds, config.fold, seed, groups)
    elif val:
        train, val = sorted(rest), sorted(val)
    else:
        train, val = split_ids(rest, config.val_split, seed, groups)
    if config.group_pattern or named:  # slides of a patient stand side by side: batches of like slides tell little
        random.Random(seed).shuffle(val)
    split = Split(train, val, sorted(test))
    _refuse_shared_patients(split, groups)
    return split


def patients(ids: Iterable[str], pattern: str | None) -> dict[str, str]:
    """{id: patient}: what the regular expression finds in the id (its first group, if it has one), else the id."""
    if pattern is None:
        return {i: i for i in ids}
    try:
        find = re.compile(pattern)
    except re.error as error:
        raise UserError("data.group_pattern", f"{pattern!r} is no regular expression ({error})",
                        r"for TCGA barcodes write ^TCGA-\w\w-\w{4}") from None
    found = {i: find.search(i) for i in ids}
    if missing := [i for i, match in found.items() if not (match and match[bool(find.groups)])]:
        raise UserError("data.group_pattern", f"{pattern!r} finds no patient in {len(missing)} of {len(found)} ids, "
                        f"such as {missing[0]!r}", "correct it, or the ids")
    return {i: match[bool(find.groups)] for i, match in found.items()}


def split_ids(ids: Sequence[str], val_split: float, seed: int, groups: Mapping[str, str] | None = None,
              ) -> tuple[list[str], list[str]]:
    """(training ids, validation ids): a shuffle by `seed` of the sorted patients, so the file order does not matter.

    groups: {id: patient}; without it each id is its own. Validation takes patients until it has `val_split` of the ids.
    Raises UserError if a side that should have slides would have none.
    """
    order = _shuffled(ids, seed, groups)
    count, taken, held_out = round(len(ids) * val_split), 0, 0
    while taken < count and held_out < len(order):
        taken += len(order[held_out])
        held_out += 1
    if val_split > 0 and (taken == 0 or taken == len(ids)):
        raise UserError("data.val_split", f"{val_split:g} of {len(ids)} slides leaves one side empty",
                        "use 0 for no validation or a share that gives each side a slide")
    return [*chain(*order[held_out:])], [*chain(*order[:held_out])]


def split_fold(ids: Sequence[str], folds: int, fold: int, seed: int, groups: Mapping[str, str] | None = None,
               ) -> tuple[list[str], list[str]]:
    """(training ids, validation ids) of one of `folds` folds of like size; each patient is in exactly one."""
    order = _shuffled(ids, seed, groups)
    if not fold < folds <= len(order):
        raise UserError("data.fold", f"fold {fold} of {folds} folds of {len(order)} patients",
                        "folds count from 0, and each needs a patient")
    members: list[list[str]] = [[] for _ in range(folds)]
    for patient in sorted(order, key=len, reverse=True):  # the largest first: what is small then evens out
        min(members, key=len).extend(patient)
    return [i for n, side in enumerate(members) if n != fold for i in side], members[fold]


def report_split(labels: Mapping[str, Label], split: Split, config: DataConfig) -> None:
    """Say what is on each side, and what of the held-out texts stands in training too."""
    groups = patients(labels, config.group_pattern)
    sides = {"training": split.train, "validation": split.val, "test": split.test}
    unit = "patients" if config.group_pattern else "cases"
    for name, ids in sides.items():
        if ids:
            logger.info("%s: %d %s, %d slides, %d different texts", name, len({groups[i] for i in ids}), unit,
                        sum(len(labels[i].slides) for i in ids), len({labels[i].text for i in ids}))
    trained = [t for i in split.train for t in labels[i].texts]
    for name, ids in list(sides.items())[1:]:
        if ids:
            equal, near = overlap([labels[i].text for i in ids], trained)
            logger.info("%d of %d %s texts stand in training too, word for word", equal, len(ids), name)
            if near:
                logger.warning("%d of %d %s texts are nearly one of training (%.0f %% of their trigrams or more): "
                               "scores on them tell little of new cases", near, len(ids), name, 100 * _NEAR)
    if config.group_pattern is None and (torn := _leaking_patients(split)):
        logger.warning("%d TCGA patients have slides in training and held out: set data.group_pattern to '^%s'", torn,
                       _TCGA.pattern)


def _named_sides(labels: Mapping[str, Label], split_file: str | None) -> dict[str, str]:
    """{id: side} where sides are given, by file or in the labels; empty where they are not."""
    if split_file is None:
        sides, where = {i: label.split for i, label in labels.items() if label.split}, "data.labels_file"
    else:
        sides, where = read_split_file(split_file), split_file
    if unused := sides.keys() - labels.keys():
        logger.warning("%d ids of %s have no label: %s ...", len(unused), where, ", ".join(sorted(unused)[:5]))
    if sides and (missing := [i for i in labels if i not in sides]):
        raise UserError(where, f"gives no split for {len(missing)} of {len(labels)} cases, such as {missing[0]!r}",
                        "give each case train, val or test")
    return {i: sides[i] for i in labels} if sides else {}


def read_split_file(path: str) -> dict[str, str]:
    """{id: train, val or test} of a JSON object, or of a CSV with the columns id and split. Raises UserError."""
    file = expand(path)
    fix = "give a JSON object {id: train, val or test}, or a CSV with the columns id,split"
    try:
        text = file.read_text(encoding="utf-8-sig")
        rows = _csv_rows(text) if file.suffix.lower() == ".csv" else json.loads(text, object_pairs_hook=list)
        if not isinstance(rows, list):
            raise ValueError("no object")
        pairs = [(slide_name(str(key).strip()), str(side).strip()) for key, side in rows]
    except (OSError, ValueError, KeyError, TypeError, RecursionError, csv.Error) as error:
        raise UserError(file, f"cannot be read ({getattr(error, 'strerror', None) or error})", fix) from None
    sides = dict(pairs)
    if twice := [i for i, count in Counter(i for i, _ in pairs).items() if count > 1]:
        raise UserError(file, f"id {twice[0]!r} stands twice", "keep one of them")
    if wrong := [i for i, side in pairs if side not in SPLITS]:
        raise UserError(file, f"{wrong[0]!r} is in {sides[wrong[0]]!r}", fix)
    return sides


def _csv_rows(text: str) -> list[tuple[str, str]]:
    return [(row["id"], row["split"]) for row in csv.DictReader(text.splitlines())]


def _shuffled(ids: Iterable[str], seed: int, groups: Mapping[str, str] | None) -> list[list[str]]:
    """The ids of each patient, patients shuffled."""
    members: dict[str, list[str]] = defaultdict(list)
    for i in sorted(ids):
        members[groups[i] if groups else i].append(i)
    order = sorted(members)
    random.Random(seed).shuffle(order)
    return [members[patient] for patient in order]


def _refuse_shared_patients(split: Split, groups: Mapping[str, str]) -> None:
    side_of: dict[str, str] = {}
    for name, ids in (("training", split.train), ("validation", split.val), ("test", split.test)):
        for i in ids:
            if side_of.setdefault(groups[i], name) != name:
                raise UserError("data.group_pattern", f"patient {groups[i]!r} is in {side_of[groups[i]]} and in {name}",
                                "put all cases of a patient on one side of the split")


def _leaking_patients(split: Split) -> int:
    def found(ids: Iterable[str]) -> set[str]:
        return {match[0] for i in ids if (match := _TCGA.match(i))}

    return len(found(split.train) & found([*split.val, *split.test]))
