"""What a job shows at its beginning and at its end: what is captioned with what; how it went, and the scores."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..common.errors import UserError, say
from ..common.files import write_atomically
from ..common.log import notice
from ..common.progress import clock_text
from ..common.score_table import CAPTIONS
from ..common.terminal import columns_of, shortened, width_of, wrapped
from ..common.visible import json_text, visible
from ..evaluation.scoring import ColumnScores, Report
from .model_facts import ModelFacts
from .options import InferenceOptions
from .records import Record
from .scores import Scored, more_lines, warn_of_same_slides

_GAP = "  "
_NARROW = 20  # columns that the names of scores keep at least


@dataclass
class Outcome:
    """How the slides of a job went.

    Attributes:
        num_cut: Captions that --max_length cut.
        num_abstained: Captions that were withheld.
        num_unusual: Slides that are unlike the training slides.
        errors: (id, why) of each slide that failed.
    """

    num_slides: int = 0
    num_cut: int = 0
    num_abstained: int = 0
    num_unusual: int = 0
    errors: list[tuple[str, str]] = field(default_factory=list)

    @classmethod
    def of(cls, records: Iterable[Record]) -> Outcome:
        """Count the records of a job."""
        outcome = cls()
        for record in records:
            outcome.num_slides += 1
            outcome.num_cut += record["finished"] is False
            outcome.num_abstained += record.get("abstained", False)
            outcome.num_unusual += record.get("unusual", False)
            if record["error"] is not None:
                outcome.errors.append((record["id"], record["error"]))
        return outcome


def announce(num_slides: int, folder: str, model: ModelFacts, device: str) -> None:
    """Show what is captioned with what. device: Its name and precision."""
    epoch = "" if model.epoch is None else f", epoch {model.epoch}"
    notice("captioning %d slides of %s with %s%s; %s", num_slides, folder, visible(model.name), epoch, device,
           style="bold", indent=2)


def announce_end(outcome: Outcome, seconds: float, output: Path | None, scores: Path | None) -> None:
    """Show how a folder of slides went, and where its captions and scores are."""
    counts = [f"{outcome.num_slides - len(outcome.errors) - outcome.num_abstained} of {outcome.num_slides} slides "
              "captioned"]
    named = {"failed": len(outcome.errors), "withheld": outcome.num_abstained, "unusual": outcome.num_unusual,
             "cut": outcome.num_cut}
    counts += [f"{count} {name}" for name, count in named.items() if count]
    notice("%s in %s", ", ".join(counts), clock_text(seconds), style="bold")
    for name, path in (("captions", output), ("scores", scores)):
        if path is not None:
            notice("  %-10s%s", name, path)


def scores_path(output: Path | None) -> Path | None:
    """captions.jsonl -> captions.scores.json"""
    return output and output.with_suffix(".scores.json")


def show_scores(scored: Scored | None, abstained: int, path: Path | None, options: InferenceOptions) -> None:
    """Tables for people; all of it as JSON for programs, in a file or, without one, as a line behind the tables.

    Args:
        scored: None if no slide can be scored.
        abstained: How many captions were withheld.
        path: Of the file.
        options: `wanted_accuracy`, and the split that the slides are of.

    Raises:
        UserError: The file cannot be written.
    """
    summary = {"slides": 0} if scored is None else scored.to_dict(options.wanted_accuracy)
    summary["abstained"] = abstained
    width = width_of(sys.stdout)
    if scored is not None:
        _say_tables(scored.report, summary, width, options)
        warn_of_same_slides(summary, abstained, options)
    if path is not None:
        _write(path, json_text(summary, indent=1) + "\n")
    elif width is None:  # a program reads it; a terminal would fill with it
        say(f"summary: {json_text(summary)}")


def _say_tables(report: Report | None, summary: dict[str, Any], width: int | None, options: InferenceOptions) -> None:
    """The tables of scores, of fields, and of coverage against accuracy."""
    say(f"scores of {summary['slides']} slides, with 95 % intervals; {summary['abstained']} abstained:",
        *((*table_lines(report, width), report.signature()) if report else ()))
    for line in more_lines(summary, options.wanted_accuracy):
        say(*wrapped(line, width, 4).split("\n"))


def _write(path: Path, text: str) -> None:
    try:
        write_atomically(path, text)
    except OSError as error:
        raise UserError(path, f"cannot be written ({error.strerror})", "free some space, then add --resume") from None


def table_lines(report: Report, width: int | None) -> list[str]:
    """The table of scores; where it is too wide, the baselines without their intervals and their names on several
    lines."""
    lines = report.lines()
    if width is None or max(map(columns_of, lines)) <= width:
        return lines
    table = [["", *row] for row in _headings(list(report.columns))]
    for name in report.columns[CAPTIONS]:
        table.append([name, *(_cell(column, name, is_own=key == CAPTIONS) for key, column in report.columns.items())])
    return _aligned(table, width)


def _headings(names: list[str]) -> list[tuple[str, ...]]:
    """The names of the columns, a word a line."""
    return list(itertools.zip_longest(*(name.split("_") for name in names), fillvalue=""))


def _aligned(table: list[list[str]], width: int) -> list[str]:
    """Lines of equal columns, the first of which gives way where they are wider than `width` together."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    others = sum(widths[1:]) + len(_GAP) * (len(widths) - 1)
    widths[0] = max(_NARROW, min(widths[0], width - others))
    lines = []
    for row in table:
        cells = [shortened(cell, size).ljust(size) for cell, size in zip(row, widths, strict=True)]
        lines.append(_GAP.join(cells).rstrip())
    return lines


def _cell(column: ColumnScores, name: str, *, is_own: bool) -> str:
    """A score with its interval if it is of the captions and has one."""
    score = column.get(name)
    if score is None:
        return "-"
    if is_own and math.isfinite(score.low):
        return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"
    return f"{score.value:.3f}"
