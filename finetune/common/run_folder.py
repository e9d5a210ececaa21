"""The files of a run folder that more than one room reads or writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import UserError
from .files import require_regular, write_atomically

REPORT = "report.html"
EVENTS, METRICS = "events.jsonl", "metrics.jsonl"
CAPTIONS, RETRIEVAL = "validation_captions.jsonl", "retrieval.json"
HELD_OUT = "held_out.json"  # scores of the best model on validation slides, beside those of looking up texts
HELD_OUT_CAPTIONS = "held_out_captions.jsonl"  # what was scored there
HELD_OUT_FIELDS = "held_out_fields.json"  # scores of its fields, with their values: apart, as those are label texts
SLIDE_CACHE = "prism_latents"  # a folder beside those of runs
MOST_RETRIEVED = 32  # rows and columns of the matrix
Record = dict[str, Any]


def read_records(path: Path) -> Iterator[Record]:
    """The JSON objects of a file, one per line; none of a missing file. A line that a crash has cut is left out."""
    try:
        require_regular(path)
        with open(path, encoding="utf-8", errors="replace", newline="\n") as lines:
            for line in lines:
                record = _parsed(line)
                if isinstance(record, dict):
                    yield record
    except OSError:
        return


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def write_run_file(path: Path, text: str) -> None:
    """Replace a file of a run folder atomically. Raises UserError where it cannot be written."""
    try:
        write_atomically(path, text)
    except OSError as error:
        raise UserError(path, f"cannot be written ({error.strerror})",
                        "free some space, then --resume auto; the last checkpoint is good") from None
