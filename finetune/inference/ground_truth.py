"""What is known about slides to score against: reference texts, classes, prompts, findings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..common.errors import UserError
from ..common.log import logger
from ..config.yaml_file import load_plain_yaml
from ..data.columns import ColumnNames
from ..data.labels import Label, load_labels
from ..evaluation.agreement import is_acceptable, is_safe
from ..evaluation.findings import FindingDictionary
from ..evaluation.reg2025 import RegModels
from ..evaluation.reg_models import load_reg_models
from ..evaluation.retrieval import Cosines
from ..evaluation.scoring import Answers
from ..models.training_texts import SlideVectors
from .captioner import Captioner
from .options import InferenceOptions
from .records import Record

_PROMPTS_FORMAT = "write class: [prompt, ...] for two or more classes"


@dataclass
class GroundTruth:
    """Reference texts and classes by slide id, the prompts of each class, and findings; None for what is not given."""

    labels: dict[str, Label] | None = None
    prompts: dict[str, list[str]] | None = None
    classes: dict[str, str] | None = None
    findings: FindingDictionary | None = None
    reg_models: RegModels | None = None

    @classmethod
    def load(cls, options: InferenceOptions) -> GroundTruth:
        """Read the files that the options name. Raises UserError for files that cannot be used."""
        truth = cls()
        if options.prompts:
            truth.prompts = load_prompts(options.prompts)
        if options.labels_file:
            truth.labels = load_usable_labels(options.labels_file, ColumnNames.of(options), options.encoding)
        if options.classes_file:
            truth.classes = _load_classes(options.classes_file, truth.prompts or {}, options.prompts)
        truth._load_for_scores(options)
        return truth

    def _load_for_scores(self, options: InferenceOptions) -> None:
        """Read what scores of texts are computed with. Raises UserError."""
        if options.findings:
            self.findings = FindingDictionary.load(options.findings)
        if options.reg2025:
            self.reg_models = _load_reg_models(options)

    @property
    def can_score(self) -> bool:
        """Whether there is anything to score against."""
        return self.labels is not None or self.classes is not None

    def references_of(self, case_id: str) -> tuple[str, ...]:
        """The reference texts of a case; none where they are not known."""
        label = self.labels.get(case_id) if self.labels else None
        return label.texts if label else ()

    def add_match(self, record: Record) -> None:
        """Add to the record of a caption how it agrees with its references, if there are some."""
        caption, references = record["caption"], self.references_of(record["id"])
        if caption is None or not references:
            return
        dictionary = self.findings or FindingDictionary.shipped()
        record["match"] = {"exact": caption in references,
                           "acceptable": is_acceptable(dictionary, caption, references),
                           "safe": is_safe(dictionary, caption, references)}

    def scored(self, records: list[Record]) -> list[Record]:
        """The records that have a caption and are known: those that `answers` are of, in their order."""
        known_ids = self.labels if self.labels is not None else self.classes or {}
        return [record for record in records if record["caption"] is not None and record["id"] in known_ids]

    def answers(self, captioner: Captioner, records: list[Record], vectors: dict[str, SlideVectors],
                max_length: int) -> Answers | None:
        """What the model said about the slides of which something is known; None if there are none.

        Args:
            captioner: embeds the reference texts and the prompts.
            records: of all captioned slides; failed ones and withheld captions are left out.
            vectors: {slide id: its vectors}.
            max_length: of the captions, in tokens.
        """
        scored = self.scored(records)
        if not scored:
            return None
        ids = [record["id"] for record in scored]
        images = np.concatenate([vectors[i].contrastive for i in ids])  # (slides, dim_latents)
        answers = Answers([record["caption"] for record in scored], findings=self.findings, max_length=max_length,
                          reg_models=self.reg_models,
                          finished=[record["finished"] is not False for record in scored])
        if self.labels is not None:
            answers.references = self._references(ids)
            answers.texts = _unique(answers.references)
            answers.similarity = Cosines(images, captioner.embed_texts(answers.texts))
        if self.classes is not None:
            answers.class_probabilities = captioner.class_probabilities(images, self.prompts)
            answers.true_classes = self._class_numbers(ids)
        return answers

    def _references(self, ids: list[str]) -> list[list[str]]:
        return [list(self.labels[i].texts) for i in ids]

    def _class_numbers(self, ids: list[str]) -> np.ndarray:
        """(slides,) index of each slide's class among the prompts, -1 where it is not known."""
        numbers = {name: number for number, name in enumerate(self.prompts)}
        classes = [self.classes.get(i) for i in ids]
        if set(classes) == {None}:
            logger.warning("none of the %d slides has a class in --classes_file: compare the ids", len(ids))
        return np.array([numbers.get(name, -1) for name in classes])


def _load_reg_models(options: InferenceOptions) -> RegModels:
    """Those of the flags; says which part of the score cannot be computed. Raises UserError."""
    models = load_reg_models(options.reg_keywords, options.reg_embedding)
    given = {"--reg_keywords": models.keywords, "--reg_embedding": models.embedding}
    missing = [flag for flag, model in given.items() if model is None]
    if missing:
        logger.warning("REG2025: without %s there are only the other parts of the score, and no ranking score",
                       " and ".join(missing))
    return models


def load_usable_labels(path: str, named: ColumnNames | None = None, encoding: str | None = None) -> dict[str, Label]:
    """The usable labels of a file; warns about the others. Raises UserError if there are none.

    Arguments as in `load_labels`.
    """
    labels, problems = load_labels(path, named, encoding)
    if not problems:
        return labels
    first, problem = next(iter(problems.items()))
    if not labels:
        raise UserError(path, f"{first!r}: {problem}", 'write {"id": "text"}')
    logger.warning("%d labels of %s cannot be used and are left out, such as %r: %s", len(problems), path, first,
                   problem)
    return labels


def _load_classes(path: str, prompts: dict[str, list[str]], prompts_file: str | None) -> dict[str, str]:
    """{id: class}. Raises UserError for a class without a prompt."""
    classes = {slide_id: label.text for slide_id, label in load_usable_labels(path).items()}
    unknown = sorted(set(classes.values()) - set(prompts))
    if unknown:
        raise UserError(path, f"class {unknown[0]!r} has no prompt", f"add it to {prompts_file}")
    return classes


def load_prompts(path: str) -> dict[str, list[str]]:
    """{class: its prompts} of a YAML or JSON file. Raises UserError."""
    prompts = load_plain_yaml(path, _PROMPTS_FORMAT)
    is_usable = isinstance(prompts, dict) and len(prompts) >= 2
    if not is_usable or not all(_is_list_of_texts(texts) for texts in prompts.values()):
        raise UserError(path, "holds no prompts", _PROMPTS_FORMAT)
    return prompts


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(t, str) and t.strip() for t in value)


def _unique(references: list[list[str]]) -> list[str]:
    """All reference texts, each once, in the order of their first slide."""
    texts: dict[str, None] = {}
    for references_of_slide in references:
        texts |= dict.fromkeys(references_of_slide)
    return list(texts)
