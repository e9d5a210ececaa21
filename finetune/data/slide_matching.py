"""Which file is meant by the name of a slide in the labels, where the two are not written alike.

A name is compared with the file names as it is, then with one difference more at a time. The first comparison that
finds exactly one file counts; what was taken is logged by kind. Nothing is guessed: other names end in an error that
shows the file that was probably meant.
"""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ..common.errors import BadSlide
from ..common.log import notice
from .slide_names import base_name, path_parts, slide_name, without_endings

_PANDAS_NUMBER = re.compile(r"(\d+)\.0+")  # what pandas makes of a whole number in a column with empty cells
_EXCEL_NUMBER = re.compile(r"\d(\.\d+)?[eE]\+\d+")
_TCGA_UUID = re.compile(r"(TCGA-\w\w-\w{4}-\w{3}-\w\w-\w+)\.[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_MAX_SHOWN = 3  # files that a message names
_NEIGHBOURS = 20  # names before and after one in the order of all names that it is compared with
_MIN_SIMILAR = 0.6  # difflib's ratio from which a file is probably the one that was meant


@dataclass
class Matches:
    """For the names of slides in the labels.

    Attributes:
        paths: {name: its file}.
        problems: {name: why it has none}.
    """

    paths: dict[str, str] = field(default_factory=dict)
    problems: dict[str, BadSlide] = field(default_factory=dict)


def match_slides(names: Sequence[str], files: Mapping[str, list[str]], root: Path) -> Matches:
    """Find the file of each slide.

    Args:
        names: Of the slides in the labels, possibly with folders (`/`) and endings of slide files.
        files: {file name without ending: paths}, of `slides.find_files`.
        root: The folder of the files, for messages.
    """
    index = _Index(files, root, names)
    found: dict[str, tuple[str, str]] = {}
    matches = Matches()
    for name in names:
        try:
            found[name] = index.find(name)
        except BadSlide as problem:
            matches.problems[name] = problem
    _refuse_shared(found, matches, root)
    matches.paths = {name: path for name, (path, _) in found.items() if name not in matches.problems}
    _log_differences(found, matches)
    return matches


def relative_name(path: str, root: Path) -> str:
    """The path of a file below the folder of all files, without the ending of feature files, with `/`."""
    beginning = f"{root}{os.sep}"
    inside = path[len(beginning):] if path.startswith(beginning) else os.path.relpath(path, root)
    return slide_name(inside.replace(os.sep, "/"))


# --- what a name may differ in ---------------------------------------------------------------------------------------

def _same(name: str) -> str:
    return name


def _without_dot_zero(name: str) -> str:
    match = _PANDAS_NUMBER.fullmatch(name)
    return match[1] if match else name


def _without_uuid(name: str) -> str:
    match = _TCGA_UUID.fullmatch(name)
    return match[1] if match else name


def _without_zeros(name: str) -> str:
    return name.lstrip("0") or "0" if name.isdecimal() else name


# (what is said of a match, how a name is changed); each is compared after those before it
_DIFFERENCES: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("", _same), ("ending of a slide file", without_endings), (".0 of a number", _without_dot_zero),
    ("UUID of a TCGA barcode", _without_uuid), ("zeros in front", _without_zeros))


class _Index:
    """The files by name, at each of `_DIFFERENCES`."""

    def __init__(self, files: Mapping[str, list[str]], root: Path, names: Sequence[str]) -> None:
        self.files, self.root, self.names = files, root, names
        self._by_key: list[dict[str, list[str]]] = [dict(files)]

    def find(self, name: str) -> tuple[str, str]:
        """(path, difference) of the only file that a name can mean. Raises BadSlide."""
        *folders, key = path_parts(name) or [name]
        if name in self.files:  # of a shared file, a name may hold anything
            folders, key = [], name
        for level, (difference, change) in enumerate(_DIFFERENCES):
            key = change(key)
            paths = self._at(level).get(key, [])
            if paths:
                return self._only(paths, folders), difference or ("folder" if folders else "")
        raise self._absent(name)

    def _at(self, level: int) -> dict[str, list[str]]:
        """{name changed by the first differences: paths}; made when it is needed."""
        while len(self._by_key) <= level:
            changed: dict[str, list[str]] = defaultdict(list)
            for key, paths in self._by_key[-1].items():
                changed[_DIFFERENCES[len(self._by_key)][1](key)] += paths
            self._by_key.append(changed)
        return self._by_key[level]

    def _only(self, paths: list[str], folders: list[str]) -> str:
        """The only path, or the one whose last folders are those of the name. Raises BadSlide."""
        if len(paths) == 1:
            self._refuse_other_folder(paths[0], folders)
            return paths[0]
        common = {path: common_end(folders, path_parts(os.path.dirname(path))) for path in paths}
        best = [path for path in paths if common[path] == max(common.values())]
        if len(best) == 1:
            return best[0]
        raise same_name_problem(best, self.root)

    def _refuse_other_folder(self, path: str, folders: Sequence[str]) -> None:
        """Raise BadSlide if the folder of the only file is another patient's: slide_1 of caseA is none of caseB.

        Folders also differ because scans and features are stored in different places. They are taken for those of
        patients where names repeat between the folders of the files or of the labels, or where the labels' folder is
        there and has no such file.
        """
        if not folders:
            return
        own = path_parts(os.path.dirname(os.path.relpath(path, self.root)))
        if not own or common_end(folders, path_parts(os.path.dirname(path))):
            return
        if folders[-1] in self._folders or own[-1] in self._folders_of_patients or base_name(path) in self._repeated:
            name = relative_name(path, self.root)
            raise BadSlide(f"the only file of this name is in another folder: {name}",
                           f'if it is this slide, write "slides": ["{name}"]; else add the file or remove its label')

    @cached_property
    def _folders(self) -> set[str]:
        return {os.path.basename(os.path.dirname(path)) for paths in self.files.values() for path in paths}

    @cached_property
    def _folders_of_patients(self) -> set[str]:
        """The folders that hold a name which another folder holds, too."""
        return {os.path.basename(os.path.dirname(path)) for paths in self.files.values() if len(paths) > 1
                for path in paths}

    @cached_property
    def _repeated(self) -> set[str]:
        """The file names that names in the labels have in several folders."""
        different = {"/".join(path_parts(name)) for name in self.names}
        return {name for name, count in Counter(map(base_name, different)).items() if count > 1}

    def _absent(self, name: str) -> BadSlide:
        """Why a name has no file, with the file that was probably meant."""
        key = base_name(name) or name
        if _EXCEL_NUMBER.fullmatch(key):
            return BadSlide("no H5 file of this name: Excel has rounded the number",
                            "format the column as text and enter the ids again")
        alike, slides = self._by_simple_name.get(_simplify(key)), self._beginning_with(key)
        if alike is None and len(slides) > 1:
            return _several_slides(slides)
        return _probably(alike or next(iter(slides), None) or self._similar(key))

    @cached_property
    def _by_simple_name(self) -> dict[str, str]:
        return {_simplify(name): name for name in self.files}

    @cached_property
    def _sorted(self) -> list[str]:
        return sorted(self.files)

    @cached_property
    def _sorted_from_end(self) -> list[str]:
        return sorted(name[::-1] for name in self.files)

    def _beginning_with(self, key: str) -> list[str]:
        """Names that are the key and more, such as `P017-2` and `P017_b` for P017."""
        start = bisect_left(self._sorted, key)
        names = []
        for name in self._sorted[start:]:
            if not name.startswith(key):
                break
            if re.match("[-_. ]", name[len(key):]):
                names.append(name)
        return names if key else []

    def _similar(self, key: str) -> str | None:
        """The most similar of the names that begin or end like the key."""
        at, from_end = bisect_left(self._sorted, key), bisect_left(self._sorted_from_end, key[::-1])
        near = self._sorted[max(0, at - _NEIGHBOURS):at + _NEIGHBOURS]
        near += [name[::-1] for name in self._sorted_from_end[max(0, from_end - _NEIGHBOURS):from_end + _NEIGHBOURS]]
        return next(iter(difflib.get_close_matches(key, near, 1, _MIN_SIMILAR)), None)


def common_end(first: Sequence[str], second: Sequence[str]) -> int:
    """How many last parts two paths have in common."""
    count = 0
    for one, other in zip(reversed(first), reversed(second), strict=False):
        if one != other:
            break
        count += 1
    return count


def _simplify(name: str) -> str:
    return "".join(unicodedata.normalize("NFKC", name).casefold().split())


# --- problems and log ------------------------------------------------------------------------------------------------

def same_name_problem(paths: Sequence[str], root: Path) -> BadSlide:
    """The problem of several files of one name. Any of them may be of another patient: none is to be deleted."""
    names = [relative_name(path, root) for path in paths]
    what = f"{len(names)} files have this name: {', '.join(names[:_MAX_SHOWN])}"
    folders = {part for name in names for part in path_parts(name)[:-1] if part.startswith("features_")}
    if len(folders) > 1:
        return BadSlide(what, f"give the folder of one tile encoder, such as {sorted(folders)[0]}, as embeddings_dir")
    return BadSlide(what, f'name it with its folder: "slides": ["{names[0]}"]')


def _probably(meant: str | None) -> BadSlide:
    if meant is None:
        return BadSlide("no H5 file of this name", "add the file or remove its label")
    return BadSlide(f"no H5 file of this name, did you mean {meant!r}?", "correct the label's id or the file name")


def _several_slides(slides: Sequence[str]) -> BadSlide:
    listed = ", ".join(f'"{name}"' for name in slides[:_MAX_SHOWN])
    more = ", ..." if len(slides) > _MAX_SHOWN else ""
    return BadSlide(f"no H5 file of this name; {len(slides)} slides begin with it",
                    f'if they are of this case, write "slides": [{listed}{more}] or set data.case_pattern')


def _refuse_shared(found: Mapping[str, tuple[str, str]], matches: Matches, root: Path) -> None:
    """Make a problem of each name that differs from its file, if another name means that file, too."""
    names_of: dict[str, list[str]] = defaultdict(list)
    for name, (path, _) in found.items():
        names_of[path].append(name)
    for path, names in names_of.items():
        for name in names if len(names) > 1 else ():
            other = next(one for one in names if one != name)
            if found[name][1]:
                matches.problems[name] = BadSlide(f"its file may be {relative_name(path, root)}, but that is the one "
                                                  f"of {other!r}", "correct one of the two names")


def _log_differences(found: Mapping[str, tuple[str, str]], matches: Matches) -> None:
    """Log how many names differ from their files in what, with an example of each."""
    differences = Counter(found[name][1] for name in matches.paths)
    for difference, count in differences.items():
        if difference:
            name = next(name for name in matches.paths if found[name][1] == difference)
            notice("%d slides are matched with their files without the %s: %s is %s", count, difference, name,
                   os.path.basename(matches.paths[name]))

