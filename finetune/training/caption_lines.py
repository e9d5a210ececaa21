"""Captions of held-out slides as the lines of a file for the report: beside their references, with scores and findings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..common.score_table import SCORES, score_names
from ..common.visible import json_text
from ..evaluation.findings import FindingDictionary
from ..evaluation.scoring import Answers
from ..evaluation.text_metrics import Statistic

Statuses = Mapping[str, str]  # {finding: present, absent or uncertain} of those that a text mentions


def caption_lines(epoch: int, ids: Sequence[str], answers: Answers, statistics: Mapping[str, Statistic],
                  more: Sequence[Mapping[str, Any]] | None = None) -> str:
    """One line of JSON for each slide.

    Args:
        epoch: Of the model that wrote the captions.
        ids: Of the slides.
        answers: Captions and references of the same slides.
        statistics: The scores of `answers`.
        more: Further entries of each line.
    """
    read = FindingDictionary.shipped().read
    lines = []
    for row, (slide_id, caption, references) in enumerate(zip(ids, answers.captions, answers.references, strict=True)):
        line = {
            "epoch": epoch,
            "id": slide_id,
            "caption": caption,
            "references": list(references),
            "scores": _scores(statistics, row),
            "findings": _both(read(caption), read("\n".join(references))),
            **(more[row] if more else {}),
        }
        lines.append(json_text(line) + "\n")
    return "".join(lines)


def _scores(statistics: Mapping[str, Statistic], row: int) -> dict[str, float]:
    """The scores of one caption by itself."""
    names = [name for name in score_names("text") if SCORES[name].per_slide]
    return {name: round(statistics[name](np.array([row])), 6) for name in names}


def _both(in_caption: Statuses, in_references: Statuses) -> dict[str, list[str | None]]:
    """{finding: [its status in the caption, in the references]} of those that either mentions."""
    return {name: [in_caption.get(name), in_references.get(name)] for name in {**in_references, **in_caption}}
