"""How many held-out texts are in training, counted once for equal texts: for 100 000 of them it takes seconds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..common.files import write_atomically
from ..common.log import logger
from .near_duplicates import count_overlap

_MAX_KEPT = 100  # counts in a file: each split and each change of the labels adds one


def kept_overlap(texts: Sequence[str], training_texts: Sequence[str], path: Path | None) -> tuple[int, int]:
    """`near_duplicates.count_overlap`, from a file if it was counted before.

    Args:
        path: The file; None counts anew. One that cannot be read or written only costs time.
    """
    if path is None:
        return count_overlap(texts, training_texts)
    key = _hash(texts) + _hash(training_texts)
    kept = _read(path)
    if key not in kept:
        kept[key] = list(count_overlap(texts, training_texts))
        _write(path, dict(list(kept.items())[-_MAX_KEPT:]))
    num_exact, num_near = kept[key]
    return num_exact, num_near


def _hash(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def _read(path: Path) -> dict[str, list[int]]:
    """What is in the file; empty if anything in it is wrong."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return kept if isinstance(kept, dict) and all(map(_are_counts, kept.values())) else {}


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(count) is int and count >= 0 for count in value)


def _write(path: Path, kept: dict[str, list[int]]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(kept))
    except OSError as error:
        logger.warning("%s cannot be written (%s): the next run compares the texts again", path, error.strerror)
