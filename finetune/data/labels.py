"""Labels: the reference texts, the slides and the split of each case, read from a table or from JSON.

To read another JSON format, add its test and its reader beside `_is_histgen` and `_histgen_cases`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from ..common.files import expand
from .columns import ColumnNames
from .json_text import parse_json
from .slide_names import path_parts, slide_name
from .table_labels import cases_of_table, numbers_of_cases
from .tables import Table, is_table, number_records, read_table, table_of_records
from .text_encoding import read_text

SPLITS = ("train", "val", "test")
_FIELDS = ("text", "slides", "split")
_EXPECTED = "expected an object {id: text}"
_NO_NAMES = "slides must be a list of names"
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Label:
    """The label of one case.

    Attributes:
        texts: Its reference texts; where one text is needed, the first is used.
        slides: Names of its slides; the tiles of several are joined.
        split: train, val or test; None if the labels do not say.
        numbers: {(column, cell)} of further columns of a table that name its case or patient: who shares one should
            be on one side of a split.
    """

    texts: tuple[str, ...]
    slides: tuple[str, ...]
    split: str | None = None
    numbers: frozenset[tuple[str, str]] = field(default=frozenset(), compare=False)

    @property
    def text(self) -> str:
        """The first reference text."""
        return self.texts[0]


def load_labels(path: str | Path, named: ColumnNames | None = None, encoding: str | None = None,
                ) -> tuple[dict[str, Label], dict[str, str]]:
    """Read a labels file: a table (`tables.TABLE_SUFFIXES`), a JSON list of records, or a JSON object {id: value}.

    A value is a text, a list of reference texts, or {"text": either, "slides": [names], "split": train, val or test};
    without `slides` the id is the name of the slide. HistGen's {"train": [{"id", "report", "image_path"}], "val": ...}
    is read as well. Texts are stripped, and one file ending such as `.h5` is dropped from an id.

    Args:
        path: The file.
        named: The columns of a table that the user has named.
        encoding: Of a text file; None recognises it.

    Returns:
        ({case id: label} in file order, {case id: problem}); a value in none of these formats or an empty text is a
        problem.

    Raises:
        UserError: Naming file and position, for what skipping a case cannot solve: unknown encoding, not JSON, another
            structure, uncertain columns, repeated ids, ids that are paths, no labels.
    """
    path = expand(str(path))
    cases, problems, numbers = _read_cases(path, named, encoding)
    labels: dict[str, Label] = {}
    for key, value in cases:
        case_id = slide_name(key)
        _check_id(key, case_id, value, path)
        if case_id in labels or case_id in problems:
            raise UserError(path, f"two ids name the slide {case_id!r}", "keep one of them")

        # a bad value concerns one case only: it may be skipped
        try:
            label = _parse_label(case_id, value)
            labels[case_id] = replace(label, numbers=frozenset(numbers.get(key, ())))
        except ValueError as error:
            problems[case_id] = str(error)
    if not labels and not problems:
        raise UserError(path, "no labels", _EXPECTED)
    return labels, problems


def _read_cases(path: Path, named: ColumnNames | None, encoding: str | None,
                ) -> tuple[list[tuple[str, Any]], dict[str, str], dict[str, set[tuple[str, str]]]]:
    """((id, value in our own format) of each case, {row: problem}, {id: its numbers}) of a file in any format."""
    if is_table(path):
        return _of_table(read_table(path, encoding), named)
    data = parse_json(read_text(path, encoding=encoding), path, _EXPECTED)
    if isinstance(data, list):
        return _of_table(table_of_records(number_records(data), path), named)
    if not isinstance(data, dict):
        raise UserError(path, f"the top level is a {type(data).__name__}", _EXPECTED)
    return _cases(data, path), {}, {}


def _of_table(table: Table, named: ColumnNames | None,
              ) -> tuple[list[tuple[str, Any]], dict[str, str], dict[str, set[tuple[str, str]]]]:
    """As `_read_cases`."""
    return *cases_of_table(table, named), numbers_of_cases(table, named)


def _check_id(key: str, case_id: str, value: Any, path: Path) -> None:
    """Raise UserError for an id that can name neither a slide nor, beside slides of their own names, a case."""
    has_slides = isinstance(value, dict) and bool(value.get("slides"))
    problem = id_problem(case_id, has_slides)
    if problem:
        raise UserError(path, f"id {key!r}: {problem}", "an id is the file name of a slide without folder and .h5")


def id_problem(case_id: str, has_slides: bool) -> str | None:
    """Why an id can name neither a slide nor, beside slides of their own names, a case; None if it can."""
    return _surrogate_problem(case_id) if has_slides and case_id else _file_name_problem(case_id)


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
                value["slides"] = [images] if isinstance(images, str) else images
            cases.append((case_id, value))
    return cases


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
    # a path is only compared with those of the files that were found, never opened
    parts = path_parts(slide_name(value.strip()))
    problem = _file_name_problem(" ".join(parts)) if parts and ".." not in parts else "not a file name"
    if problem:
        raise ValueError(f"slide {value!r}: {problem}")
    return "/".join(parts)


def _file_name_problem(slide_id: str) -> str | None:
    """Why an id cannot be a file name inside the embeddings folder, or None."""
    if slide_id in ("", ".", "..") or any(c in slide_id for c in "/\\\0"):
        return "not a file name"
    if not slide_id.isprintable() and any(c < " " for c in slide_id):
        return "holds a control character; in JSON, write the \\ of a path as \\\\ or /"
    return _surrogate_problem(slide_id)


def _text_problem(text: Any) -> str | None:
    if not isinstance(text, str):
        return f"the text is a {type(text).__name__}, expected a string"
    if not text.strip():
        return "empty text"
    return _surrogate_problem(text)


def _surrogate_problem(text: str) -> str | None:
    """JSON can hold half of a UTF-16 pair, which no file or terminal can."""
    if _SURROGATE.search(text):
        return "half of a UTF-16 pair (\\ud800-\\udfff)"
    return None
