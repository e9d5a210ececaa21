"""The losses of one optimizer step, over all its micro-batches on all ranks, and their gradients.

The caption loss is a sum over tokens, so micro-batches simply add up. The contrastive loss compares every slide with
every text of the step. It takes two passes (GradCache, Gao et al. 2021, https://arxiv.org/abs/2101.06983; open_clip's
--accum-freq does the same):

1. The latents of all micro-batches are computed without a graph and gathered; their contrastive loss gives the
   gradient of each latent.
2. Each micro-batch is computed again with a graph. The inner product of its latents and their gradients, the surrogate
   loss, carries the gradient on to the parameters.

The result is that of one big batch on one device, at the memory of one micro-batch. A single micro-batch keeps its
graph and is computed once.

Shapes: B slides of a micro-batch, M slides of a step on all ranks, D dim_latents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from coca_pytorch import CoCaOutputs

from ..common.device import Precision, is_out_of_memory
from ..common.distributed import World
from ..common.errors import UserError
from ..common.log import logger
from ..data.batch import Batch
from ..models.captioner import SlideCaptioner, encoded
from .custom_loss import LossFunction, LossInputs, parts_of
from .step_records import CachedForward, ContrastiveResult, MicroBatchResult, StepLosses, StepSizes

_CHUNK = 1 << 24  # similarities computed at a time: 64 MB, and as much again for each step from them to the loss
Observe = Callable[[Batch, CoCaOutputs], None]


@dataclass
class Objective:
    """The training loss of `model` over the micro-batches of all ranks.

    Attributes:
        custom_loss: The user's loss function, added to those of the model.
        chunk: Number of similarities computed at a time.
        max_slides: Maximum slides in a micro-batch, set once more did not fit into memory.
        halve_on_oom: Whether a step that does not fit into memory is repeated with halved micro-batches. Otherwise
            torch's error is raised.
    """

    model: SlideCaptioner
    precision: Precision
    world: World
    custom_loss: LossFunction | None = None
    chunk: int = _CHUNK
    max_slides: int | None = None
    halve_on_oom: bool = True
    _halvings: int = 0

    def backward(self, micro_batches: Sequence[Batch], scaler: torch.amp.GradScaler) -> StepLosses:
        """Add the gradients of a step's loss, summed over the ranks, to the parameters.

        A rank that runs out of memory halves its micro-batches between two collectives, so the other ranks only wait.

        Args:
            micro_batches: Those of this rank; may be empty as long as another rank has some.
            scaler: Scales the loss.
        """
        decoder = self.model.decoder
        sizes = StepSizes.of(micro_batches, self.world)
        decoder.limit_temperature()  # also on a rank without samples: the ranks must stay in sync
        cached: list[CachedForward] = []
        contrastive = None
        if decoder.contrastive_loss_weight:
            cached = self._halving_on_oom(micro_batches, self._first_pass)
            contrastive = self._contrastive([forward.outputs for forward in cached], sizes)
            micro_batches = [forward.batch for forward in cached]

        def second_pass(batches: Sequence[Batch]) -> list[MicroBatchResult]:
            cached_by_batch = {id(forward.batch): forward for forward in cached}
            cached.clear()  # a kept graph must be freed before the step is repeated in halves
            results: list[MicroBatchResult] = []
            start = 0
            for batch in batches:
                outputs = self._second_forward(batch, cached_by_batch.get(id(batch)))
                loss = decoder.caption_loss_weight * outputs.caption_loss / sizes.num_tokens
                if contrastive:
                    loss = loss + decoder.contrastive_loss_weight * contrastive.surrogate_loss(outputs, start)
                custom = self._custom_losses(batch, outputs, sizes)
                scaler.scale(sum(custom.values(), loss)).backward()
                results.append(MicroBatchResult.of(batch, outputs, custom))
                start += len(batch.ids)
            return results

        results = self._halving_on_oom(micro_batches, second_pass)
        if contrastive:
            logit_loss = contrastive.logit_surrogate_loss(decoder.logit_parameters)
            scaler.scale(decoder.contrastive_loss_weight * logit_loss).backward()
        self.world.sum_gradients(list(self.model.trained_parameters()))
        return self._step_losses(results, sizes, contrastive)

    @torch.no_grad()
    def losses(self, micro_batches: Sequence[Batch], observe: Observe | None = None) -> StepLosses:
        """The same losses without gradients.

        Args:
            micro_batches: Those of this rank; may be empty as long as another rank has some.
            observe: Called with each micro-batch, its slides encoded, and its outputs.
        """
        sizes = StepSizes.of(micro_batches, self.world)

        def forward(batches: Sequence[Batch]) -> list[tuple[Batch, MicroBatchResult]]:
            pairs = []
            for tiles in batches:
                batch = self._encode(tiles)
                outputs = self._forward(batch)
                custom = self._custom_losses(batch, outputs, sizes)
                pairs.append((batch, MicroBatchResult.of(batch, outputs, custom)))
            return pairs

        results: list[MicroBatchResult] = []
        for micro_batch in micro_batches:
            for batch, result in self._halving_on_oom([micro_batch], forward):
                results.append(result)
                if observe:
                    with self.precision.autocast():
                        observe(batch, result.outputs)
        contrastive = None
        if self.model.decoder.contrastive_loss_weight:
            contrastive = self._contrastive([result.outputs for result in results], sizes)
        return self._step_losses(results, sizes, contrastive)

    def _halving_on_oom(self, micro_batches: Sequence[Batch], work: Callable[[Sequence[Batch]], list]) -> list:
        """Call `work` on the micro-batches, halving them until they fit into memory."""
        while True:
            micro_batches = _split(micro_batches, self.max_slides)
            state = _random_state(self.precision.device)
            try:
                return work(micro_batches)
            except RuntimeError as error:
                largest = max(len(batch.ids) for batch in micro_batches)
                if not is_out_of_memory(error) or largest == 1 or not self.halve_on_oom:
                    raise
            # outside of the except block, whose traceback holds the tensors that must be freed
            self.max_slides = math.ceil(largest / 2)
            self._halvings += 1
            self._undo(state)

    def _undo(self, random_state: tuple[torch.Tensor, ...]) -> None:
        """Discard the gradients of an incomplete step, restore the random state and free memory."""
        device = self.precision.device
        _set_random_state(device, random_state)
        for parameter in self.model.trained_parameters():
            parameter.grad = None
        if device.type == "cuda":
            torch.cuda.empty_cache()

    def _first_pass(self, micro_batches: Sequence[Batch]) -> list[CachedForward]:
        keep_graph = len(micro_batches) == 1
        return [self._first_forward(batch, keep_graph) for batch in micro_batches]

    def _first_forward(self, batch: Batch, keep_graph: bool) -> CachedForward:
        random_state = None if keep_graph else _random_state(self.precision.device)
        if self.model.prism.frozen:
            batch = self._encode(batch)  # once for both passes; smaller than its tiles
        with torch.set_grad_enabled(keep_graph):
            return CachedForward(batch, self._forward(batch, caption=keep_graph), random_state)

    def _second_forward(self, batch: Batch, cached: CachedForward | None) -> CoCaOutputs:
        if cached is None:
            return self._forward(batch)
        if cached.random_state is None:
            return cached.outputs
        _set_random_state(self.precision.device, cached.random_state)  # the dropout masks of the first pass
        return self._forward(batch)

    def _forward(self, batch: Batch, caption: bool = True) -> CoCaOutputs:
        logits = caption and self.custom_loss is not None
        with self.precision.autocast():
            return self.model(batch.to(self.precision.device), caption, logits)

    @torch.no_grad()
    def _encode(self, batch: Batch) -> Batch:
        with self.precision.autocast():
            return encoded(self.model, batch.to(self.precision.device))

    def _contrastive(self, outputs: Sequence[CoCaOutputs], sizes: StepSizes) -> ContrastiveResult:
        """The contrastive loss of all pairs: this rank's rows of it and, with gradients on, its whole gradient."""
        decoder, device = self.model.decoder, self.precision.device
        no_latents = torch.zeros(0, decoder.dim_latents, device=device)  # of a rank without samples
        no_groups = torch.zeros(0, dtype=torch.int64, device=device)

        def gather(rows: list[torch.Tensor]) -> torch.Tensor:
            return self.world.gather_rows(torch.cat(rows), sizes.slides_per_rank)

        text = gather([no_latents, *(output.text_latents for output in outputs)])  # (M, D)
        image = gather([no_latents, *(output.image_latents for output in outputs)])  # (M, D)
        groups = gather([no_groups, *(output.text_groups for output in outputs)])  # (M,)
        logit_parameters = [parameter.detach() for parameter in decoder.logit_parameters]
        leaves = [text, image, *logit_parameters]
        if torch.is_grad_enabled():
            for leaf in leaves:
                leaf.requires_grad_()
                leaf.grad = torch.zeros_like(leaf)
        rows = sizes.rows_of(self.world.rank)
        loss = self._contrastive_in_chunks(leaves, groups, rows)
        num_equal = _count_equal_pairs(groups)
        if not torch.is_grad_enabled():
            return ContrastiveResult(loss, num_equal)
        self.world.sum_(text.grad, image.grad)  # each rank's rows contribute to the gradient of every latent
        logit_gradients = [leaf.grad for leaf in logit_parameters]
        return ContrastiveResult(loss, num_equal, text.grad[rows], image.grad[rows], logit_gradients)

    def _contrastive_in_chunks(self, leaves: list[torch.Tensor], groups: torch.Tensor, rows: slice) -> torch.Tensor:
        """The share of `rows` in the contrastive loss. Adds its gradient to that of `leaves` if gradients are on."""
        loss = torch.zeros((), device=groups.device)
        rows_per_chunk = max(1, self.chunk // len(groups))
        for start in range(rows.start, rows.stop, rows_per_chunk):
            stop = min(start + rows_per_chunk, rows.stop)
            part = self.model.decoder.pair_loss(*leaves, groups, slice(start, stop))
            if torch.is_grad_enabled():
                part.backward()
            loss += part.detach()
        return loss

    def _custom_losses(self, batch: Batch, outputs: CoCaOutputs, sizes: StepSizes) -> dict[str, torch.Tensor]:
        """The parts of the custom loss of one micro-batch, times the micro-batch's share of the step's slides."""
        if self.custom_loss is None:
            return {}
        batch = batch.to(self.precision.device)
        inputs = LossInputs(outputs.logits.float(), batch.labels, batch.text_mask, outputs.text_latents,
                            outputs.image_latents, self.model.decoder.logit_scale)
        share = len(batch.ids) / sizes.num_slides
        try:
            return {name: part * share for name, part in parts_of(self.custom_loss, inputs).items()}
        except Exception as error:  # whatever the user's function raises
            if isinstance(error, UserError) or is_out_of_memory(error):
                raise
            message = " ".join(str(error).split())[:200]
            raise UserError("training.loss", f"failed ({type(error).__name__}: {message})",
                            "fix the function; --debug shows where") from error

    def _step_losses(self, results: Sequence[MicroBatchResult], sizes: StepSizes,
                     contrastive: ContrastiveResult | None) -> StepLosses:
        zero = torch.zeros((), device=self.precision.device)
        caption_sum = sum((result.outputs.caption_loss for result in results), zero)
        contrastive_sum = contrastive.loss if contrastive else zero
        num_equal = contrastive.num_equal if contrastive else zero
        of_custom = [part for result in results for part in result.custom.values()]
        # the host waits for the device here: in float64, which holds all of them exactly
        scalars = [value.double() for value in (caption_sum, contrastive_sum, num_equal, *of_custom)]
        values = torch.stack(scalars).tolist()
        caption_sum, contrastive_sum, halvings = self.world.sum([*values[:2], self._halvings])
        self._report_halvings(int(halvings))
        custom = self._sum_custom_losses(results, values[3:])
        bad_ids: list[str] = []
        if not math.isfinite(sum(custom.values(), caption_sum + contrastive_sum)):
            bad_ids = _ids_that_overflow(results)
        negatives = sizes.num_slides - values[2] / sizes.num_slides if contrastive else 0.0
        return StepLosses(float(sizes.num_tokens), float(sizes.num_slides), caption_sum / sizes.num_tokens,
                          contrastive_sum, negatives, bad_ids, custom)

    def _report_halvings(self, halvings: int) -> None:
        """Warn of the halvings of this step on all ranks."""
        if halvings:
            logger.warning("out of memory: micro-batches are halved (%d times over all processes, %s slides here), the "
                           "effective batch is unchanged", halvings, self.max_slides or "all")
            self._halvings = 0

    def _sum_custom_losses(self, results: Sequence[MicroBatchResult], values: Sequence[float]) -> dict[str, float]:
        """The parts of the custom loss, over all micro-batches of all ranks. values: Those of this rank, in order."""
        if self.custom_loss is None:
            return {}
        remaining = iter(values)
        local = [dict(zip(result.custom, remaining, strict=False)) for result in results]
        total: dict[str, float] = {}
        for of_rank in self.world.gather(local):
            for parts in of_rank:
                for name, value in parts.items():
                    total[name] = total.get(name, 0.0) + value
        return total


def _count_equal_pairs(groups: torch.Tensor) -> torch.Tensor:
    """The number of pairs (i, j) with equal groups (M,), those with i = j among them: a scalar, left on the device.

    `unique` would make the host wait for the device, as the size of its result depends on the values.
    """
    ordered = groups.sort().values
    return (torch.searchsorted(ordered, groups, right=True) - torch.searchsorted(ordered, groups)).sum()


def _ids_that_overflow(results: Sequence[MicroBatchResult]) -> list[str]:
    ids: list[str] = []
    for result in results:
        if not result.is_finite():
            ids += result.ids
    return ids


def _split(micro_batches: Sequence[Batch], max_slides: int | None) -> list[Batch]:
    parts: list[Batch] = []
    for batch in micro_batches:
        parts += batch.split(max_slides or len(batch.ids))
    return parts


def _random_state(device: torch.device) -> tuple[torch.Tensor, ...]:
    cpu = torch.get_rng_state()
    if device.type != "cuda":
        return (cpu,)
    return cpu, torch.cuda.get_rng_state(device)


def _set_random_state(device: torch.device, state: tuple[torch.Tensor, ...]) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)
