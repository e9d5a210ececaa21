"""The slides of cases that the labels do not name: by a pattern in the paths of the files, or by a folder per case."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from ..common.errors import UserError
from ..common.log import notice
from .labels import Label
from .patterns import Pattern
from .slide_matching import common_end, relative_name
from .slide_names import path_parts, without_endings

_KEY = "data.case_pattern"


def join_cases(labels: Mapping[str, Label], files: Mapping[str, list[str]], root: Path, pattern: str | None,
               ) -> dict[str, Label]:
    """The labels, with the slides of those that name none of their own.

    Args:
        labels: Labels that name no slides mean the slide of their id.
        files: {file name without ending: paths}, of `slides.find_files`.
        root: The folder of the files.
        pattern: `data.case_pattern`; without it, the slides of an id that is a folder are the files in it.

    Raises:
        UserError: The pattern is not a regular expression, or finds none of the cases.
    """
    if pattern is None:
        slides = _by_folder(labels, files, root)
        _log(slides, "the folders of cases join")
    else:
        slides = _by_pattern(labels, files, root, pattern)
        _log(slides, "data.case_pattern joins")
    return {case_id: replace(label, slides=tuple(slides.get(case_id, label.slides)))
            for case_id, label in labels.items()}


def _log(slides: Mapping[str, list[str]], beginning: str) -> None:
    if slides:
        case_id, names = max(slides.items(), key=lambda item: len(item[1]))
        notice("%s %d slides to %d cases, such as %s: %s", beginning, sum(map(len, slides.values())), len(slides),
               case_id, ", ".join(names[:5]))


def _by_pattern(labels: Mapping[str, Label], files: Mapping[str, list[str]], root: Path, pattern: str,
                ) -> dict[str, list[str]]:
    """{case id: relative names of its slides} of the labels that name no slides. Raises UserError."""
    ids = [case_id for case_id, label in labels.items() if label.slides == (case_id,)]
    cases = cases_by_pattern(files, root, pattern)
    if ids and not cases.keys() & set(ids):
        found = f"cases such as {next(iter(cases))!r}" if cases else "no case in any file name"
        raise UserError(_KEY, f"{pattern!r} finds {found}, the labels have ids such as {ids[0]!r}",
                        "its first group must be the id in the labels")
    return {case_id: [relative_name(path, root) for path in cases[case_id]] for case_id in ids if case_id in cases}


def cases_by_pattern(files: Mapping[str, list[str]], root: Path, pattern: str) -> dict[str, list[str]]:
    """{case id: paths of its slides, sorted} of the files whose path below `root` has the pattern. Raises UserError."""
    regex = Pattern(pattern, _KEY)
    slides: dict[str, list[str]] = defaultdict(list)
    for path in sorted(chain.from_iterable(files.values())):
        case_id = regex.find(relative_name(path, root))
        if case_id:
            slides[case_id].append(path)
    return slides


def _by_folder(labels: Mapping[str, Label], files: Mapping[str, list[str]], root: Path) -> dict[str, list[str]]:
    """{case id: relative names of its slides} of the labels whose slide is a folder of files and no file."""
    names_in: dict[str, list[str]] = defaultdict(list)
    for path in sorted(chain.from_iterable(files.values())):
        name = relative_name(path, root)
        names_in[os.path.dirname(name)].append(name)
    folders: dict[str, list[str]] = defaultdict(list)  # by their last part
    for folder in filter(None, names_in):
        folders[os.path.basename(folder)].append(folder)
    found = {}
    for case_id, label in labels.items():
        folder = _folder_of(label, folders, files, root)
        if folder is not None:
            found[case_id] = names_in[folder]
    return found


def _folder_of(label: Label, folders: Mapping[str, list[str]], files: Mapping[str, list[str]], root: Path,
               ) -> str | None:
    """The folder that the only slide of a label names; None if it may be a file, or several folders end alike."""
    parts = path_parts(label.slides[0]) or [""]
    if len(label.slides) > 1 or without_endings(parts[-1]) in files:
        return None
    common = {folder: common_end(parts, path_parts(str(root / folder))) for folder in folders.get(parts[-1], [])}
    best = [folder for folder, count in common.items() if count == max(common.values())]
    if len(best) != 1 or _is_of_other(parts, best[0], common[best[0]], folders):
        return None
    return best[0]


def _is_of_other(parts: Sequence[str], folder: str, num_common: int, folders: Mapping[str, list[str]]) -> bool:
    """Whether a folder has only its last part in common with a name, where case folders are in several folders.

    HISTAI numbers the cases of each organ: HISTAI-skin/case_7 is none of HISTAI-breast.
    """
    parents = {os.path.dirname(one) for alike in folders.values() for one in alike}
    return num_common == 1 < min(len(parts), len(path_parts(folder))) and len(parents) > 1
