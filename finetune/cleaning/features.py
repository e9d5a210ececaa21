"""Which cases have feature files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..common.files import expand
from ..data.slide_matching import match_slides
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


def join_features(cases: Sequence[Case], places: Sequence[str], embeddings_dir: str | Path) -> Joined:
    """Keep the cases whose feature files are there.

    Args:
        cases: All cases.
        places: Of each row of the table, for what is left out.
        embeddings_dir: The folder, as `data.embeddings_dir`.

    Raises:
        UserError: There is no feature file.
    """
    files = find_files(embeddings_dir)
    names = dict.fromkeys(name for case in cases for name in _slides(case))
    matches = match_slides(list(names), files, expand(str(embeddings_dir)))
    joined = Joined([], [], [])
    used: set[str] = set()
    for case in cases:
        missing = [name for name in _slides(case) if name not in matches.paths]
        if missing:
            reason = f"no feature file: {missing[0]}: {matches.problems[missing[0]].what}"
            joined.left_out.append(LeftOut(case.case_id, places[case.rows[0]], reason))
        else:
            joined.cases.append(case)
            used.update(matches.paths[name] for name in _slides(case))
    for name, paths in files.items():
        if not used.intersection(paths):
            joined.unused.append(name)
    return joined


def _slides(case: Case) -> tuple[str, ...]:
    return case.slides or (case.case_id,)
