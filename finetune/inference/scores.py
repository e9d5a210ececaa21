"""What inference.py says about answers whose truth is known: scores, fields, and which of them to trust."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..common.log import logger
from ..common.score_table import CAPTIONS
from ..evaluation.agreement import is_acceptable
from ..evaluation.coverage import Selection, coverage_lines
from ..evaluation.field_scores import FieldAnswers, FieldScores, field_lines
from ..evaluation.findings import FindingDictionary
from ..evaluation.scoring import Answers, Report
from ..templates.template import Fields, Template
from .captioner import Captioner
from .ground_truth import GroundTruth
from .options import InferenceOptions
from .records import FieldRecord, Record


@dataclass(frozen=True)
class Scored:
    """The scores of a job.

    Attributes:
        report: Of captions and baselines, None if all captions were withheld.
        records: Of the slides in it, in its order.
        fields: Of the slides, those with a withheld caption included; None without a template or references.
        records_of_fields: Of the slides that `fields` was given, in its order.
    """

    report: Report | None
    records: Sequence[Record]
    fields: FieldScores | None = None
    records_of_fields: Sequence[Record] = ()

    def to_dict(self, wanted_accuracy: float) -> dict[str, Any]:
        """Strict JSON: the report, `fields` where there are some, and `selective`: {captions or a field: coverage
        against accuracy}."""
        summary = self.report.to_dict() if self.report else {"slides": 0}
        if self.fields:
            summary["fields"] = self.fields.to_dict()
        return summary | {"selective": {one.name: one.to_dict(wanted_accuracy) for one in self.selections()}}

    def selections(self) -> list[Selection]:
        """Captions and fields with their confidence, and whether they are right: captions if they are acceptable."""
        selections = []
        if self.report and self.report.answers.references:
            confidence = np.array([record["confidence"] for record in self.records], dtype=float)
            selections.append(Selection(CAPTIONS, confidence, acceptable(self.report.answers)))
        return selections + [self._of_field(field) for field in (self.fields.fields if self.fields else ())]

    def _of_field(self, field: FieldAnswers) -> Selection:
        """The answers to a field that have a probability. Any threshold withholds those of an unusual slide."""
        known = field.known
        unusual = np.array([self.records_of_fields[row].get("unusual", False) for row in field.rows[known]], dtype=bool)
        name = f"field: {field.name}" if field.name == CAPTIONS else field.name  # beside the row of the captions
        return Selection(name, np.where(unusual, 0.0, field.probabilities[known]), field.right[known])


def template_to_score(captioner: Captioner) -> Template | None:
    """The template that captions follow, or that the training texts follow; None for neither.

    Raises:
        UserError: The one in the checkpoint is not usable.
    """
    if captioner.form is not None:
        return captioner.form.template
    checkpoint = captioner.checkpoint
    if checkpoint is None or checkpoint.template is None:
        return None
    return Template.from_dict(checkpoint.template, f"template of {checkpoint.path}")


def records_with_fields(records: Sequence[Record], truth: GroundTruth) -> list[Record]:
    """Those of which a text is known, with a caption or the fields of a withheld one."""
    return [record for record in records
            if truth.references_of(record["id"]) and (record["caption"] is not None or record.get("fields"))]


def score_fields(template: Template | None, truth: GroundTruth, records: Sequence[Record]) -> FieldScores | None:
    """The fields of slides, which `records_with_fields` gives; None without a template that a reference follows."""
    if template is None or not records:
        return None
    references = [truth.references_of(record["id"]) for record in records]
    scores = FieldScores.of(template, list(map(_said, records)), references, list(map(_known_fields, records)),
                            list(map(_withheld, records)))
    if scores.references_off:
        logger.warning("%d of %d references do not follow the template, so that their fields are not scored, such as "
                       "%r", scores.references_off, len(records), scores.example_off)
    return scores if len(scores.rows) else None


def _said(record: Record) -> str | Fields:
    """What a slide's caption says; the fields of a withheld one."""
    if record["caption"] is not None:
        return record["caption"]
    return {name: one["value"] for name, one in record["fields"].items()}


def _known_fields(record: Record) -> dict[str, dict[str, float]]:
    """{field: what `_known` says of it}."""
    return {name: _known(one) for name, one in record.get("fields", {}).items()}


def _withheld(record: Record) -> set[str]:
    """The fields that were withheld."""
    return {name for name, one in record.get("fields", {}).items() if one["value"] is None and one.get("abstained")}


def _known(one: FieldRecord) -> dict[str, float]:
    """{value: its probability}, "" for none, of those in a record."""
    return {one["value"] or "": one["probability"], **one.get("alternatives", {})}


def acceptable(answers: Answers) -> np.ndarray:
    """(S,): whether each caption is an acceptable match."""
    dictionary = answers.findings or FindingDictionary.shipped()
    return np.array([is_acceptable(dictionary, caption, texts)
                     for caption, texts in zip(answers.captions, answers.references, strict=True)], dtype=bool)


def more_lines(summary: dict[str, Any], wanted_accuracy: float) -> list[str]:
    """The tables of fields, and of coverage against accuracy, of `Scored.to_dict`."""
    fields = field_lines(summary["fields"]) if "fields" in summary else []
    return [*fields, *(coverage_lines(summary["selective"], wanted_accuracy) if summary["selective"] else ())]


def warn_of_same_slides(summary: dict[str, Any], abstained: int, options: InferenceOptions) -> None:
    """Say on which slides the thresholds were chosen, and which answers they do not know."""
    if abstained and summary["selective"]:
        logger.warning("%d captions withheld by --abstain_below are not in the table: choose a threshold without it",
                       abstained)
    if any(table["chosen"] and table["chosen"]["threshold"] for table in summary["selective"].values()):
        judge = "--split test" if options.split == "val" else "slides that were not used here"
        logger.warning("the thresholds are chosen and judged on the same slides, so that their accuracy looks better "
                       "than it is: judge them with --abstain_below on %s", judge)
