"""report.html of a run: how good it is, its curves, captions beside their references, warnings, settings.

    python -m finetune.report checkpoints        # training writes it too, after each epoch

A pure function of the files in the run folder: config.yaml, metrics.jsonl, events.jsonl (times, memory and warnings:
what a resumed run does not repeat), held_out.json, held_out_fields.json, retrieval.json, and validation_captions.jsonl
or, of a run without, held_out_captions.jsonl. What is missing or damaged there is left out.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.caveats import caveats, is_random
from ..common.errors import UserError, say
from ..common.files import write_atomically
from ..common.run_folder import (
    CAPTIONS,
    EVENTS,
    HELD_OUT,
    HELD_OUT_CAPTIONS,
    HELD_OUT_FIELDS,
    METRICS,
    REPORT,
    RETRIEVAL,
    Record,
    read_records,
)
from ..common.score_table import LAST_EPOCH, canonical_name, find_score
from ..config.schema import Config
from ..config.yaml_file import load_yaml
from .answer import Answer, answer
from .caption_table import caption_table
from .curves import NUM_FIRST, charts, label_of
from .drawable import finite_or_nan, has_epoch
from .field_table import read_fields
from .held_out import HeldOut, Text, read_held_out
from .html import render
from .retrieval_matrix import read_retrieval
from .run_state import RunState, read_state
from .score_notes import note
from .settings_table import about_rows, settings

_FALLBACK = "val_caption_loss"  # shown of a run whose best model is simply the last


@dataclass(frozen=True)
class Best:
    """The model that is kept.

    Attributes:
        epoch: After which it was saved.
        score: Label of the score that chose it, or of one that tells about it; None if the file has none.
    """

    epoch: int
    score: Text | None
    value: float


def write_report(folder: Path) -> Path:
    """Write `folder`/report.html and return its path. Raises OSError if it cannot be written."""
    page = render("report.html", ("page.js", "charts.js", "captions.js"), **view(folder))
    write_atomically(folder / REPORT, page)
    return folder / REPORT


def view(folder: Path) -> dict[str, Any]:
    """All that the page shows, as plain values."""
    metrics = _metrics_by_epoch(folder)
    events = list(read_records(folder / EVENTS))
    state, config = read_state(events), _config(folder / "config.yaml")
    held_out = read_held_out(folder / HELD_OUT)
    best = _best(metrics, config)
    drawn = charts(list(metrics.values()), _epoch_events(events, metrics), best.epoch if best else None)
    done = _epochs_done(metrics, config)
    return {
        "name": folder.resolve().name,
        "banners": caveats(state.about.get("Prism"), _seen_texts(state)),
        "state": state,
        "epochs": done,
        "best": best,
        "answer": _answer(held_out, state, done),
        "held_out": held_out,
        "fields": read_fields(folder / HELD_OUT_FIELDS),
        "find_score": find_score,
        "note": note,
        "first_charts": drawn[:NUM_FIRST],
        "charts": drawn[NUM_FIRST:],
        "captions": caption_table(_caption_records(folder)),
        "retrieval": read_retrieval(folder / RETRIEVAL),
        "config": settings(config),
        "training": config and config.training,
        "about": about_rows(state.about),
    }


def answer_of(folder: Path) -> Answer:
    """What the page of a run says first."""
    metrics, state = _metrics_by_epoch(folder), read_state(list(read_records(folder / EVENTS)))
    return _answer(read_held_out(folder / HELD_OUT), state, _epochs_done(metrics, _config(folder / "config.yaml")))


def _answer(held_out: HeldOut | None, state: RunState, done: tuple[int, str]) -> Answer:
    texts = _seen_texts(state)
    all_seen = bool(texts["validation"]) and texts["validation"] == texts["also_in_training"]
    return answer(held_out, state.status, done, _num_validation(state), is_random(state.about.get("Prism")), all_seen)


def _epochs_done(metrics: dict[int, Record], config: Config | None) -> tuple[int, str]:
    """(epochs done, epochs planned)"""
    return max(metrics, default=0), str(config.training.epochs) if config else "?"


def _caption_records(folder: Path) -> list[Record]:
    """Captions of the last epoch if the run has them, else those of the comparison at its end."""
    return list(read_records(folder / CAPTIONS)) or list(read_records(folder / HELD_OUT_CAPTIONS))


def _config(path: Path) -> Config | None:
    try:
        return load_yaml(path, Config())
    except UserError:
        return None


def _metrics_by_epoch(folder: Path) -> dict[int, Record]:
    """The last line of metrics.jsonl of each epoch, under the current names of the scores."""
    metrics = {}
    for record in read_records(folder / METRICS):
        if has_epoch(record):
            metrics[record["epoch"]] = {canonical_name(name): value for name, value in record.items()}
    return metrics


def _epoch_events(events: list[Record], metrics: dict[int, Record]) -> list[Record]:
    """The last event of each epoch in `metrics`, in order."""
    by_epoch = {}
    for event in events:
        if event.get("kind") == "epoch" and has_epoch(event) and event["epoch"] in metrics:
            by_epoch[event["epoch"]] = event
    return [by_epoch[epoch] for epoch in sorted(by_epoch)]


def _best(metrics: dict[int, Record], config: Config | None) -> Best | None:
    """The last epoch that wrote best_model.pth."""
    best_epochs = [epoch for epoch, record in metrics.items() if record.get("best") is True]
    if not best_epochs:
        return None
    epoch = max(best_epochs)
    name = config.training.monitor if config else LAST_EPOCH
    if name == LAST_EPOCH:
        name = _FALLBACK
    value = finite_or_nan(metrics[epoch].get(name))
    return Best(epoch, None if math.isnan(value) else label_of(name), value)


def _seen_texts(state: RunState) -> dict[str, int]:
    """How many validation texts there are, and how many of them stand in training: `caveats` takes it."""
    found = re.fullmatch(r"(\d+) / (\d+)", str(state.about.get("validation texts that also stand in training", "")))
    seen, of = map(int, found.groups()) if found else (0, 0)
    return {"validation": of, "also_in_training": seen}


def _num_validation(state: RunState) -> int | None:
    found = re.search(r"(\d+) validation", str(state.about.get("slides", "")))
    return int(found[1]) if found else None


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of `python -m finetune.report`."""
    parser = argparse.ArgumentParser(prog="python -m finetune.report", description="Rebuild report.html of a run.")
    parser.add_argument("folder", type=Path, help="run folder, such as ./checkpoints")
    folder: Path = parser.parse_args(arguments).folder
    if not (folder / METRICS).is_file():
        raise UserError(folder, f"has no {METRICS}", "give the output_dir of a run that has finished an epoch")
    try:
        say(str(write_report(folder)))
    except OSError as error:
        raise UserError(folder / REPORT, f"cannot be written ({error.strerror})", "free some space") from None
    return 0
