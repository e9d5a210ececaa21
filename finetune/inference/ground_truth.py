"""What is known about slides to score against: reference texts, classes, prompts, findings."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..common.errors import UserError
from ..common.log import logger
from ..config.yaml_file import load_plain_yaml
from ..data.labels import Label, load_labels
from ..evaluation.findings import FindingDictionary
from ..evaluation.scoring import Answers
from .captioner import Captioner


@dataclass
class GroundTruth:
    """What is known of the slides, to score against: reference texts and classes by id, prompts, findings."""

    labels: dict[str, Label] | None
    prompts: dict[str, list[str]] | None
    classes: dict[str, str] | None
    findings: FindingDictionary | None

    @classmethod
    def load(cls, args: argparse.Namespace) -> GroundTruth:
        """Raises UserError for files that cannot be used, and for flags without those they need."""
        for flag, needed in (("findings", "labels_file"), ("classes_file", "prompts")):
            if getattr(args, flag) and not getattr(args, needed):
                raise UserError(f"--{flag}", f"needs --{needed}", f"add --{needed} FILE")
        prompts = load_prompts(args.prompts) if args.prompts else None
        labels, classes = (_usable_labels(path) if path else None for path in (args.labels_file, args.classes_file))
        classes = {i: label.text for i, label in classes.items()} if classes is not None else None
        if classes and (unknown := sorted(set(classes.values()) - set(prompts or ()))):
            raise UserError(args.classes_file, f"class {unknown[0]!r} has no prompt", f"add it to {args.prompts}")
        return cls(labels, prompts, classes,
                   FindingDictionary.load(args.findings) if args.findings else None)

    def answers(self, captioner: Captioner, records: list[dict[str, Any]],
                embeddings: dict[str, np.ndarray]) -> Answers | None:
        """The records that can be scored; None if there are none."""
        known = [r for r in records if r["caption"] is not None
                 and r["id"] in (self.classes or {} if self.labels is None else self.labels)]
        if not known:
            return None
        answers = Answers([r["caption"] for r in known], findings=self.findings)
        images = np.stack([embeddings[r["id"]] for r in known])
        if self.labels is not None:
            answers.references = [list(self.labels[r["id"]].texts) for r in known]
            answers.texts = list(dict.fromkeys(text for several in answers.references for text in several))
            answers.similarity = images @ captioner.embed_texts(answers.texts).T
        if self.classes is not None:
            names = list(self.prompts)
            answers.class_probabilities = captioner.class_probabilities(images, self.prompts)
            true = [self.classes.get(r["id"]) for r in known]
            answers.true_classes = np.array([-1 if c is None else names.index(c) for c in true])
            if set(true) == {None}:
                logger.warning("none of the %d slides has a class in --classes_file: compare the ids", len(true))
        return answers


def _usable_labels(path: str) -> dict[str, Label]:
    """The labels that can be used; warns of the others. Raises UserError if none can."""
    labels, problems = load_labels(path)
    if problems:
        first = next(iter(problems))
        if not labels:
            raise UserError(path, f"{first!r}: {problems[first]}", 'write {"id": "text"}')
        logger.warning("%d labels of %s cannot be used and are left out, such as %r: %s", len(problems), path, first,
                       problems[first])
    return labels


def load_prompts(path: str) -> dict[str, list[str]]:
    """{class: its prompts} of a YAML or JSON file. Raises UserError."""
    prompts = load_plain_yaml(path)
    if not isinstance(prompts, dict) or len(prompts) < 2 or not all(
            isinstance(texts, list) and texts and all(isinstance(t, str) and t.strip() for t in texts)
            for texts in prompts.values()):
        raise UserError(path, "holds no prompts", "write class: [prompt, ...] for two or more classes")
    return prompts
