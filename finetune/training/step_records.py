"""Intermediate results of a training step.

Shapes: D dim_latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from coca_pytorch import CoCaOutputs

from ..common.distributed import World
from ..data.batch import Batch


@dataclass
class StepLosses:
    """Losses of a step, equal on all ranks.

    Attributes:
        num_tokens: Tokens learned in the step.
        num_slides: Slides of the step.
        caption_loss: Mean over the tokens.
        contrastive_loss: Mean over the slides.
        negatives: Mean number of negatives per slide: texts of the step that differ from its own.
        bad_ids: Slides of this rank's micro-batches with a loss that is not finite.
        custom: Named parts of `training.loss`, means over the slides.
    """

    num_tokens: float
    num_slides: float
    caption_loss: float
    contrastive_loss: float
    negatives: float
    bad_ids: list[str]
    custom: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class StepSizes:
    """Slides of a step on each rank, and its tokens on all ranks together (at least 1, as losses are divided by it)."""

    slides_per_rank: list[int]
    num_tokens: int

    @classmethod
    def of(cls, micro_batches: Sequence[Batch], world: World) -> StepSizes:
        """Count the micro-batches of this rank and add up over all of them (collective)."""
        sizes = [0.0] * (world.size + 1)
        sizes[world.rank] = float(sum(len(batch.ids) for batch in micro_batches))
        sizes[-1] = float(sum(batch.num_tokens for batch in micro_batches))
        *slides_per_rank, num_tokens = map(int, world.sum(sizes))
        return cls(slides_per_rank, max(num_tokens, 1))

    @property
    def num_slides(self) -> int:
        """Slides of the step on all ranks."""
        return sum(self.slides_per_rank)

    def rows_of(self, rank: int) -> slice:
        """Rows of a rank's slides among those of all ranks."""
        start = sum(self.slides_per_rank[:rank])
        return slice(start, start + self.slides_per_rank[rank])


@dataclass(frozen=True)
class CachedForward:
    """A micro-batch after the first pass.

    Attributes:
        random_state: Of the random generators before the pass; None if its graph was kept and no second pass is needed.
    """

    batch: Batch
    outputs: CoCaOutputs
    random_state: tuple[torch.Tensor, ...] | None


@dataclass(frozen=True)
class ContrastiveResult:
    """This rank's share of the contrastive loss, and the gradient of the whole loss with respect to its latents.

    Attributes:
        num_equal: Pairs of slides of the step with equal texts, each slide with itself among them: a scalar tensor.
        text_gradient, image_gradient: (slides of this rank, D); None without gradients.
        logit_gradients: Of the logit scale and bias, this rank's share.
    """

    loss: torch.Tensor
    num_equal: torch.Tensor
    text_gradient: torch.Tensor | None = None
    image_gradient: torch.Tensor | None = None
    logit_gradients: Sequence[torch.Tensor] = ()

    def surrogate_loss(self, outputs: CoCaOutputs, start: int) -> torch.Tensor:
        """A scalar with the gradient of the contrastive loss through the latents of one micro-batch.

        Args:
            start: Row of the micro-batch's first slide among those of this rank.
        """
        rows = slice(start, start + len(outputs.text_groups))
        text = (outputs.text_latents * self.text_gradient[rows]).sum()
        image = (outputs.image_latents * self.image_gradient[rows]).sum()
        return text + image

    def logit_surrogate_loss(self, logit_parameters: Sequence[torch.Tensor]) -> torch.Tensor:
        """A scalar with the gradient of the contrastive loss through the logit scale and bias."""
        return sum(p * gradient for p, gradient in zip(logit_parameters, self.logit_gradients, strict=True))


@dataclass(frozen=True)
class MicroBatchResult:
    """The result of a micro-batch: slide ids; outputs and parts of the custom loss, without their graph."""

    ids: list[str]
    outputs: CoCaOutputs
    custom: dict[str, torch.Tensor]

    @classmethod
    def of(cls, batch: Batch, outputs: CoCaOutputs, custom: dict[str, torch.Tensor]) -> MicroBatchResult:
        """Detach the outputs and the custom losses of a batch. They stay on the device: nothing waits for it here."""
        return cls(batch.ids, outputs.detach(), {name: part.detach() for name, part in custom.items()})

    def is_finite(self) -> bool:
        """Whether all losses and latents are finite."""
        tensors = (self.outputs.caption_loss, self.outputs.text_latents, self.outputs.image_latents)
        return all(tensor is None or bool(tensor.isfinite().all()) for tensor in (*tensors, *self.custom.values()))
