"""One pass over the validation slides: mean losses, and observers that see each micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from coca_pytorch import CoCaOutputs
from prism import GenerationOptions

from ..common.distributed import ALONE, World
from ..common.log import logger
from ..common.progress import progress
from ..data.batch import Batch
from ..data.loader import BatchLoader
from ..data.tokenizer import Tokenizer
from ..models.captioner import SlideCaptioner
from ..models.generation import generate
from .loss_means import add_to_sums, means_of, step_report
from .objective import Objective
from .out_of_memory import oom_as_user_error
from .signals import StopSignals


@dataclass
class ObservedBatch:
    """A micro-batch of validation slides, already encoded, with the model's outputs.

    Attributes:
        outputs: Of the model, without logits.
        max_length: Most tokens of a caption, begin and end token included.
    """

    model: SlideCaptioner
    batch: Batch
    outputs: CoCaOutputs
    tokenizer: Tokenizer
    max_length: int
    _captions: dict[int, list[int]] = field(default_factory=dict)

    def image_tokens(self, rows: Sequence[int]) -> torch.Tensor:
        """Image tokens (rows, n, D) of some of the slides, in the decoder's dtype."""
        return self.batch.image_tokens[list(rows)].to(self.model.decoder.dtype)

    def captions(self, rows: Sequence[int]) -> list[list[int]]:
        """Greedy captions of some of the slides, as ids without begin and end token; each slide is decoded once."""
        missing = [row for row in rows if row not in self._captions]
        if missing:
            tokenizer = self.tokenizer
            decoded = generate(self.model.decoder, self.image_tokens(missing),
                               GenerationOptions(max_length=self.max_length), bos_id=tokenizer.bos_id,
                               eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id)
            self._captions |= zip(missing, decoded, strict=True)
        return [self._captions[row] for row in rows]


class Observer(Protocol):
    """Sees every micro-batch of a validation pass. Must not use a global random generator."""

    def begin(self, epoch: int) -> None:
        """Reset for a new pass. epoch: number of finished epochs."""

    def observe(self, observed: ObservedBatch) -> None:
        """Called for each micro-batch of this rank, in eval mode, under autocast, without gradients."""

    def scores(self, world: World) -> dict[str, float]:
        """Scores over the slides of all ranks (collective), by their names in metrics.jsonl."""

    def warnings(self) -> list[str]:
        """Warnings about this pass; called after `scores`."""


@dataclass
class Validator:
    """Validates a model: `validator(epoch)` returns the scores of all validation slides, equal on all ranks.

    The losses are not an observer: the contrastive loss belongs to a step over all ranks, not to a micro-batch.

    Attributes:
        max_length: Most tokens of a caption; None for no longer than the longest text of its micro-batch.
        signals: That end a pass: at once in a run of one process, otherwise after a step.
    """

    objective: Objective
    batches: BatchLoader
    tokenizer: Tokenizer
    observers: Sequence[Observer] = ()
    max_length: int | None = None
    signals: StopSignals = field(default_factory=lambda: StopSignals(ALONE))

    def __call__(self, epoch: int) -> dict[str, float]:
        """Run one pass. epoch: number of finished epochs. Leaves the model in train mode.

        Raises StopRequested on a stop signal.
        """
        model = self.objective.model
        model.eval()
        try:
            with self.signals.interruptible(together=True):
                return self._scores(epoch)
        finally:
            model.train()

    @torch.no_grad()
    def _scores(self, epoch: int) -> dict[str, float]:
        for observer in self.observers:
            observer.begin(epoch)
        scores = self._losses(epoch)
        for observer in self.observers:
            scores |= observer.scores(self.objective.world)
        for observer in self.observers:
            for message in observer.warnings():
                logger.warning("%s", message)
        return scores

    def _losses(self, epoch: int) -> dict[str, float]:
        """Mean losses: per token for the caption loss, per slide for the others."""
        model = self.objective.model
        sums: dict[str, float] = {}
        steps_of_one_slide = 0
        steps = progress(self.batches.epoch(0), f"validation of epoch {epoch}", self.batches.count(0), "step")
        for micro_batches in steps:
            with oom_as_user_error(f"the validation of epoch {epoch}", micro_batches):
                report = step_report(self.objective.losses(micro_batches, self._observe), model)
            if report["num_slides"] == 1:  # without negatives there is no contrastive loss to count
                steps_of_one_slide += 1
                report["contrastive_loss"] = 0.0
            add_to_sums(sums, report)
            self.signals.raise_if_any()
        sums["contrastive_loss"] *= sums["num_slides"] / max(sums["num_slides"] - steps_of_one_slide, 1.0)
        return {f"val_{name}": mean for name, mean in means_of(sums, model).items() if name != "negatives"}

    def _observe(self, batch: Batch, outputs: CoCaOutputs) -> None:
        max_length = self.max_length or batch.labels.shape[1] + 1
        observed = ObservedBatch(self.objective.model, batch, outputs, self.tokenizer, max_length)
        for observer in self.observers:
            observer.observe(observed)
