"""Splits of the cases into training, validation and test, by patient: no patient is on two sides."""

from __future__ import annotations

import csv
import json
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from ..common.files import expand, read_regular
from ..common.log import logger
from ..config.schema import DataConfig
from .kept_results import KeptResults, key_of
from .labels import SPLITS, Label
from .near_duplicates import SIMILARITY_THRESHOLD, count_overlap
from .patterns import Pattern
from .related_ids import related_pairs
from .slide_names import slide_name

_TCGA = re.compile(r"TCGA-\w\w-\w{4}")
_SPLIT_FILE_FIX = "give a JSON object {id: train, val or test}, or a CSV with the columns id,split"


@dataclass(frozen=True)
class Split:
    """Case ids of each side, in the order of the samples."""

    train: list[str]
    val: list[str]
    test: list[str]

    @property
    def sides(self) -> dict[str, list[str]]:
        """{name of the side in messages: its ids}."""
        return {"training": self.train, "validation": self.val, "test": self.test}

    @property
    def side_of(self) -> dict[str, str]:
        """{id: name of its side}."""
        return {case_id: name for name, ids in self.sides.items() for case_id in ids}


def make_split(labels: Mapping[str, Label], config: DataConfig, seed: int) -> Split:
    """Split the cases as `data.split_file` or the labels say, otherwise by patient.

    Unless validation cases are given, `data.val_split` of the training cases, or fold `data.fold` of `data.folds`,
    becomes validation.

    Raises:
        UserError: A patient is on two sides, a case has no side, or a side is empty.
    """
    groups = patients(labels, config.group_pattern)
    given = _given_splits(labels, config.split_file)
    cases: dict[str, list[str]] = defaultdict(list)
    for case_id in labels:
        cases[given.get(case_id, "train")].append(case_id)
    if not cases["val"]:
        train, val = _draw_validation(cases["train"], config, seed, groups)
    elif config.folds:
        raise UserError("data.folds", f"{len(cases['val'])} validation cases are given already", "use one of the two")
    else:
        train, val = sorted(cases["train"]), sorted(cases["val"])

    # slides of a patient would be neighbours: a batch of them has few true negatives
    if config.group_pattern or given:
        random.Random(seed).shuffle(val)
    split = Split(train, val, sorted(cases["test"]))
    _refuse_shared_patients(split, groups)
    return split


def _draw_validation(ids: list[str], config: DataConfig, seed: int, groups: Mapping[str, str],
                     ) -> tuple[list[str], list[str]]:
    if config.folds:
        return split_fold(ids, config.folds, config.fold, seed, groups)
    return split_ids(ids, config.val_split, seed, groups)


def groups_of(ids: Iterable[str], pattern: str | None) -> list[str] | None:
    """The patient of each id, in their order, for what is left out together; None without a pattern."""
    return list(patients(ids, pattern).values()) if pattern else None


def patients(ids: Iterable[str], pattern: str | None) -> dict[str, str]:
    """The patient of each id.

    Args:
        ids: Of the cases.
        pattern: Regular expression whose first group, or match if it has none, is the patient; None takes the id.

    Raises:
        UserError: The pattern is not a regular expression, or does not match an id.
    """
    if pattern is None:
        return {i: i for i in ids}
    regex = Pattern(pattern, "data.group_pattern")
    found = {i: regex.find(i) for i in ids}
    missing = [i for i, patient in found.items() if patient is None]
    if missing:
        raise UserError("data.group_pattern", f"{pattern!r} finds no patient in {len(missing)} of {len(found)} ids, "
                        f"such as {missing[0]!r}", "correct it, or the ids")
    return found


def split_ids(ids: Sequence[str], val_split: float, seed: int, groups: Mapping[str, str] | None = None,
              ) -> tuple[list[str], list[str]]:
    """Split ids at random by patient; the order of `ids` does not matter.

    Args:
        ids: Of the cases.
        val_split: Share of the ids for validation, filled with whole patients up to this share.
        seed: Of the shuffle.
        groups: {id: patient}; None makes each id a patient.

    Returns:
        (training ids, validation ids).

    Raises:
        UserError: A side that should have cases would have none.
    """
    # from the front of the shuffled patients: with a larger share the same ones stay in validation
    order = _shuffled_patients(ids, seed, groups)
    wanted = round(len(ids) * val_split)
    num_ids = 0
    num_patients = 0
    while num_ids < wanted and num_patients < len(order):
        num_ids += len(order[num_patients])
        num_patients += 1
    if val_split > 0 and num_ids in (0, len(ids)):
        raise UserError("data.val_split", f"{val_split:g} of {len(ids)} slides leaves one side empty",
                        "use 0 for no validation or a share that gives each side a slide")
    return [*chain(*order[num_patients:])], [*chain(*order[:num_patients])]


def split_fold(ids: Sequence[str], folds: int, fold: int, seed: int, groups: Mapping[str, str] | None = None,
               ) -> tuple[list[str], list[str]]:
    """(training ids, validation ids) for one of `folds` folds of similar size; a patient is in exactly one of them."""
    order = _shuffled_patients(ids, seed, groups)
    if not fold < folds <= len(order):
        raise UserError("data.fold", f"fold {fold} of {folds} folds of {len(order)} patients",
                        "folds count from 0, and each needs a patient")
    members: list[list[str]] = [[] for _ in range(folds)]
    for patient in sorted(order, key=len, reverse=True):  # the largest first: the small ones then even out the sizes
        min(members, key=len).extend(patient)
    train = chain(*(members[number] for number in range(folds) if number != fold))
    return list(train), members[fold]


def report_split(labels: Mapping[str, Label], split: Split, config: DataConfig, kept: KeptResults) -> int:
    """Log the size of each side, and how many of the held-out texts are also training texts.

    Args:
        labels: Of all cases.
        split: Of the cases.
        config: Of the data.
        kept: Where earlier runs have put the numbers of equal texts.

    Returns:
        The number of validation texts that are also training texts, word for word.
    """
    _report_sides(labels, split, config.group_pattern)
    num_seen = _report_overlap(labels, split, "validation", kept)
    _report_overlap(labels, split, "test", kept)
    if config.group_pattern is None:
        _warn_of_leaking_patients(split)
    _warn_of_shared_numbers(labels, split)
    return num_seen


def _report_sides(labels: Mapping[str, Label], split: Split, group_pattern: str | None) -> None:
    groups = patients(labels, group_pattern)
    unit = "patients" if group_pattern else "cases"
    for name, ids in split.sides.items():
        if ids:
            num_groups = len({groups[i] for i in ids})
            logger.info("%s: %d %s, %s", name, num_groups, unit, _contents([labels[i] for i in ids]))


def _contents(labels: list[Label]) -> str:
    num_slides = sum(len(label.slides) for label in labels)
    num_texts = len({label.text for label in labels})
    return f"{num_slides} slides, {num_texts} different texts"


def _report_overlap(labels: Mapping[str, Label], split: Split, name: str, kept: KeptResults) -> int:
    texts = [labels[i].text for i in split.sides[name]]
    if not texts:
        return 0
    training_texts = [text for i in split.train for text in labels[i].texts]
    num_exact, num_near = kept.get(key_of("overlap 1", texts, training_texts),
                                   lambda: count_overlap(texts, training_texts), partial(_are_counts, of=len(texts)))
    logger.info("%d of %d %s texts also occur in training, word for word", num_exact, len(texts), name)
    if num_near:
        _warn_of_near_duplicates(num_near, len(texts), name)
    return num_exact


def _warn_of_near_duplicates(number: int, num_texts: int, name: str) -> None:
    logger.warning("%d of %d %s texts are near duplicates of training texts (%.0f %% of their trigrams or more): "
                   "scores on them say little about new cases", number, num_texts, name, 100 * SIMILARITY_THRESHOLD)


def _are_counts(value: Any, of: int) -> bool:
    """Whether these can be two counts of so many texts."""
    return (isinstance(value, list | tuple) and len(value) == 2
            and all(type(count) is int and count >= 0 for count in value) and sum(value) <= of)


def _warn_of_leaking_patients(split: Split) -> None:
    """Without a pattern each case is a patient; ids may show that this is wrong."""
    num_leaking = len(_tcga_patients(split.train) & _tcga_patients(split.val + split.test))
    if num_leaking:
        logger.warning("%d TCGA patients have slides in training and held out: set data.group_pattern to '^%s'",
                       num_leaking, _TCGA.pattern)
        return
    pairs = related_pairs(split.train, split.val + split.test)
    if pairs:
        logger.warning("%d pairs of ids in training and held out, such as %s and %s, may be of one patient or region: "
                       "if so, scores on held-out slides are too high; set data.group_pattern or data.split_file",
                       len(pairs), *pairs[0])


def _warn_of_shared_numbers(labels: Mapping[str, Label], split: Split) -> None:
    """A table may name the case or patient of each slide; the numbers themselves stay out of the log."""
    trained = {number for i in split.train for number in labels[i].numbers}
    shared = {i: labels[i].numbers & trained for i in split.val + split.test if labels[i].numbers & trained}
    if shared:
        columns = sorted({column for numbers in shared.values() for column, _ in numbers})
        logger.warning("%d held-out labels, such as %s, have the same %s as labels in training: scores on held-out "
                       "slides are too high; set data.group_pattern or data.split_file", len(shared),
                       next(iter(shared)), " and ".join(columns))


def _given_splits(labels: Mapping[str, Label], split_file: str | None) -> dict[str, str]:
    """{id: train, val or test} as the split file or the labels say; empty if neither does."""
    if split_file is None:
        source, splits = "data.labels_file", _splits_of_labels(labels)
    else:
        source, splits = split_file, read_split_file(split_file)

    _warn_of_unused_ids(source, splits, labels)
    # a case that was forgotten must not end up in training by default
    missing = [i for i in labels if i not in splits]
    if splits and missing:
        raise UserError(source, f"gives no split for {len(missing)} of {len(labels)} cases, such as {missing[0]!r}",
                        "give each case train, val or test")
    return splits


def _warn_of_unused_ids(source: str, splits: Mapping[str, str], labels: Mapping[str, Label]) -> None:
    """A split file may cover more cases than one data set: no error."""
    unused = sorted(splits.keys() - labels.keys())
    if unused:
        logger.warning("%d ids of %s have no label: %s ...", len(unused), source, ", ".join(unused[:5]))


def _splits_of_labels(labels: Mapping[str, Label]) -> dict[str, str]:
    return {case_id: label.split for case_id, label in labels.items() if label.split}


def read_split_file(path: str) -> dict[str, str]:
    """{id: train, val or test} of a JSON object, or of a CSV with the columns id and split. Raises UserError."""
    file = expand(path)
    # any other JSON ends in one of these errors when it is unpacked into pairs
    try:
        pairs = _read_csv(file) if file.suffix.lower() == ".csv" else _read_json(file)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(file, f"cannot be read ({reason})", _SPLIT_FILE_FIX) from None

    splits: dict[str, str] = {}
    for key, value in pairs:
        case_id, split = slide_name(str(key).strip()), str(value).strip()
        if case_id in splits:
            raise UserError(file, f"id {case_id!r} appears twice", "keep one of them")
        if split not in SPLITS:
            raise UserError(file, f"{case_id!r} is in {split!r}", _SPLIT_FILE_FIX)
        splits[case_id] = split
    return splits


def _read_csv(file: Path) -> list[tuple[str, str]]:
    rows = csv.DictReader(read_regular(file).decode("utf-8-sig").splitlines())
    return [(row["id"], row["split"]) for row in rows]


def _read_json(file: Path) -> list[tuple[str, str]]:
    pairs = json.loads(read_regular(file).decode("utf-8-sig"), object_pairs_hook=list)
    if not isinstance(pairs, list):
        raise ValueError("no object")
    return [(key, split) for key, split in pairs]


def _shuffled_patients(ids: Iterable[str], seed: int, groups: Mapping[str, str] | None) -> list[list[str]]:
    """The ids of each patient; the patients shuffled, the ids of one sorted."""
    # sorted first: the shuffle must not depend on the order in the file
    ids_of: dict[str, list[str]] = defaultdict(list)
    for i in sorted(ids):
        ids_of[groups[i] if groups else i].append(i)
    order = sorted(ids_of)
    random.Random(seed).shuffle(order)
    return [ids_of[patient] for patient in order]


def _refuse_shared_patients(split: Split, groups: Mapping[str, str]) -> None:
    first_side: dict[str, str] = {}
    for case_id, side in split.side_of.items():
        patient = groups[case_id]
        first = first_side.setdefault(patient, side)
        if first != side:
            raise UserError("data.group_pattern", f"patient {patient!r} is in {first} and in {side}",
                            "put all cases of a patient on one side of the split")


def _tcga_patients(ids: Iterable[str]) -> set[str]:
    matches = (_TCGA.match(i) for i in ids)
    return {match[0] for match in matches if match}
