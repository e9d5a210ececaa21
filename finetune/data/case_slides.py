"""The slides of cases that the labels do not name: by a pattern in the paths of the files, or by a folder per case."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path

from ..common.errors import UserError
from ..common.log import logger
from .labels import Label
from .patterns import compile_pattern, find
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
    nameless = {case_id: label for case_id, label in labels.items() if len(label.slides) == 1}
    if pattern is not None:
        nameless = {case_id: label for case_id, label in nameless.items() if label.slides == (case_id,)}
        paths_of = cases_by_pattern(files, root, pattern)
        slides = {case_id: [relative_name(path, root) for path in paths] for case_id, paths in paths_of.items()}
        _require_known(nameless, slides, pattern)
        wanted = {case_id: slides[case_id] for case_id in nameless if case_id in slides}
        message = "data.case_pattern joins %d slides to %d cases, such as %s: %s"
    else:
        wanted = _by_folder(nameless, files, root)
        message = "the folders of cases join %d slides to %d cases, such as %s: %s"
    if wanted:
        case_id, names = max(wanted.items(), key=lambda item: len(item[1]))
        logger.info(message, sum(map(len, wanted.values())), len(wanted), case_id, ", ".join(names[:5]))
    return {case_id: replace(label, slides=tuple(wanted.get(case_id, label.slides)))
            for case_id, label in labels.items()}


def cases_by_pattern(files: Mapping[str, list[str]], root: Path, pattern: str) -> dict[str, list[str]]:
    """{case id: paths of its slides, sorted} of the files whose path below `root` has the pattern. Raises UserError."""
    regex = compile_pattern(pattern, _KEY)
    slides: dict[str, list[str]] = defaultdict(list)
    for path in sorted(chain.from_iterable(files.values())):
        case_id = find(regex, relative_name(path, root))
        if case_id:
            slides[case_id].append(path)
    return slides


def _require_known(labels: Mapping[str, Label], slides: Mapping[str, list[str]], pattern: str) -> None:
    if labels and not labels.keys() & slides.keys():
        found = f"cases such as {next(iter(slides))!r}" if slides else "no case in any file name"
        raise UserError(_KEY, f"{pattern!r} finds {found}, the labels have ids such as {next(iter(labels))!r}",
                        "its first group must be the id in the labels")


def _by_folder(labels: Mapping[str, Label], files: Mapping[str, list[str]], root: Path) -> dict[str, list[str]]:
    """{case id: relative names of its slides} of the labels whose slide is a folder of files and no file."""
    folders: dict[str, list[str]] = defaultdict(list)
    for path in sorted(chain.from_iterable(files.values())):
        name = relative_name(path, root)
        folders[os.path.dirname(name)].append(name)
    by_name: dict[str, list[str]] = defaultdict(list)
    for folder in filter(None, folders):
        by_name[os.path.basename(folder)].append(folder)
    found = {}
    for case_id, label in labels.items():
        parts = path_parts(label.slides[0]) or [""]
        if without_endings(parts[-1]) not in files:
            folder = _best_folder(parts, by_name.get(parts[-1], []), root)
            found |= {case_id: folders[folder]} if folder else {}
    return found


def _best_folder(parts: list[str], folders: list[str], root: Path) -> str | None:
    """The only folder that ends as a path does, None if several end alike."""
    common = {folder: common_end(parts, path_parts(str(root / folder))) for folder in folders}
    best = [folder for folder, count in common.items() if count == max(common.values())]
    return best[0] if len(best) == 1 else None
