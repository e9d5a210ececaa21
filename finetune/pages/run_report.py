"""report.html of a run: data, model and versions, its curves, captions beside their references, warnings.

    python -m finetune.report checkpoints        # training writes it too, after each epoch

A pure function of the files in the run folder: config.yaml, metrics.jsonl, events.jsonl (times, memory and warnings:
what a resumed run does not repeat), validation_captions.jsonl, retrieval.json and held_out.json. What is missing or
damaged there is left out.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..common.errors import UserError, say
from ..common.files import write_atomically
from ..common.run_folder import CAPTIONS, EVENTS, HELD_OUT, METRICS, REPORT, RETRIEVAL, Record, read_records
from ..common.score_table import RECORD_FIELDS, SCORES, VALIDATION, canonical_name, find_score, label, score_names
from ..config.schema import Config
from ..config.yaml_file import load_yaml
from .caption_rows import MAX_CHARACTERS, caption_rows
from .charts import Chart, Points, line_chart
from .drawable import finite_or_nan, has_epoch
from .held_out_table import read_held_out
from .html import render
from .retrieval_matrix import read_retrieval

_MAX_CAPTIONS, _MAX_WARNINGS = 40, 50
_MAX_LINES = 8  # in one chart: as many as page.css has line styles
_FOLDERS = re.compile(r"(?<![\w./\\~])(?:[A-Za-z]:[/\\]|\\\\|~?/(?!/))"  # C:\, \\server\, / or ~/, no https://
                      r"(?:[^\s/\\:;]+(?: [^\s/\\:;]+)*[/\\])*(?=[^\s/\\])")
_PATH_KEYS = re.compile(r"_(dir|file|cache)$|^weights$")  # of places on this disk: a report is made to be passed on


def write_report(folder: Path) -> Path:
    """Write `folder`/report.html and return its path. Raises OSError if it cannot be written."""
    write_atomically(folder / REPORT, render("report.html", **view(folder)))
    return folder / REPORT


def view(folder: Path) -> dict[str, Any]:
    """All that the page shows, as plain values."""
    metrics = _metrics_by_epoch(folder)
    events = list(read_records(folder / EVENTS))
    starts = [event for event in events if event.get("kind") == "start"]
    captions = caption_rows(read_records(folder / CAPTIONS))
    return {
        "name": folder.resolve().name,
        "config": _config(folder / "config.yaml"),
        "about": _about(starts),
        "resumed": len(starts) - 1,
        "state": _state(events),
        "epochs": max(metrics, default=0),
        "best": _best_epoch(metrics),
        "charts": _charts(list(metrics.values()), _epoch_events(events, metrics)),
        "captions": captions[:_MAX_CAPTIONS],
        "num_captions": len(captions),
        "num_right": sum(row["right"] for row in captions),
        "retrieval": read_retrieval(folder / RETRIEVAL),
        "held_out": read_held_out(folder / HELD_OUT),
        "warnings": _warnings(events),
    }


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


def _best_epoch(metrics: dict[int, Record]) -> dict[str, float] | None:
    """The finite numbers of the last epoch that wrote best_model.pth."""
    best_epochs = [epoch for epoch, record in metrics.items() if record.get("best") is True]
    if not best_epochs:
        return None
    epoch = max(best_epochs)
    numbers = {name: finite_or_nan(value) for name, value in metrics[epoch].items()}
    finite = {name: number for name, number in numbers.items() if math.isfinite(number)}
    return finite | {"epoch": epoch}


def _state(events: list[Record]) -> dict[str, str]:
    """The last event that started or ended the run."""
    for event in reversed(events):
        if event.get("kind") in ("start", "end"):
            return {key: _without_folders(str(value)) for key, value in event.items()}
    return {}


def _warnings(events: list[Record]) -> list[tuple[str, int]]:
    """[(text, how often)], the commonest first."""
    texts = [str(event.get("text")) for event in events if event.get("kind") == "warning"]
    return Counter(_without_folders(text)[:MAX_CHARACTERS] for text in texts).most_common(_MAX_WARNINGS)


def _without_folders(text: str) -> str:
    """`text` with only the last part of each absolute path in it."""
    return _FOLDERS.sub("", text)


def _config(path: Path) -> list[tuple[str, list[tuple[str, str, bool]]]]:
    """[(section, [(key, value, whether it is not the default)])]."""
    try:
        config = load_yaml(path, Config()).to_dict()
    except UserError:
        return []
    sections = []
    for section, defaults in Config().to_dict().items():
        values = config[section]
        rows = [(key, _shown_value(key, values[key]), values[key] != default) for key, default in defaults.items()]
        sections.append((section, rows))
    return sections


def _shown_value(key: str, value: Any) -> str:
    """A config value as text, without the folders of this disk."""
    if not isinstance(value, str):
        return json.dumps(value)
    if _PATH_KEYS.search(key):
        return Path(value).name
    if key == "tokenizer":  # hf:FOLDER
        return _without_folders(value)
    return value


def _about(starts: list[Record]) -> list[tuple[str, str]]:
    """What the last start says about data, Prism, model and versions."""
    about = starts[-1].get("about") if starts else None
    if not isinstance(about, dict):
        return []
    return [(name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
            for name, value in about.items()]


def _charts(metrics: list[Record], epoch_events: list[Record]) -> list[Chart]:
    """The charts of the page; those without a value are left out."""
    charts = [_loss_chart(name, metrics) for name in score_names("loss")]
    rate = "学习率", "learning rate"
    charts.append(line_chart(rate, rate, {"lr": _curve(metrics, "lr")}))
    charts += _score_charts(metrics)
    speed = {"train": _curve(epoch_events, "slides_per_second")}
    charts.append(line_chart(("速度", "throughput"), ("切片/秒", "slides/s"), speed))
    memory = {"process": _curve(epoch_events, "memory_gb"), "GPU": _curve(epoch_events, "gpu_memory_gb")}
    charts.append(line_chart(("内存峰值", "peak memory"), ("GB", "GB"), memory))
    return [chart for chart in charts if chart is not None]


def _loss_chart(name: str, metrics: list[Record]) -> Chart | None:
    curves = {"train": _curve(metrics, name), "validation": _curve(metrics, VALIDATION + name)}
    return line_chart((SCORES[name].chinese, SCORES[name].english), ("损失（nat）", "loss (nat)"), curves)


def _score_charts(metrics: list[Record]) -> list[Chart | None]:
    """Scores from 0 to 1 share charts; each of the others has its own."""
    curves = _score_curves(metrics)
    shares = [name for name in curves if _is_share(name, curves[name])]
    charts = []
    for start in range(0, len(shares), _MAX_LINES):
        lines = {label(name): curves[name] for name in shares[start:start + _MAX_LINES]}
        charts.append(line_chart(("验证分数", "validation scores"), ("分数（0–1）", "score (0-1)"), lines))
    return charts + [_single_chart(name, curves[name]) for name in curves if name not in shares]


def _single_chart(name: str, points: Points) -> Chart | None:
    score = find_score(name)
    title = (score.chinese, score.english) if score else (name, name)
    return line_chart(title, ("值", "value"), {name: points})


def _score_curves(metrics: list[Record]) -> dict[str, Points]:
    """The curves of every score in metrics.jsonl except the losses."""
    losses = score_names("loss")
    curves: dict[str, Points] = {}
    for record in metrics:
        for name in record:
            is_score = name not in RECORD_FIELDS and name.removeprefix(VALIDATION) not in losses
            if is_score and name not in curves:
                curves[name] = _curve(metrics, name)
    return curves


def _is_share(name: str, points: Points) -> bool:
    """Whether a score goes from 0 to 1: by the score table, and for a user's own loss term by its values so far."""
    score = find_score(name)
    if score is not None:
        return (score.low, score.high) == (0, 1)
    return all(0 <= value <= 1 for _, value in points if math.isfinite(value))


def _curve(records: Iterable[Record], name: str) -> Points:
    """[(epoch, value)], NaN where a record has no number."""
    return [(record["epoch"], finite_or_nan(record.get(name))) for record in records]


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
