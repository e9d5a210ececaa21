"""Labels: a JSON file {slide id: text}, and the split of slides into training and validation."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .config import expand
from .errors import UserError

_SUFFIXES = (".h5", ".hdf5", ".pt")
_MAX_BYTES = 1 << 30  # a million reports of a kilobyte; parsed, they take several times as much memory


def load_labels(path: str | Path) -> tuple[dict[str, str], dict[str, str]]:
    """({slide id: text} in file order, {slide id: problem}); texts are stripped, one `.h5` at the end of an id dropped.

    A problem is a text that is empty or no string. Raises UserError naming file and place for what no skipping mends:
    not UTF-8, not JSON, another shape, repeated ids, ids that are paths, no labels.
    """
    path = expand(str(path))
    labels: dict[str, str] = {}
    problems: dict[str, str] = {}
    for key, text in _read_object(path).items():
        slide_id = _slide_id(key)
        if why := _id_problem(slide_id):
            raise UserError(path, f"id {key!r}: {why}", "an id is the file name of a slide without folder and .h5")
        if slide_id in labels or slide_id in problems:
            raise UserError(path, f"two ids name the slide {slide_id!r}", "keep one of them")
        if why := _text_problem(text):
            problems[slide_id] = why
        else:
            labels[slide_id] = text.strip()
    if not labels and not problems:
        raise UserError(path, "no labels", "expected an object {id: text}")
    return labels, problems


def split_ids(ids: Sequence[str], val_split: float, seed: int) -> tuple[list[str], list[str]]:
    """(training ids, validation ids): a shuffle by `seed` of the sorted ids, so the file order does not matter.

    Raises UserError if a side that should have slides would have none.
    """
    order = sorted(ids)
    random.Random(seed).shuffle(order)
    count = round(len(order) * val_split)
    if val_split > 0 and (count == 0 or count == len(order)):
        raise UserError("data.val_split", f"{val_split:g} of {len(order)} slides leaves one side empty",
                        "use 0 for no validation or a share that gives each side a slide")
    return order[count:], order[:count]


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Byte order marks are fine; repeated keys are not."""
    try:
        if (size := path.stat().st_size) > _MAX_BYTES:
            raise UserError(path, f"{size / 1e9:.1f} GB is no labels file", "expected an object {id: text}")
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
        raise UserError(path, "not a labels file", "expected an object {id: text}") from None
    if not isinstance(data, dict):
        raise UserError(path, f"the top level is a {type(data).__name__}", "expected an object {id: text}")
    return data


def _unique(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise UserError(path, f"id {key!r} stands twice ({str(result[key])[:20]!r} and {str(value)[:20]!r})",
                            "keep one of them")
        result[key] = value
    return result


def _slide_id(key: str) -> str:
    suffix = next((s for s in _SUFFIXES if key.lower().endswith(s)), "")
    return key[: len(key) - len(suffix)]


def _id_problem(slide_id: str) -> str | None:
    """Why an id cannot be a file name inside the embeddings folder, or None."""
    if slide_id in ("", ".", "..") or any(c in slide_id for c in "/\\\0"):
        return "not a file name"
    return _surrogate_problem(slide_id)


def _text_problem(text: Any) -> str | None:
    if not isinstance(text, str):
        return f"the text is a {type(text).__name__}, expected a string"
    return "empty text" if not text.strip() else _surrogate_problem(text)


def _surrogate_problem(text: str) -> str | None:
    return "half of a UTF-16 pair (\\ud800-\\udfff)" if any("\ud800" <= c <= "\udfff" for c in text) else None
