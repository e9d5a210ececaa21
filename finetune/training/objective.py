"""What a step minimises: the losses of all its samples, however they are divided into micro-batches and processes.

A caption loss is a sum over words and adds up by itself. The contrastive loss compares each pair with all others: it is
taken in two passes (GradCache, https://arxiv.org/abs/2101.06983; open_clip's --accum-freq does the same): the latents
of all micro-batches without a graph; their loss and its gradient with respect to them; each micro-batch once more with
a graph, that gradient standing in for the loss. The result is that of one big batch on one device, and the memory
that of one micro-batch. A single micro-batch keeps its graph and is computed once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from coca_pytorch import CoCaOutputs

from ..common.device import Precision
from ..common.distributed import World
from ..common.errors import UserError
from ..common.log import logger
from ..data.batch import Batch
from ..models.captioner import SlideCaptioner, encoded
from .custom_loss import LossFunction, LossInputs, parts_of

_CHUNK = 1 << 24  # similarities computed at a time: 64 MB, and as much again for each step from them to the loss
See = Callable[[Batch, CoCaOutputs], None]


@dataclass
class StepLosses:
    """Means over all samples of a step, equal on all ranks. negatives: true ones of a pair, in each direction.

    bad_ids: slides of this rank's micro-batches whose numbers are not finite.
    """

    words: float
    slides: float
    caption_loss: float
    contrastive_loss: float
    negatives: float
    bad_ids: list[str]
    user: dict[str, float] = field(default_factory=dict)  # named parts of training.loss


@dataclass
class Objective:
    """The losses of `model` over the micro-batches of all ranks."""

    model: SlideCaptioner
    precision: Precision
    world: World
    user_loss: LossFunction | None = None
    chunk: int = _CHUNK
    most: int | None = None  # slides in a micro-batch, where more did not fit into memory
    retry: bool = True  # False: an error of memory goes to the caller
    _halvings: int = 0

    def backward(self, micro_batches: Sequence[Batch], scaler: torch.amp.GradScaler) -> StepLosses:
        """Add the gradients of a step's loss, scaled by `scaler` and summed over the ranks, to the parameters.

        micro_batches: those of this rank, of which there may be none as long as another rank has some. What does not
        fit into memory is halved and done again, with the same result. Between the collectives each rank does so for
        itself: the others wait, and need not know.
        """
        coca, step = self.model.decoder, StepSizes.of(micro_batches, self.world)
        coca.limit_temperature()  # on a rank without samples, too
        firsts: list[CachedForward] = []
        joint = None
        if coca.contrastive_loss_weight:
            firsts = self._in_memory(micro_batches, self._first_pass)
            joint = self._contrastive([first.outputs for first in firsts], step)
            micro_batches = [first.batch for first in firsts]

        def second_pass(batches: Sequence[Batch]) -> list[MicroBatchResult]:
            known, seen = {id(first.batch): first for first in firsts}, []
            firsts.clear()  # a graph that was kept has to go before the work is done again in halves
            for batch in batches:
                begin = sum(len(done.ids) for done in seen)
                outputs = self._second(known[id(batch)]) if id(batch) in known else self._forward(batch)
                loss = coca.caption_loss_weight * outputs.caption_loss / step.words
                if joint:
                    loss = loss + coca.contrastive_loss_weight * joint.surrogate_loss(outputs, begin)
                user = self._user(batch, outputs, step)
                scaler.scale(sum(user.values(), loss)).backward()
                seen.append(MicroBatchResult.of(batch, outputs, user))
            return seen

        seen = self._in_memory(micro_batches, second_pass)
        if joint:
            logit = sum(p * g for p, g in zip(coca.logit_parameters, joint.logit_gradients, strict=True))
            scaler.scale(coca.contrastive_loss_weight * logit).backward()
        self.world.sum_gradients(list(self.model.trained_parameters()))
        return self._means(seen, step, joint)

    @torch.no_grad()
    def losses(self, micro_batches: Sequence[Batch], see: See | None = None) -> StepLosses:
        """The same losses without gradients. see: is shown each micro-batch, its slides encoded, and its outputs."""
        step, seen = StepSizes.of(micro_batches, self.world), []

        def look(batches: Sequence[Batch]) -> list[tuple[Batch, MicroBatchResult]]:
            looked_at = []
            for batch in map(self._encoded, batches):
                outputs = self._forward(batch)
                looked_at.append((batch, MicroBatchResult.of(batch, outputs, self._user(batch, outputs, step))))
            return looked_at

        for micro_batch in micro_batches:
            for batch, done in self._in_memory([micro_batch], look):
                seen.append(done)
                if see:
                    with self.precision.autocast():
                        see(batch, done.outputs)
        outputs = [done.outputs for done in seen]
        joint = self._contrastive(outputs, step) if self.model.decoder.contrastive_loss_weight else None
        return self._means(seen, step, joint)

    def _in_memory(self, micro_batches: Sequence[Batch], work: Callable[[Sequence[Batch]], list]) -> list:
        """What `work` returns for the micro-batches, or for halves of them, as small as the memory wants."""
        while True:
            micro_batches = _cut(micro_batches, self.most)
            state = _random_state(self.precision.device)
            try:
                return work(micro_batches)
            except RuntimeError as error:
                largest = max(len(batch.ids) for batch in micro_batches)
                if not is_out_of_memory(error) or largest == 1 or not self.retry:
                    raise
            # outside of the except, whose traceback holds on to what has to be freed
            self.most, self._halvings = -(-largest // 2), self._halvings + 1
            _set_random_state(self.precision.device, state)
            for parameter in self.model.trained_parameters():
                parameter.grad = None
            if self.precision.device.type == "cuda":
                torch.cuda.empty_cache()

    def _first_pass(self, micro_batches: Sequence[Batch]) -> list[CachedForward]:
        return [self._first(batch, keep_graph=len(micro_batches) == 1) for batch in micro_batches]

    def _first(self, batch: Batch, keep_graph: bool) -> CachedForward:
        state = None if keep_graph else _random_state(self.precision.device)
        if self.model.prism.frozen:
            batch = self._encoded(batch)  # for both passes: smaller than its tiles
        with torch.set_grad_enabled(keep_graph):
            return CachedForward(batch, self._forward(batch, caption=keep_graph), state)

    def _second(self, first: CachedForward) -> CoCaOutputs:
        if first.state is None:
            return first.outputs
        _set_random_state(self.precision.device, first.state)  # dropout, if there is any, falls as in the first pass
        return self._forward(first.batch)

    def _forward(self, batch: Batch, caption: bool = True) -> CoCaOutputs:
        with self.precision.autocast():
            return self.model(batch.to(self.precision.device), caption, caption and self.user_loss is not None)

    @torch.no_grad()
    def _encoded(self, batch: Batch) -> Batch:
        with self.precision.autocast():
            return encoded(self.model, batch.to(self.precision.device))

    def _contrastive(self, outputs: Sequence[CoCaOutputs], step: StepSizes) -> ContrastiveResult:
        """The contrastive loss of all pairs, this rank's rows of it in chunks, and its gradient if gradients are on."""
        coca, world, device = self.model.decoder, self.world, self.precision.device
        none = torch.zeros(0, coca.dim_latents, device=device), torch.zeros(0, dtype=torch.int64, device=device)
        text, image, groups = (
            world.gather_rows(torch.cat([empty, *values]), step.counts)
            for empty, values in ((none[0], [o.text_latents for o in outputs]),
                                  (none[0], [o.image_latents for o in outputs]),
                                  (none[1], [o.text_groups for o in outputs])))
        leaves = [text, image, *(parameter.detach() for parameter in coca.logit_parameters)]
        if torch.is_grad_enabled():
            for leaf in leaves:
                leaf.requires_grad_().grad = torch.zeros_like(leaf)
        loss, begin = torch.zeros((), device=device), sum(step.counts[:world.rank])
        end, rows = begin + step.counts[world.rank], max(1, self.chunk // len(text))
        for start in range(begin, end, rows):
            part = coca.pair_loss(*leaves, groups, slice(start, min(start + rows, end)))
            if torch.is_grad_enabled():
                part.backward()
            loss += part.detach()
        _, repeated = groups.unique(return_counts=True)
        negatives = len(text) - repeated.square().sum().item() / len(text)
        if not torch.is_grad_enabled():
            return ContrastiveResult(loss, negatives)
        world.sum_(text.grad, image.grad)  # each rank has its rows' part of every pair's gradient
        return ContrastiveResult(loss, negatives, text.grad[begin:end], image.grad[begin:end],
                      [leaf.grad for leaf in leaves[2:]])

    def _user(self, batch: Batch, outputs: CoCaOutputs, step: StepSizes) -> dict[str, torch.Tensor]:
        """The parts of the user's loss, which sees one micro-batch, by its share of the step's slides."""
        if self.user_loss is None:
            return {}
        batch = batch.to(self.precision.device)
        inputs = LossInputs(outputs.logits.float(), batch.labels, batch.text_mask, outputs.text_latents,
                            outputs.image_latents, self.model.decoder.logit_scale)
        share = len(batch.ids) / sum(step.counts)
        try:
            return {name: part * share for name, part in parts_of(self.user_loss, inputs).items()}
        except Exception as error:  # whatever the user's function raises
            if isinstance(error, UserError) or is_out_of_memory(error):
                raise
            raise UserError("training.loss", f"failed ({type(error).__name__}: {' '.join(str(error).split())[:200]})",
                            "mend the function; --debug shows where") from error

    def _means(self, seen: Sequence[MicroBatchResult], step: StepSizes, joint: ContrastiveResult | None) -> StepLosses:
        device = self.precision.device
        sums = torch.stack([sum((done.outputs.caption_loss for done in seen), torch.zeros((), device=device)),
                            joint.loss if joint else torch.zeros((), device=device)])
        caption, contrastive, halvings = self.world.sum([*sums.tolist(), self._halvings])
        if halvings:
            logger.warning("out of memory: micro-batches are halved (%d times, on this process to %s slides), the "
                           "effective batch stays", halvings, self.most or "as many")
            self._halvings = 0
        user: dict[str, float] = {}
        if self.user_loss is not None:
            for name, value in (part for mine in self.world.gather([p for d in seen for p in d.user]) for part in mine):
                user[name] = user.get(name, 0.0) + value
        bad: list[str] = []
        if not math.isfinite(sum(user.values(), caption + contrastive)):
            bad = [i for done in seen if not done.is_finite() for i in done.ids]
        return StepLosses(float(step.words), float(sum(step.counts)), caption / step.words, contrastive,
                          joint.negatives if joint else 0.0, bad, user)


@dataclass(frozen=True)
class StepSizes:
    """Numbers of slides of each rank and of the words of all."""

    counts: list[int]
    words: int

    @classmethod
    def of(cls, micro_batches: Sequence[Batch], world: World) -> StepSizes:
        sizes = [0.0] * (world.size + 1)
        sizes[world.rank] = float(sum(len(b.ids) for b in micro_batches))
        sizes[-1] = float(sum(int(b.text_mask.sum()) for b in micro_batches))
        *counts, words = map(int, world.sum(sizes))
        return cls(counts, max(words, 1))


@dataclass(frozen=True)
class CachedForward:
    """A micro-batch after the first pass; state: of the random generators before it, None if its graph was kept."""

    batch: Batch
    outputs: CoCaOutputs
    state: tuple[torch.Tensor, ...] | None


@dataclass(frozen=True)
class ContrastiveResult:
    """This rank's part of the contrastive loss, and the whole loss's gradient with respect to this rank's latents."""

    loss: torch.Tensor
    negatives: float
    text_gradient: torch.Tensor | None = None
    image_gradient: torch.Tensor | None = None
    logit_gradients: Sequence[torch.Tensor] = ()

    def surrogate_loss(self, outputs: CoCaOutputs, start: int) -> torch.Tensor:
        """A scalar whose gradient in the parameters is that of the contrastive loss through the slides of a
        micro-batch, the first of which is number `start` of this rank."""
        rows = slice(start, start + len(outputs.text_groups))
        return (outputs.text_latents * self.text_gradient[rows]).sum() \
            + (outputs.image_latents * self.image_gradient[rows]).sum()


def is_out_of_memory(error: Exception) -> bool:
    """torch's CPU allocator raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _cut(micro_batches: Sequence[Batch], most: int | None) -> list[Batch]:
    return [part for batch in micro_batches for part in batch.split(most or len(batch.ids))]


@dataclass(frozen=True)
class MicroBatchResult:
    """What is left of a micro-batch: its slides, its outputs without their graph, the parts of the user's loss."""

    ids: list[str]
    outputs: CoCaOutputs
    user: list[tuple[str, float]]

    @classmethod
    def of(cls, batch: Batch, outputs: CoCaOutputs, user: dict[str, torch.Tensor]) -> MicroBatchResult:
        return cls(batch.ids, outputs.detach(), [(name, part.item()) for name, part in user.items()])

    def is_finite(self) -> bool:
        parts = (self.outputs.caption_loss, self.outputs.text_latents, self.outputs.image_latents)
        return (all(bool(part.isfinite().all()) for part in parts if part is not None)
                and all(math.isfinite(value) for _, value in self.user))


def _random_state(device: torch.device) -> tuple[torch.Tensor, ...]:
    cpu = torch.get_rng_state()
    return (cpu, torch.cuda.get_rng_state(device)) if device.type == "cuda" else (cpu,)


def _set_random_state(device: torch.device, state: tuple[torch.Tensor, ...]) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)
