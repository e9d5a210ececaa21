"""Judges captions and slides with what nearest.pt holds: how probable it is that a caption is right, and whether its
slide is unlike the training slides.

Shapes: B slides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.tile_facts import TileFacts
from ..models.caption_confidence import CaptionConfidence, evidence
from ..models.training_texts import SlideVectors, TrainingTexts
from ..models.unusual import UsualSlides, tile_reasons
from .records import Record


@dataclass(frozen=True)
class Judge:
    """What a run has learned about its own captions.

    Attributes:
        texts: The training slides.
        usual: What they are like.
        confidence: That a caption is right; None where the validation slides did not show it, or with weights of
            another checkpoint: the confidence is then the mean probability of the tokens.
    """

    texts: TrainingTexts
    usual: UsualSlides
    confidence: CaptionConfidence | None

    @classmethod
    def of_index(cls, index: dict[str, Any], texts: TrainingTexts, *, same_weights: bool) -> Judge | None:
        """Of a nearest.pt; None of an older version's."""
        if index.get("unusual") is None:
            return None
        numbers = index.get("confidence")
        has_confidence = same_weights and numbers is not None
        return cls(texts, UsualSlides.from_dict(index["unusual"]),
                   CaptionConfidence.from_dict(numbers) if has_confidence else None)

    def probabilities(self, texts: Sequence[str], captions: Sequence[Sequence[int]], log_likelihood: np.ndarray,
                      slides: SlideVectors) -> list[float]:
        """That the captions of B slides are right; needs `confidence`.

        Args:
            texts: The captions.
            captions: The same as token ids, without begin and end token.
            log_likelihood: Of each, summed over its tokens, at temperature 1, (B,).
            slides: Vectors of the slides.
        """
        return self.confidence.probabilities(evidence(log_likelihood, captions, texts, slides, self.texts)).tolist()

    def judge_slides(self, records: Sequence[Record], slides: SlideVectors, facts: Sequence[TileFacts]) -> None:
        """Set `unusual` of the records of B slides, and the confidence of unusual ones.

        Args:
            records: Changed in place.
            slides: Vectors of the slides.
            facts: About the tiles of each.
        """
        for record, reasons in zip(records, self.usual.reasons_of(self.texts, slides, facts), strict=True):
            record["unusual"] = False
            _mark(record, reasons)

    def to_dict(self) -> dict[str, Any]:
        """What a judgement depends on beside the training slides, for hashes."""
        return {"unusual": self.usual.to_dict(), "confidence": self.confidence and self.confidence.to_dict()}


def judge_slides(judge: Judge | None, records: Sequence[Record], slides: SlideVectors,
                 facts: Sequence[TileFacts]) -> None:
    """As `Judge.judge_slides`. Without a judge the tiles alone can make a slide unusual, and no record says that its
    slide is not: an exported model has no training slides beside it."""
    if judge is not None:
        judge.judge_slides(records, slides, facts)
        return
    for record, of_slide in zip(records, facts, strict=True):
        _mark(record, tile_reasons(of_slide))


def _mark(record: Record, reasons: list[str]) -> None:
    """Set `unusual` for reasons, if there are any, and all probabilities to 0: nobody has measured how often captions
    and fields of such slides are right."""
    if not reasons:
        return
    record["unusual"], record["unusual_reason"], record["confidence"] = True, "; ".join(reasons), 0.0
    for field in record.get("fields", {}).values():
        field["probability"] = 0.0
        field.pop("alternatives", None)
