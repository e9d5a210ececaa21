"""Labels: what is known of each case, read from JSON."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from ..common.files import expand

SPLITS = ("train", "val", "test")
_SUFFIXES = (".h5", ".hdf5", ".pt")
_MAX_BYTES = 1 << 30  # a million reports of a kilobyte; parsed, they take several times as much memory
_SHAPES = "expected an object {id: text}"


@dataclass(frozen=True)
class Label:
    """What is known of one case: its reference texts, the one that counts first; the names of its slides, joined when
    there are several; the side of the split it belongs to, if the labels say so."""

    texts: tuple[str, ...]
    slides: tuple[str, ...]
    split: str | None = None

    @property
    def text(self) -> str:
        return self.texts[0]


def load_labels(path: str | Path) -> tuple[dict[str, Label], dict[str, str]]:
    """({case id: label} in file order, {case id: problem}); texts are stripped, one `.h5` at the end of an id dropped.

    A value is a text, a list of reference texts, or {"text": either, "slides": [names], "split": train, val or test};
    without `slides` the id is the slide's name. HistGen's {"train": [{"id", "report", "image_path"}], "val": ...} too.
    A problem is a value that is none of these, or an empty text. Raises UserError naming file and place for what no
    skipping mends: not UTF-8, not JSON, another shape, repeated ids, ids that are paths, no labels.
    """
    path = expand(str(path))
    labels: dict[str, Label] = {}
    problems: dict[str, str] = {}
    for key, value in _cases(_read_object(path), path):
        case_id = slide_name(key)
        if why := _id_problem(case_id):
            raise UserError(path, f"id {key!r}: {why}", "an id is the file name of a slide without folder and .h5")
        if case_id in labels or case_id in problems:
            raise UserError(path, f"two ids name the slide {case_id!r}", "keep one of them")
        try:
            labels[case_id] = _label(case_id, value)
        except ValueError as problem:
            problems[case_id] = str(problem)
    if not labels and not problems:
        raise UserError(path, "no labels", _SHAPES)
    return labels, problems


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Byte order marks are fine; repeated keys are not."""
    try:
        if (size := path.stat().st_size) > _MAX_BYTES:
            raise UserError(path, f"{size / 1e9:.1f} GB is no labels file", _SHAPES)
        text = path.read_bytes().decode("utf-8-sig")
        data = json.loads(text, object_pairs_hook=lambda pairs: _unique(pairs, path))
    except OSError as error:
        raise UserError(path, f"cannot be read ({error.strerror})", "give the path of the labels JSON") from None
    except UnicodeDecodeError as error:
        raise UserError(path, f"not UTF-8 (byte {error.start})",
                        f"convert it: iconv -f GBK -t UTF-8 {path.name} > labels_utf8.json") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}:{error.colno}", f"not valid JSON ({error.msg})",
                        "correct the file there") from None
    except (RecursionError, ValueError):  # ValueError: a number of thousands of digits
        raise UserError(path, "not a labels file", _SHAPES) from None
    if not isinstance(data, dict):
        raise UserError(path, f"the top level is a {type(data).__name__}", _SHAPES)
    return data


def _unique(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise UserError(path, f"id {key!r} stands twice ({str(result[key])[:20]!r} and {str(value)[:20]!r})",
                            "keep one of them")
        result[key] = value
    return result


def slide_name(key: str) -> str:
    """An id as the files have it: without the ending of one."""
    suffix = next((s for s in _SUFFIXES if key.lower().endswith(s)), "")
    return key[: len(key) - len(suffix)]


def _id_problem(slide_id: str) -> str | None:
    """Why an id cannot be a file name inside the embeddings folder, or None."""
    if slide_id in ("", ".", "..") or any(c in slide_id for c in "/\\\0"):
        return "not a file name"
    return _surrogate_problem(slide_id)


def _cases(data: dict[str, Any], path: Path) -> list[tuple[str, Any]]:
    """(id, value) of each case; the records of HistGen's form become values of ours."""
    if not data or not set(data) <= set(SPLITS) or not all(
            isinstance(side, list) and all(isinstance(r, dict) for r in side) for side in data.values()):
        return list(data.items())
    cases = []
    for split, records in data.items():
        for number, record in enumerate(records):
            if not isinstance(key := record.get("id"), str):
                raise UserError(path, f"{split}[{number}] has no id", "give each record {id, report, image_path}")
            value = {"text": record.get("report"), "split": split}
            if images := record.get("image_path"):
                names = [images] if isinstance(images, str) else images
                value["slides"] = [re.split(r"[/\\]", n)[-1] if isinstance(n, str) else n for n in names] \
                    if isinstance(names, list) else names
            cases.append((key, value))
    return cases


def _label(case_id: str, value: Any) -> Label:
    """Raises ValueError saying what is wrong."""
    fields = value if isinstance(value, dict) else {"text": value}
    if unknown := sorted(set(fields) - {"text", "slides", "split"}):
        raise ValueError(f"unknown field {unknown[0]!r}, expected text, slides, split")
    texts, slides, split = fields.get("text"), fields.get("slides"), fields.get("split")
    texts = texts if isinstance(texts, list) else [texts]
    if not texts:
        raise ValueError("empty list of texts")
    for text in texts:
        if why := _text_problem(text):
            raise ValueError(why)
    if slides is None:
        names = [case_id]
    elif not isinstance(slides, list) or not slides or not all(isinstance(s, str) for s in slides):
        raise ValueError("slides must be a list of names")
    else:
        names = [slide_name(name) for name in slides]
    for name in names:
        if why := _id_problem(name):
            raise ValueError(f"slide {name!r}: {why}")
    if len(set(names)) < len(names):
        raise ValueError("a slide stands twice")
    if split is not None and split not in SPLITS:
        raise ValueError(f"split {split!r}, expected {', '.join(SPLITS)}")
    return Label(tuple(dict.fromkeys(text.strip() for text in texts)), tuple(names), split)


def _text_problem(text: Any) -> str | None:
    if not isinstance(text, str):
        return f"the text is a {type(text).__name__}, expected a string"
    return "empty text" if not text.strip() else _surrogate_problem(text)


def _surrogate_problem(text: str) -> str | None:
    return "half of a UTF-16 pair (\\ud800-\\udfff)" if any("\ud800" <= c <= "\udfff" for c in text) else None
