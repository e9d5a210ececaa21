"""One record per slide: printed, or written as .jsonl, .json or .csv."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NotRequired, TypedDict

from ..common.errors import UserError, say
from ..common.files import expand
from ..common.terminal import shortened, width_of
from ..common.visible import json_text, spreadsheet_cell, visible

DANGEROUS = "DANGEROUS CONTRADICTION"
CUT = " ... (not finished: cut at --max_length)"  # behind such a caption where people read it


class Nearest(TypedDict):
    """A training slide: its id, texts, and cosine similarity to the captioned slide."""

    id: str
    similarity: float
    texts: list[str]


class Match(TypedDict):
    """How a caption agrees with its references, see evaluation/agreement.py."""

    exact: bool
    acceptable: bool
    safe: bool


class FieldRecord(TypedDict):
    """A field of a caption that follows a template.

    value: None where the slot has none, or was withheld (`abstained`: true). probability: of the value, also of a
    withheld one; 0 for an unusual slide. alternatives: of the next best values, "" for none; left out if there are none
    worth it.
    """

    value: str | None
    probability: float
    alternatives: NotRequired[dict[str, float]]
    abstained: NotRequired[bool]


class Record(TypedDict):
    """What inference.py says about a slide.

    caption: None if the slide failed or the caption was withheld. similarity: cosine to each text of --text.
    probability: of each of several texts. error: why the slide failed, else None.
    confidence: that the caption is right, as the validation slides show it; without a judge, or where they do not show
    it, the mean token probability; 0 for an unusual slide.
    finished: whether the caption came to its end token before --max_length cut it; None without a caption.
    match: with --labels_file: how the caption agrees with its references.
    fields: {slot: field} of a caption that follows a template, whose confidence is the probability of all fields.
    unusual: whether the slide is unlike the training slides; left out where nothing can say so (without a
    judge, true for what the tiles alone show, and never false). unusual_reason: why.
    from_training_text: true if captions are re-ranked and this one is a training text; left out otherwise.
    made_from: hashes of model, options and slide, for --resume.
    """

    id: str
    caption: str | None
    similarity: dict[str, float]
    probability: dict[str, float]
    confidence: float | None
    finished: bool | None
    error: str | None
    classes: NotRequired[dict[str, float]]
    nearest: NotRequired[list[Nearest]]
    abstained: NotRequired[bool]
    match: NotRequired[Match]
    fields: NotRequired[dict[str, FieldRecord]]
    unusual: NotRequired[bool]
    unusual_reason: NotRequired[str]
    from_training_text: NotRequired[bool]
    made_from: NotRequired[str]


Records = Callable[[], Iterator[Record]]  # each call begins with the first again


def new_record(slide_id: str, caption: str | None = None, error: str | None = None,
               confidence: float | None = None, finished: bool | None = None) -> Record:
    """A record without scores."""
    return {"id": slide_id, "caption": caption, "similarity": {}, "probability": {}, "confidence": confidence,
            "finished": finished, "error": error}


def output_path(path: str | None) -> Path | None:
    """The path of --output, checked before any work is done. Raises UserError for another suffix or no folder."""
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


def print_record(record: Record, *, brief: bool) -> None:
    """Print a record; failed slides are listed at the end of the run instead.

    Args:
        brief: On one line, no wider than the terminal if there is one: where a file has all of it.
    """
    if record["error"] is not None:
        return
    if brief:
        say(shortened(_brief_line(record), width_of(sys.stdout)))
    else:
        say(*_caption_lines(record), *_similarity_lines(record), *_lines_asked_for(record))


def _caption_lines(record: Record) -> Iterator[str]:
    """The caption, its confidence, how it agrees with its references, and why its slide is unusual."""
    caption = "none, unusual slide" if record.get("unusual") else "none, confidence too low"
    if record["caption"] is not None:
        caption = f"caption: {visible(record['caption'])}{CUT if record['finished'] is False else ''}"
    yield f"{visible(record['id'])}\t{caption}"
    yield f"\tconfidence {record['confidence']:.4f}"
    if "match" in record:
        yield f"\tmatch {match_in_words(record['match'])}"
    if "unusual_reason" in record:
        yield f"\tunusual: {record['unusual_reason']}"


def _lines_asked_for(record: Record) -> Iterator[str]:
    """Fields, classes and nearest slides, of those that it has."""
    withheld = f"none, {'unusual slide' if record.get('unusual') else 'probability too low'}"
    for name, field in record.get("fields", {}).items():
        value = withheld if field.get("abstained") else visible(field["value"] or "-")
        yield f"\tfield {visible(name)}: {value}  probability {field['probability']:.4f}"
    for name, probability in record.get("classes", {}).items():
        yield f"\tclass probability {probability:.4f}  {visible(name)}"
    for slide in record.get("nearest", ()):
        yield f"\tnearest {slide['similarity']:.4f}  {visible(slide['id'])}  {visible(slide['texts'][0])}"


def _similarity_lines(record: Record) -> Iterator[str]:
    for text, cosine in record["similarity"].items():
        scores = f"\tsimilarity {cosine:.4f}"
        if text in record["probability"]:
            scores += f"  probability {record['probability'][text]:.4f}"
        yield f"{scores}  {visible(text)}"


def _brief_line(record: Record) -> str:
    """Id, confidence and caption."""
    why = "unusual slide" if record.get("unusual") else "confidence too low"
    caption = f"(none: {why})" if record["caption"] is None else visible(record["caption"])
    cut = " (cut)" if record["finished"] is False else ""
    danger = "" if "match" not in record or record["match"]["safe"] else f"  {DANGEROUS}"
    unusual = " (unusual)" if record.get("unusual") and record["caption"] is not None else ""
    return f"{visible(record['id'])}  {record['confidence']:.2f}{cut}{unusual}{danger}  {caption}"


def match_in_words(match: Match) -> str:
    """The best that can be said of a caption."""
    if match["acceptable"]:
        return "exact" if match["exact"] else "acceptable"
    return "other, without a dangerous contradiction" if match["safe"] else DANGEROUS


def write_json(records: Records, file: BinaryIO) -> None:
    """Write records as one JSON list, a line for each."""
    file.write(b"[")
    separator = b"\n"
    for record in records():
        file.write(separator + json_text(record).encode())
        separator = b",\n"
    file.write(b"\n]\n")


def write_csv(records: Records, file: BinaryIO) -> None:
    """Write records as CSV, a row for each, with a column for each text and two for each field of any of them.

    A field that was withheld somewhere has a third one: an empty value is none elsewhere.
    """
    columns = _Columns.of(records())
    # Excel needs the byte order mark to read UTF-8
    text_file = io.TextIOWrapper(file, encoding="utf-8-sig", errors="replace", newline="")
    writer = csv.writer(text_file)
    writer.writerow(map(spreadsheet_cell, columns.header()))
    for record in records():
        writer.writerow(map(spreadsheet_cell, columns.row(record)))
    text_file.detach()  # flushes, and leaves the file open for its owner


class _Columns(NamedTuple):
    """The columns of a CSV that not every record has, in the order of the first that has them."""

    texts: list[str]
    judged: list[str]
    fields: list[str]
    withheld: set[str]

    @classmethod
    def of(cls, records: Iterable[Record]) -> _Columns:
        texts: dict[str, None] = {}  # ordered sets; a failed slide has no similarities
        judged: dict[str, None] = {}
        fields: dict[str, None] = {}
        withheld: set[str] = set()
        for record in records:
            texts |= dict.fromkeys(record["similarity"])
            fields |= dict.fromkeys(record.get("fields", {}))
            withheld |= {name for name, found in record.get("fields", {}).items() if "abstained" in found}
            if "unusual" in record:
                judged |= dict.fromkeys(("unusual", "unusual_reason"))
        return cls(list(texts), list(judged), list(fields), withheld)

    def header(self) -> list[str]:
        names = ["id", "caption", "error"]
        names += [f"similarity: {text}" for text in self.texts]
        names += ["confidence", "finished", *self.judged]
        for name in self.fields:
            names += [f"field: {name}", f"probability: {name}"]
            names += [f"withheld: {name}"] * (name in self.withheld)
        return names

    def row(self, record: Record) -> list[Any]:
        row = [record["id"], record["caption"], record["error"]]
        row += [record["similarity"].get(text) for text in self.texts]
        row += [record["confidence"], _truth(record["finished"])]
        row += [_truth(record.get(name)) for name in self.judged]
        for name in self.fields:
            found = record.get("fields", {}).get(name, {})
            row += [found.get("value"), found.get("probability")]
            row += [_truth("abstained" in found)] * (name in self.withheld)
        return row


def _truth(value: bool | str | None) -> str | None:
    """A bool as CSV has it; a text as it is."""
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else value
