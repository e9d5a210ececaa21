"""Which cases have feature files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..common.files import expand
from ..data.case_slides import join_cases
from ..data.labels import Label
from ..data.slide_matching import Matches, match_slides
from ..data.slides import find_files
from .dataset import Case, LeftOut


@dataclass(frozen=True)
class Joined:
    """Cases beside the files of a folder.

    Attributes:
        cases: Those of which every slide has its file.
        left_out: The others.
        unused: Names of the files that no case names.
    """

    cases: list[Case]
    left_out: list[LeftOut]
    unused: list[str]


def join_features(cases: Sequence[Case], places: Sequence[str], embeddings_dir: str | Path,
                  case_pattern: str | None = None) -> Joined:
    """Keep the cases whose feature files are there; those that name no slides get the ones of their pattern or folder.

    Args:
        cases: All cases.
        places: Of each row of the table, for what is left out.
        embeddings_dir, case_pattern: As in the section `data` of a config.

    Raises:
        UserError: There is no feature file, or the pattern is wrong.
    """
    files = find_files(embeddings_dir)
    cases = _with_slides(cases, files, expand(str(embeddings_dir)), case_pattern)
    names = dict.fromkeys(name for case in cases for name in _slides(case))
    matches = match_slides(list(names), files, expand(str(embeddings_dir)))
    joined = Joined([], [], [])
    for case in cases:
        reason = _problem(case, matches)
        if reason:
            joined.left_out.append(LeftOut(case.case_id, places[case.rows[0]], reason))
        else:
            joined.cases.append(case)
    used = {matches.paths[name] for case in joined.cases for name in _slides(case)}
    joined.unused.extend(name for name, paths in files.items() if not used.intersection(paths))
    return joined


def _problem(case: Case, matches: Matches) -> str:
    missing = [name for name in _slides(case) if name not in matches.paths]
    return f"no feature file: {missing[0]}: {matches.problems[missing[0]].what}" if missing else ""


def _with_slides(cases: Sequence[Case], files: dict[str, list[str]], root: Path, pattern: str | None) -> list[Case]:
    """The cases with the slides that training would join to them."""
    labels = {case.case_id: Label(case.texts, _slides(case)) for case in cases}
    joined = join_cases(labels, files, root, pattern)
    return [case if joined[case.case_id] == labels[case.case_id] else replace(case, slides=joined[case.case_id].slides)
            for case in cases]


def _slides(case: Case) -> tuple[str, ...]:
    return case.slides or (case.case_id,)
