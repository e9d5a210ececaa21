"""report.html of a run: what was trained on what, its curves, captions beside their references, warnings.

    python -m finetune.report checkpoints        # training writes it too, after each epoch

A pure function of the files in the run folder: config.yaml, metrics.jsonl, events.jsonl (times, memory and warnings:
what a resumed run does not repeat), validation_captions.jsonl and retrieval.json. What is missing or damaged there is
left out.
"""

from __future__ import annotations

import argparse
import difflib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..common.errors import UserError, say
from ..common.files import write_atomically
from ..common.run_folder import CAPTIONS, EVENTS, METRICS, MOST_RETRIEVED, NAME, RETRIEVAL
from ..config.schema import Config
from ..config.yaml_file import load_yaml
from .charts import line_chart
from .html import render

_MOST_CAPTIONS, _MOST_CHARACTERS, _MOST_WARNINGS = 40, 600, 50
_MOST_LINES = 8  # in one chart
_NOT_A_SCORE = {"epoch", "step", "lr", "best", "skipped_steps"}
_LOSSES = {"loss": ("总损失", "loss"), "caption_loss": ("描述损失", "caption loss"),
           "contrastive_loss": ("对比损失", "contrastive loss")}
_NO_SHARES = ("cider", "median_rank")  # whatever their values were so far
_FOLDERS = re.compile(r"(?<![\w./\\~])(?:[A-Za-z]:[/\\]|\\\\|~?/(?!/))"  # C:\, \\server\, / or ~/, no https://
                      r"(?:[^\s/\\:;]+(?: [^\s/\\:;]+)*[/\\])*(?=[^\s/\\])")
_PATHS = re.compile(r"_(dir|file|cache)$|^weights$")  # keys of places on this disk: a report is made to be passed on


def write_report(folder: Path) -> Path:
    """Write `folder`/report.html anew and return its path. Raises OSError if it cannot be written."""
    write_atomically(folder / NAME, render("report.html", **view(folder)))
    return folder / NAME


def view(folder: Path) -> dict[str, Any]:
    """All that the page shows, as plain values."""
    metrics = {r["epoch"]: r for r in read_lines(folder / METRICS) if _is_epoch(r)}
    events = list(read_lines(folder / EVENTS))
    starts = [e for e in events if e.get("kind") == "start"]
    epochs = {e["epoch"]: e for e in events if e.get("kind") == "epoch" and _is_epoch(e) and e["epoch"] in metrics}
    best = max((n for n, r in metrics.items() if r.get("best") is True), default=None)
    captions = _captions(read_lines(folder / CAPTIONS))
    return {
        "name": folder.resolve().name, "config": _config(folder / "config.yaml"), "about": _about(starts),
        "resumed": len(starts) - 1,
        "state": {key: _without_folders(str(value)) for key, value in next(
            (e for e in reversed(events) if e.get("kind") in ("start", "end")), {}).items()},
        "epochs": max(metrics, default=0),
        "best": best and {n: v for n, value in metrics[best].items() if math.isfinite(v := _number(value))} | {
            "epoch": best},
        "charts": _charts(list(metrics.values()), [epochs[n] for n in sorted(epochs)]),
        "captions": captions[:_MOST_CAPTIONS], "num_captions": len(captions),
        "num_right": sum(c["right"] for c in captions), "retrieval": _retrieval(folder / RETRIEVAL),
        "warnings": Counter(_without_folders(str(e.get("text")))[:_MOST_CHARACTERS] for e in events
                            if e.get("kind") == "warning").most_common(_MOST_WARNINGS),
    }


def read_lines(path: Path) -> Iterable[dict[str, Any]]:
    """The JSON objects of a file, one a line; nothing of a missing file. A line that a crash has cut is left out."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            yield record


def _is_epoch(record: dict[str, Any]) -> bool:
    return type(record.get("epoch")) is int and 0 <= record["epoch"] < 10**9


def _number(value: Any) -> float:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
    return float(value) if good else math.nan


def _without_folders(text: str) -> str:
    """`text` with the last part only of each absolute path: those of a warning, of the fault that ended a run."""
    return _FOLDERS.sub("", text)


def _config(path: Path) -> list[tuple[str, list[tuple[str, str, bool]]]]:
    """[(section, [(key, value, whether it is not the default)])]."""
    try:
        config, defaults = load_yaml(path, Config()).to_dict(), Config().to_dict()
    except UserError:
        return []

    def shown(key: str, value: Any) -> str:
        if not isinstance(value, str):
            return json.dumps(value)
        return Path(value).name if _PATHS.search(key) else _without_folders(value) if key == "tokenizer" else value

    return [(section, [(key, shown(key, value), value != defaults[section][key]) for key, value in keys.items()])
            for section, keys in config.items()]


def _about(starts: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """What the last start said of data, Prism, model and versions."""
    about = starts[-1].get("about") if starts else None
    if not isinstance(about, dict):
        return []
    return [(str(name), value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
            for name, value in about.items()]


def _charts(metrics: list[dict[str, Any]], epochs: list[dict[str, Any]]) -> list[Any]:
    def curve(name: str, records: list[dict[str, Any]] = metrics) -> list[tuple[float, float]]:
        return [(r["epoch"], _number(r.get(name))) for r in records]

    charts = [line_chart(title, ("损失（nat）", "loss (nat)"),
                         {"train": curve(name), "validation": curve(f"val_{name}")}) for name, title in _LOSSES.items()]
    charts.append(line_chart(("学习率", "learning rate"), ("学习率", "learning rate"), {"lr": curve("lr")}))
    known = _NOT_A_SCORE | set(_LOSSES) | {f"val_{name}" for name in _LOSSES}
    scores = {name: curve(name) for name in dict.fromkeys(n for r in metrics for n in r) if name not in known}
    shares = {n: points for n, points in scores.items() if not n.endswith(_NO_SHARES)
              and all(0 <= y <= 1 for _, y in points if math.isfinite(y))}
    names = list(shares)
    for i in range(0, len(names), _MOST_LINES):
        charts.append(line_chart(("验证分数", "validation scores"), ("分数（0–1）", "score (0-1)"),
                                 {n.removeprefix("val_"): shares[n] for n in names[i:i + _MOST_LINES]}))
    charts += [line_chart((n, n), ("值", "value"), {n: points}) for n, points in scores.items() if n not in shares]
    charts.append(line_chart(("速度", "throughput"), ("切片/秒", "slides/s"),
                             {"train": curve("slides_per_second", epochs)}))
    charts.append(line_chart(("内存峰值", "peak memory"), ("GB", "GB"), {
        "process": curve("memory_gb", epochs), "GPU": curve("gpu_memory_gb", epochs)}))
    return [chart for chart in charts if chart]


def _captions(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Captions of the newest epoch, those least like a reference first, with the differences to the nearest one."""
    records = [r for r in records if _is_epoch(r) and isinstance(r.get("caption"), str)
               and isinstance(r.get("references"), list) and r["references"]]
    newest, rows = max((r["epoch"] for r in records), default=0), []
    for record in (r for r in records if r["epoch"] == newest):
        caption = record["caption"][:_MOST_CHARACTERS]
        references = [str(text)[:_MOST_CHARACTERS] for text in record["references"]]
        matches = [(_matcher(caption, text), text) for text in references]
        matcher, reference = max(matches, key=lambda match: match[0].ratio())
        scores = record.get("scores")
        rows.append({"id": str(record.get("id")), "likeness": matcher.ratio(), "right": caption == reference,
                     "caption": _marked(matcher, matcher.a, 1), "reference": _marked(matcher, matcher.b, 3),
                     "others": len(matches) - 1, "confidence": _number(record.get("confidence")),
                     "scores": {str(k): _number(v) for k, v in scores.items()} if isinstance(scores, dict) else {}})
    return sorted(rows, key=lambda row: (row["likeness"], row["id"]))


def _matcher(caption: str, reference: str) -> difflib.SequenceMatcher[str]:
    """Compares words and numbers where there are spaces, and single characters of Chinese."""
    piece = re.compile(r"[A-Za-z\u00c0-\u024f]+|\d+(?:\.\d+)?|\s+|.", re.DOTALL)
    return difflib.SequenceMatcher(None, piece.findall(caption), piece.findall(reference), autojunk=False)


def _marked(matcher: difflib.SequenceMatcher[str], pieces: list[str], at: int) -> list[tuple[bool, str]]:
    """[(whether it differs, text)]. at: where an opcode has the stretch of this side."""
    return [(code[0] != "equal", "".join(pieces[code[at]:code[at + 1]])) for code in matcher.get_opcodes()
            if code[at] < code[at + 1]]


def _retrieval(path: Path) -> dict[str, Any] | None:
    """{ids, rows of (cosine, shade 0-9, whether it is the row's highest)}; row: a slide, column: a text."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        ids, matrix = [str(i) for i in content["ids"]][:MOST_RETRIEVED], content["similarity"]
        rows = [[float(v) for v in row[:len(ids)]] for row in matrix[:len(ids)]]
        if not rows or any(len(row) != len(ids) or not all(map(math.isfinite, row)) for row in rows):
            return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    low, high = min(map(min, rows)), max(map(max, rows))
    shade = [[round(9 * (v - low) / (high - low)) if high > low else 0 for v in row] for row in rows]
    return {"ids": ids, "low": low, "high": high, "first": sum(row[i] == max(row) for i, row in enumerate(rows)),
            "rows": [[(v, s, v == max(row)) for v, s in zip(row, shades, strict=True)]
                     for row, shades in zip(rows, shade, strict=True)]}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m finetune.report", description="Write report.html of a run anew.")
    parser.add_argument("folder", type=Path, help="run folder, such as ./checkpoints")
    folder = parser.parse_args().folder
    if not (folder / METRICS).is_file():
        raise UserError(folder, f"has no {METRICS}", "give the output_dir of a run that has finished an epoch")
    try:
        say(str(write_report(folder)))
    except OSError as error:
        raise UserError(folder / NAME, f"cannot be written ({error.strerror})", "free some space") from None
    return 0
