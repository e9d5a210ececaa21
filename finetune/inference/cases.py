"""Which slides to caption: all of a folder, the labelled ones, or those of a split of the training."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from pathlib import Path

from ..common.errors import BadSlide, UserError
from ..common.files import expand
from ..common.log import logger
from ..data.case_slides import cases_by_pattern, join_cases
from ..data.labels import Label
from ..data.slide_matching import Matches, match_slides, relative_name
from ..data.slides import find_files
from .captioner import Captioner
from .options import InferenceOptions

Cases = dict[str, list[list[str]]]  # {id: the files of each of its slides}
_Files = Mapping[str, list[str]]  # {file name without ending: paths}


def select_slides(captioner: Captioner, options: InferenceOptions, labels: Mapping[str, Label] | None) -> Cases:
    """The slide of --embeddings_file; or of --embeddings_dir all, the labelled ones, or those of a split.

    Raises:
        UserError: no slide to caption, or a model that knows no such split.
    """
    if options.embeddings_file is not None:
        path = expand(options.embeddings_file)
        return {path.stem: [[str(path)]]}
    cases = _cases_of_folder(captioner, options, labels)
    if not cases:
        raise UserError(options.embeddings_dir, f"no slide to caption (split {options.split})",
                        "check the ids in the labels file")
    return cases


def _cases_of_folder(captioner: Captioner, options: InferenceOptions, labels: Mapping[str, Label] | None) -> Cases:
    """Those of --embeddings_dir that are asked for; none if there are none."""
    root = expand(options.embeddings_dir or "")
    files, pattern = find_files(root), captioner.config.data.case_pattern
    held_out = _held_out(captioner, options)
    if labels is not None:
        cases = _labelled_cases(files, root, join_cases(labels, files, root, pattern))
    else:
        cases = _cases_of_files(files, root, pattern)
        absent = [case_id for case_id in held_out if case_id not in cases]
        cases |= _cases_of_ids(absent, files, root)
    return _cases_of_split(cases, held_out, options) if held_out else cases


def _paths_of(matches: Matches, files: _Files) -> dict[str, list[str]]:
    """The files of each slide; where several have its name all of them: its case becomes a record with an error."""
    paths = {name: [path] for name, path in matches.paths.items()}
    return paths | {name: files[name] for name in matches.problems if name in files}


def _labelled_cases(files: _Files, root: Path, labels: Mapping[str, Label]) -> Cases:
    names = dict.fromkeys(chain.from_iterable(label.slides for label in labels.values()))
    matches = match_slides(list(names), files, root)

    paths = _paths_of(matches, files)
    cases = {case_id: [paths[name] for name in label.slides] for case_id, label in labels.items()
             if paths.keys() >= set(label.slides)}
    _warn_of_absent({name: problem for name, problem in matches.problems.items() if name not in paths},
                    len(labels) - len(cases), len(labels))
    return cases


def _warn_of_absent(problems: Mapping[str, BadSlide], num_absent: int, num_labels: int) -> None:
    if problems:
        name, problem = next(iter(problems.items()))
        logger.warning("%d of %d labels have no H5 file and are left out, such as %s: %s; %s", num_absent, num_labels,
                       name, problem.what, problem.fix)


def _cases_of_files(files: _Files, root: Path, pattern: str | None) -> Cases:
    """Each file is a case, or each group of files that `data.case_pattern` of the training joins.

    Files of one name are told apart by their folders. What is still the same, such as S.h5 beside S.hdf5, is one case:
    it becomes a record with an error.
    """
    cases: Cases = {} if pattern is None else {
        case_id: [[path] for path in paths] for case_id, paths in cases_by_pattern(files, root, pattern).items()}
    joined = {path for slides in cases.values() for paths in slides for path in paths}
    for name, paths in files.items():
        for path in paths:
            if path not in joined:
                case_id = name if len(paths) == 1 else relative_name(path, root)
                cases.setdefault(case_id, [[]])[0].append(path)
    return cases


def _cases_of_ids(ids: list[str], files: _Files, root: Path) -> Cases:
    """The slides of ids that are not written as their files are."""
    return {case_id: [[path]] for case_id, path in match_slides(ids, files, root).paths.items()}


def _held_out(captioner: Captioner, options: InferenceOptions) -> list[str]:
    """The ids of --split, which are in the checkpoint; none if all slides are asked for."""
    if options.split == "all":
        return []
    ids = captioner.held_out[options.split]
    if not ids:
        raise UserError(f"--split {options.split}", "this model names no such slides: it had none, or is no checkpoint",
                        "leave --split out, or give best_model.pth of a run that had them")
    return ids


def _cases_of_split(cases: Cases, held_out: list[str], options: InferenceOptions) -> Cases:
    ids = set(held_out)
    found = {case_id: slides for case_id, slides in cases.items() if case_id in ids}
    if found and len(found) < len(ids):
        hint = "" if options.labels_file else ": cases of several slides need --labels_file"
        logger.warning("%d of %d slides of --split %s are not found and left out%s", len(ids) - len(found), len(ids),
                       options.split, hint)
    return found
