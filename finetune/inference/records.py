"""The answer for a slide, one record each: printed, or written as .jsonl, .json or .csv."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from ..common.errors import UserError, printable, say
from ..common.files import expand
from ..evaluation.scoring import Answers, evaluate


def write_records(records: list[dict[str, Any]], path: Path) -> None:
    """Write records as .jsonl, .json or .csv, by the ending. Raises UserError if the file cannot be written."""
    try:
        if path.suffix == ".csv":
            _write_csv(records, path)
            return
        lines = [_json_line(r) for r in records]
        text = "[\n" + ",\n".join(lines) + "\n]\n" if path.suffix == ".json" else "".join(f"{line}\n" for line in lines)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(path, f"cannot be written ({error.strerror})", "give another --output") from None


def _write_csv(records: list[dict[str, Any]], path: Path) -> None:
    texts = list(dict.fromkeys(text for r in records for text in r["similarity"]))  # a failed slide has none
    rows = [[r["id"], r["caption"], r["error"], *(r["similarity"].get(t) for t in texts), r["confidence"]]
            for r in records]
    with open(path, "w", newline="", encoding="utf-8-sig") as file:  # Excel takes UTF-8 only with the mark
        csv.writer(file).writerows([["id", "caption", "error", *(f"similarity: {t}" for t in texts), "confidence"],
                                    *([_cell(c) for c in row] for row in rows)])


def _print_scores(answers: Answers | None, common_text: str | None, abstained: int) -> None:
    """A table for people, then all of it on one line for programs."""
    if answers is None:
        say(f"summary: {json.dumps({'slides': 0, 'abstained': abstained})}")
        return
    report = evaluate(answers, common_text)
    say(f"scores of {len(answers.captions)} slides, with 95 % intervals; {abstained} abstained:", *report.lines(),
        report.signature())
    say(f"summary: {json.dumps(report.to_dict() | {'abstained': abstained}, ensure_ascii=False)}")


def _print_record(record: dict[str, Any]) -> None:
    if record["error"] is not None:
        return  # told at the end, on stderr
    said = "none, confidence too low" if record["caption"] is None else f"caption: {printable(record['caption'])}"
    say(f"{printable(record['id'])}\t{said}\n\tconfidence {record['confidence']:.4f}")
    for text, cosine in record["similarity"].items():
        probability = record["probability"].get(text)
        say(f"\tsimilarity {cosine:.4f}" + (f"  probability {probability:.4f}" if probability is not None else "")
            + f"  {printable(text)}")
    for name, probability in record.get("classes", {}).items():
        say(f"\tclass probability {probability:.4f}  {printable(name)}")
    for near in record.get("nearest", ()):
        say(f"\tnearest {near['similarity']:.4f}  {printable(near['id'])}  {printable(near['texts'][0])}")


def _output_path(path: str | None) -> Path | None:
    """The output path, before any work is done for it. Raises UserError for another ending or a missing folder."""
    if path is None:
        return None
    target = expand(path)
    if target.suffix not in (".jsonl", ".json", ".csv"):
        raise UserError(target, f"ending {target.suffix!r} is unknown", "use .jsonl, .json or .csv")
    if not target.parent.is_dir():
        raise UserError(target.parent, "no such folder", "make it first")
    if target.is_dir():
        raise UserError(target, "is a folder", "give the path of a file")
    return target


def _record(slide_id: str, caption: str | None = None, error: str | None = None,
            confidence: float | None = None) -> dict[str, Any]:
    return {"id": slide_id, "caption": caption, "similarity": {}, "probability": {}, "confidence": confidence,
            "error": error}


def _json_line(record: dict[str, Any]) -> str:
    """JSON on one line for every reader: what is not printable, such as U+2028, stays escaped."""
    text = json.dumps(record, ensure_ascii=False)
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def _cell(value: Any) -> Any:
    """A spreadsheet runs a cell that starts like this as a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t") else value
