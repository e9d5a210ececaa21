"""The captions of the report beside the most similar reference, with their differences marked."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

from ..common.run_folder import Record
from ..common.score_table import label
from .drawable import finite_or_nan, has_epoch

MAX_CHARACTERS = 600  # of a text on the page
# What is compared: Latin words, numbers and single characters of Chinese
_TOKENS = re.compile(r"[A-Za-z\u00c0-\u024f]+|\d+(?:\.\d+)?|\s+|.", re.DOTALL)


def caption_rows(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Captions of the newest epoch in validation_captions.jsonl, those least similar to a reference first."""
    usable = [record for record in records if _is_usable(record)]
    newest = max((record["epoch"] for record in usable), default=0)
    rows = [_caption_row(record) for record in usable if record["epoch"] == newest]
    return sorted(rows, key=lambda row: (row["likeness"], row["id"]))


def _is_usable(record: Record) -> bool:
    references = record.get("references")
    has_references = isinstance(references, list) and len(references) > 0
    return has_epoch(record) and isinstance(record.get("caption"), str) and has_references


def _caption_row(record: Record) -> dict[str, Any]:
    caption = record["caption"][:MAX_CHARACTERS]
    references = [str(text)[:MAX_CHARACTERS] for text in record["references"]]
    matchers = [_matcher(caption, text) for text in references]
    ratios = [matcher.ratio() for matcher in matchers]
    nearest = ratios.index(max(ratios))
    scores = record.get("scores")
    if not isinstance(scores, dict):
        scores = {}
    caption_segments, reference_segments = _segments(matchers[nearest])
    return {
        "id": str(record.get("id")),
        "likeness": ratios[nearest],
        "right": caption == references[nearest],
        "finished": record.get("finished") is not False,
        "caption": caption_segments,
        "reference": reference_segments,
        "others": len(references) - 1,
        "confidence": finite_or_nan(record.get("confidence")),
        "scores": {label(name): finite_or_nan(value) for name, value in scores.items()},
    }


def _matcher(caption: str, reference: str) -> difflib.SequenceMatcher[str]:
    return difflib.SequenceMatcher(None, _TOKENS.findall(caption), _TOKENS.findall(reference), autojunk=False)


def _segments(matcher: difflib.SequenceMatcher[str]) -> tuple[list[tuple[bool, str]], list[tuple[bool, str]]]:
    """[(whether it differs, text)] of the caption and of the reference."""
    caption, reference = [], []
    for tag, caption_begin, caption_end, reference_begin, reference_end in matcher.get_opcodes():
        differs = tag != "equal"
        if caption_begin < caption_end:
            caption.append((differs, "".join(matcher.a[caption_begin:caption_end])))
        if reference_begin < reference_end:
            reference.append((differs, "".join(matcher.b[reference_begin:reference_end])))
    return caption, reference
