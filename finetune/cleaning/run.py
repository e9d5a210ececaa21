"""A table of reports becomes labels JSON and a summary."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..common.errors import UserError
from ..common.files import expand, write_atomically
from ..common.log import logger, notice
from ..common.threads import usable_cores
from ..common.visible import json_text
from ..data.columns import ColumnNames
from ..data.loader_process import map_in_processes
from ..data.tables import Table, read_table
from .dataset import Layout, find_layout, group_rows, known_values
from .features import join_features
from .report_text import CleanedText, Cleaner
from .rules import SHIPPED, Rules
from .statistics import conflicts
from .summary import Outcome, render

_PARALLEL_FROM = 4000  # rows; for fewer, starting processes takes longer than cleaning
_CHUNK = 500  # rows
Job = tuple[Sequence[tuple[str, str]], Sequence[str]]  # arguments of Cleaner.clean
_cleaner: Cleaner | None = None  # of a worker process


@dataclass(frozen=True)
class Options:
    """What `python -m finetune.labels` is asked for; paths as given, None where not."""

    table: str
    output: str
    summary: str | None = None
    details: str | None = None
    rules: str | None = None
    sections: tuple[str, ...] = ()
    text_columns: tuple[str, ...] = ()
    id_column: str | None = None
    slide_column: str | None = None
    split_column: str | None = None
    encoding: str | None = None
    embeddings_dir: str | None = None
    case_pattern: str | None = None
    overwrite: bool = False
    show_identifiers: bool = False


@dataclass(frozen=True)
class OutputPaths:
    """Where labels, summary and, if asked for, details are written."""

    labels: Path
    summary: Path
    details: Path | None


@dataclass(frozen=True)
class Written:
    """The files written, and the numbers of cases and of rows or cases left out."""

    paths: OutputPaths
    num_cases: int
    num_left_out: int


def make_labels(options: Options) -> Written:
    """Read the table, clean its reports, write labels, summary and details.

    Raises:
        UserError: For files, columns and rules that cannot be used; nothing is written then. If no case is left, the
            summary is, to say why.
    """
    if options.case_pattern and options.embeddings_dir is None:
        raise UserError("--case_pattern", "is looked for in the names of feature files", "give --embeddings_dir, too")
    table_path = expand(options.table)
    paths = _output_paths(options, table_path)
    outcome = _outcome(options, read_table(table_path, options.encoding))
    _write(paths.summary, render(outcome))
    if paths.details:
        _write(paths.details, "".join(_details(outcome)))
    if not outcome.cases:
        raise UserError(table_path, "no case is left", f"the reasons are in {paths.summary}")
    labels = {case.case_id: case.label() for case in outcome.cases}
    _write(paths.labels, json_text(labels, indent=1) + "\n")
    _warn(outcome, paths.summary)
    return Written(paths, len(outcome.cases), len(outcome.left_out))


def write_rules(path: str) -> Path:
    """Write a copy of the shipped rules for the user to change. Raises UserError if the file exists."""
    target = expand(path)
    _check_output(target, [], overwrite=False)
    _write(target, SHIPPED.read_text(encoding="utf-8"))
    return target


def _outcome(options: Options, table: Table) -> Outcome:
    """What becomes of the table."""
    rules = Rules.load(options.rules or SHIPPED, options.sections)
    named = ColumnNames(id=options.id_column, slide=options.slide_column, split=options.split_column)
    layout = find_layout(table, rules, named, options.text_columns)
    texts = ", ".join(f"{column} ({section})" for section, column in layout.texts)
    notice("%s: %d rows; %s; texts %s", table.path.name, len(table.rows), layout.columns, texts)

    doctors: set[str] = set()
    for row in table.rows:
        doctors.update(known_values(row, layout.doctor))
    cleaned = clean_table(table, layout, rules, frozenset(doctors))
    cases, left_out = group_rows(table, layout, cleaned)
    unused = None
    if options.embeddings_dir is not None:
        joined = join_features(cases, table.places, options.embeddings_dir, options.case_pattern)
        cases, left_out, unused = joined.cases, left_out + joined.left_out, joined.unused
    hide = None if options.show_identifiers else Cleaner(rules, doctors)
    rules_name = options.rules or "rules.yaml (shipped)"
    return Outcome(table, layout, rules, rules_name, cleaned, cases, left_out, unused, hide)


def clean_table(table: Table, layout: Layout, rules: Rules, doctors: frozenset[str]) -> list[CleanedText]:
    """Clean each row; those of a large table in several processes.

    Args:
        table, layout, rules: As read.
        doctors: Names that are masked in every text.
    """
    jobs = [_job(row, layout) for row in table.rows]
    if len(jobs) < _PARALLEL_FROM:
        cleaner = Cleaner(rules, doctors)
        return [cleaner.clean(*job) for job in jobs]
    return list(map_in_processes(_clean_in_worker, jobs, usable_cores(), _CHUNK, _start_worker, (rules, doctors)))


def _job(row: dict[str, str], layout: Layout) -> Job:
    cells = [(section, row[column]) for section, column in layout.texts if row[column]]
    return cells, known_values(row, layout.patient)


def _start_worker(rules: Rules, doctors: frozenset[str]) -> None:
    global _cleaner
    _cleaner = Cleaner(rules, doctors)


def _clean_in_worker(job: Job) -> CleanedText:
    assert _cleaner is not None
    return _cleaner.clean(*job)


def _output_paths(options: Options, table: Path) -> OutputPaths:
    """Raises UserError for paths that must not or cannot be written."""
    labels = expand(options.output)
    if labels.suffix.lower() != ".json":
        raise UserError(labels, f"ending {labels.suffix!r}", "labels are a .json file")
    summary = expand(options.summary) if options.summary else labels.with_suffix(".md")
    details = expand(options.details) if options.details else None
    inputs = [table]
    if options.rules:
        inputs.append(expand(options.rules))
    _check_output(labels, inputs, options.overwrite)
    _check_output(summary, [*inputs, labels], options.overwrite)
    if details:
        _check_output(details, [*inputs, labels, summary], options.overwrite)
    return OutputPaths(labels, summary, details)


def _check_output(path: Path, others: Sequence[Path], overwrite: bool) -> None:
    """Raise UserError if a file must not or cannot be written; `others` are the inputs and the other outputs."""
    for other in others:
        if _is_same_file(path, other):
            raise UserError(path, "is the table, the rules or another output", "give another path")
    if not path.parent.is_dir():
        raise UserError(path.parent, "no such folder", "make it first")
    if path.is_dir():
        raise UserError(path, "is a folder", "give the path of a file")
    if path.exists() and not overwrite:
        raise UserError(path, "exists", "give another path, or --overwrite")


def _is_same_file(path: Path, other: Path) -> bool:
    return path == other or (path.exists() and other.exists() and os.path.samefile(path, other))


def _write(path: Path, content: str) -> None:
    try:
        write_atomically(path, content, durable=True)
    except OSError as error:
        raise UserError(path, f"cannot be written ({error.strerror})", "give another path") from None


def _details(outcome: Outcome) -> Iterator[str]:
    """One line of JSON for each row: its place, id, text before and after, and each piece that was taken out."""
    table = outcome.table
    for place, row, result in zip(table.places, table.rows, outcome.cleaned, strict=True):
        record = {"row": place, "id": row[outcome.layout.columns.id], "before": result.before, "after": result.text}
        for name in ("other_parts", "removed", "masked", "suspects"):
            record[name] = [asdict(piece) for piece in getattr(result, name)]
        yield json_text(record) + "\n"


def _warn(outcome: Outcome, summary: Path) -> None:
    if outcome.left_out:
        logger.warning("%d rows or cases are left out; the reasons are in %s", len(outcome.left_out), summary.name)
    num_suspects = len(outcome.suspects())
    if num_suspects:
        logger.warning("%d places still look like identifiers; look at each in %s", num_suspects, summary.name)
    num_conflicts = len(conflicts(outcome.cases))
    if num_conflicts:
        logger.warning("%d ids have several different texts, which become reference texts of one case", num_conflicts)
