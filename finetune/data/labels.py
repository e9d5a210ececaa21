"""Labels: the reference texts, the slides and the split of each case, read from JSON.

To read another label format, add its test and its reader beside `_is_histgen` and `_histgen_cases`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from ..common.files import expand

SPLITS = ("train", "val", "test")
_FIELDS = ("text", "slides", "split")
_SUFFIXES = (".h5", ".hdf5", ".pt")
_MAX_BYTES = 1 << 30  # a million reports of a kilobyte; parsed, they take several times as much memory
_EXPECTED = "expected an object {id: text}"
_NO_NAMES = "slides must be a list of names"


@dataclass(frozen=True)
class Label:
    """The label of one case.

    Attributes:
        texts: Its reference texts; where one text is needed, the first is used.
        slides: Names of its slides; the tiles of several are joined.
        split: train, val or test; None if the labels do not say.
    """

    texts: tuple[str, ...]
    slides: tuple[str, ...]
    split: str | None = None

    @property
    def text(self) -> str:
        """The first reference text."""
        return self.texts[0]


def load_labels(path: str | Path) -> tuple[dict[str, Label], dict[str, str]]:
    """Read a labels file.

    A value is a text, a list of reference texts, or {"text": either, "slides": [names], "split": train, val or test};
    without `slides` the id is the name of the slide. HistGen's {"train": [{"id", "report", "image_path"}], "val": ...}
    is read as well. Texts are stripped, and one file ending such as `.h5` is dropped from an id.

    Returns:
        ({case id: label} in file order, {case id: problem}); a value in none of these formats or an empty text is a
        problem.

    Raises:
        UserError: Naming file and position, for what skipping a case cannot solve: not UTF-8, not JSON, another
            structure, repeated ids, ids that are paths, no labels.
    """
    path = expand(str(path))
    labels: dict[str, Label] = {}
    problems: dict[str, str] = {}
    for key, value in _cases(_read_object(path), path):
        case_id = slide_name(key)
        id_problem = _id_problem(case_id)
        if id_problem:
            raise UserError(path, f"id {key!r}: {id_problem}",
                            "an id is the file name of a slide without folder and .h5")
        if case_id in labels or case_id in problems:
            raise UserError(path, f"two ids name the slide {case_id!r}", "keep one of them")

        # a bad value concerns one case only: it may be skipped
        try:
            labels[case_id] = _parse_label(case_id, value)
        except ValueError as error:
            problems[case_id] = str(error)
    if not labels and not problems:
        raise UserError(path, "no labels", _EXPECTED)
    return labels, problems


def slide_name(key: str) -> str:
    """The name of a slide or case: an id without the ending of a file."""
    for suffix in _SUFFIXES:
        if key.lower().endswith(suffix):
            return key[: -len(suffix)]
    return key


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. A byte order mark is accepted."""
    try:
        # a features file given by mistake may have many gigabytes
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise UserError(path, f"{size / 1e9:.1f} GB is not a labels file", _EXPECTED)
        text = path.read_bytes().decode("utf-8-sig")  # editors on Windows write a byte order mark
    except OSError as error:
        raise UserError(path, f"cannot be read ({error.strerror})", "give the path of the labels JSON") from None
    except UnicodeDecodeError as error:
        raise UserError(path, f"not UTF-8 (byte {error.start})",
                        f"convert it: iconv -f GBK -t UTF-8 {path.name} > labels_utf8.json") from None
    data = _parse_json(text, path)
    if not isinstance(data, dict):
        raise UserError(path, f"the top level is a {type(data).__name__}", _EXPECTED)
    return data


def _parse_json(text: str, path: Path) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """A JSON object; of a repeated key Python would silently keep the last value."""
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                first, second = str(result[key])[:20], str(value)[:20]  # texts are private: 20 characters, no more
                raise UserError(path, f"id {key!r} appears twice ({first!r} and {second!r})", "keep one of them")
            result[key] = value
        return result

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}:{error.colno}", f"not valid JSON ({error.msg})",
                        "correct the file there") from None
    except (RecursionError, ValueError):  # ValueError: a number of thousands of digits
        raise UserError(path, "not a labels file", _EXPECTED) from None


def _cases(data: dict[str, Any], path: Path) -> list[tuple[str, Any]]:
    """(id, value in our own format) of each case of a file in any supported format."""
    if _is_histgen(data):
        return _histgen_cases(data, path)
    return list(data.items())


def _is_histgen(data: dict[str, Any]) -> bool:
    """Whether the object is HistGen's: lists of records under the names of splits. Slides may have these names too."""
    if not data or not set(data) <= set(SPLITS):
        return False
    for records in data.values():
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            return False
    return True


def _histgen_cases(data: dict[str, Any], path: Path) -> list[tuple[str, Any]]:
    cases = []
    for split, records in data.items():
        for number, record in enumerate(records):
            case_id = record.get("id")
            if not isinstance(case_id, str):
                raise UserError(path, f"{split}[{number}] has no id", "give each record {id, report, image_path}")
            # `split` of the record itself is ignored: the list it is in counts
            value = {"text": record.get("report"), "split": split}
            images = record.get("image_path")
            if images:
                value["slides"] = _file_names(images)
            cases.append((case_id, value))
    return cases


def _file_names(paths: Any) -> Any:
    """Paths without their folders. Anything else stays as it is, for `_parse_slides` to reject."""
    if isinstance(paths, str):
        paths = [paths]
    if not isinstance(paths, list):
        return paths
    return [re.split(r"[/\\]", path)[-1] if isinstance(path, str) else path for path in paths]


def _parse_label(case_id: str, value: Any) -> Label:
    """Parse a value in our own format. Raises ValueError saying what is wrong."""
    fields = value if isinstance(value, dict) else {"text": value}
    unknown = sorted(set(fields) - set(_FIELDS))
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r}, expected {', '.join(_FIELDS)}")
    texts = _parse_texts(fields.get("text"))
    slides = _parse_slides(fields.get("slides"), case_id)
    split = fields.get("split")
    if split is not None and split not in SPLITS:
        raise ValueError(f"split {split!r}, expected {', '.join(SPLITS)}")
    return Label(texts, slides, split)


def _parse_texts(value: Any) -> tuple[str, ...]:
    texts = value if isinstance(value, list) else [value]
    if not texts:
        raise ValueError("empty list of texts")
    for text in texts:
        problem = _text_problem(text)
        if problem:
            raise ValueError(problem)
    # a text that is given twice would be trained on twice as often
    return tuple(dict.fromkeys(text.strip() for text in texts))


def _parse_slides(value: Any, case_id: str) -> tuple[str, ...]:
    if value is None:
        return (case_id,)
    if not isinstance(value, list) or not value:
        raise ValueError(_NO_NAMES)
    names = tuple(_parse_slide(name) for name in value)
    if len(set(names)) < len(names):
        raise ValueError("a slide appears twice")
    return names


def _parse_slide(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(_NO_NAMES)
    name = slide_name(value)
    problem = _id_problem(name)
    if problem:
        raise ValueError(f"slide {name!r}: {problem}")
    return name


def _id_problem(slide_id: str) -> str | None:
    """Why an id cannot be a file name inside the embeddings folder, or None."""
    if slide_id in ("", ".", "..") or any(c in slide_id for c in "/\\\0"):
        return "not a file name"
    return _surrogate_problem(slide_id)


def _text_problem(text: Any) -> str | None:
    if not isinstance(text, str):
        return f"the text is a {type(text).__name__}, expected a string"
    if not text.strip():
        return "empty text"
    return _surrogate_problem(text)


def _surrogate_problem(text: str) -> str | None:
    """JSON can hold half of a UTF-16 pair, which no file or terminal can."""
    if any("\ud800" <= c <= "\udfff" for c in text):
        return "half of a UTF-16 pair (\\ud800-\\udfff)"
    return None
