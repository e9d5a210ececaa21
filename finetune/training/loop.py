"""The training loop: `fit` is the run, `train_step` one optimizer step of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..common.errors import UserError
from ..common.log import logger
from ..common.score_table import LAST_EPOCH, higher_is_better
from ..data.batch import Batch
from ..data.loader import BatchLoader
from ..models.captioner import SlideCaptioner
from .loss_means import add_to_sums, means_of, step_report
from .objective import Objective
from .out_of_memory import oom_as_user_error
from .run_log import RunLog
from .signals import StopRequested
from .state import TrainState

_MAX_SKIPPED_IN_ROW = 20  # fp16 steps: a loss scale that was halved 20 times will not recover
_MAX_NAMED = 8  # slides in an error message


@dataclass
class Parts:
    """The objects that `fit` works with.

    Attributes:
        learning_rate: Of an optimizer step, counted from 0.
        validate: Scores after an epoch, counted from 1; None without validation slides.
        save: Writes checkpoints of a state, of the best epoch too if the flag is true.
        stop: Whether a stop signal was received, the same on all ranks.
        grad_clip_norm: None disables clipping.
        save_every_steps: 0 saves only at the end of an epoch, before it is validated (if `is_late`) and after.
        is_late: Whether more work is unsaved than should be, the same on all ranks.
        monitor: The score that selects the best epoch; `last` takes the last one.
    """

    objective: Objective
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    batches: BatchLoader
    learning_rate: Callable[[int], float]
    validate: Callable[[int], dict[str, float]] | None
    log: RunLog
    save: Callable[[TrainState, bool], None]
    stop: Callable[[], bool]
    epochs: int
    grad_clip_norm: float | None
    save_every_steps: int = 0
    monitor: str = "val_loss"
    is_late: Callable[[], bool] = lambda: True

    @property
    def model(self) -> SlideCaptioner:
        """The model that the objective trains."""
        return self.objective.model

    def are_due(self, state: TrainState) -> bool:
        """Whether a step is to be followed by checkpoints: the last one of an epoch is, as validating takes time in
        which a run may be killed."""
        if self.save_every_steps and state.step % self.save_every_steps == 0:
            return True
        is_last = state.batches_done == self.batches.count(state.epoch)
        return is_last and self.validate is not None and self.is_late()


def fit(parts: Parts, state: TrainState) -> TrainState:
    """Train until `parts.epochs` or a stop signal. Only this module moves `state`; resumable after every step.

    A run that is resumed after the last step of an epoch begins with the validation of this epoch.

    Raises StopRequested on a signal in a validation.
    """
    parts.model.train()
    while state.epoch < parts.epochs:
        is_saved = True
        with parts.log.epoch_bar(state, parts.batches.count(state.epoch), parts.epochs) as bar:
            for micro_batches in parts.batches.epoch(state.epoch, state.batches_done):
                report = train_step(parts, micro_batches, parts.learning_rate(state.step), state)
                state.batches_done += 1
                add_to_sums(state.sums, report)
                parts.log.step(bar, report)
                stop = parts.stop()
                is_saved = stop or parts.are_due(state)
                if is_saved:
                    parts.save(state, False)
                if stop:
                    return state
        try:
            end_epoch(parts, state)
        except StopRequested:  # in the validation
            if not is_saved:
                parts.save(state, False)
            raise
        if parts.stop():
            break
    return state


def train_step(parts: Parts, micro_batches: list[Batch], lr: float, state: TrainState) -> dict[str, float]:
    """One optimizer step over this rank's micro-batches. All ranks see the same losses and gradients, and so take the
    same decisions.

    Raises:
        UserError: The loss or the gradient is not finite (raised before the weights change), or memory is insufficient.
    """
    for group in parts.optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)
    with oom_as_user_error(f"epoch {state.epoch + 1}, step {state.step + 1}", micro_batches):
        losses = parts.objective.backward(micro_batches, parts.scaler)
        report = step_report(losses, parts.model)
        if not math.isfinite(report["loss"]):
            raise _not_finite("loss", parts, state, losses.bad_ids)
        parts.scaler.unscale_(parts.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(parts.model.trained_parameters(), parts.grad_clip_norm or math.inf).item()
        if math.isfinite(norm):
            state.step += 1
            state.skipped_in_row = 0
        elif parts.scaler.is_enabled() and state.skipped_in_row < _MAX_SKIPPED_IN_ROW:
            state.skipped += 1  # `step` does not advance, nor does the learning rate
            state.skipped_in_row += 1
        else:
            raise _not_finite("gradient", parts, state, [i for batch in micro_batches for i in batch.ids])
        parts.scaler.step(parts.optimizer)  # skips the step if a gradient is not finite
        parts.scaler.update()
        parts.optimizer.zero_grad(set_to_none=True)
    return report | {"lr": lr, "grad_norm": norm}


def end_epoch(parts: Parts, state: TrainState) -> None:
    """Validate, log and save after the last step of an epoch."""
    losses = means_of(state.sums, parts.model)
    scores = parts.validate(state.epoch + 1) if parts.validate else {}  # a signal may end it: `state` is as saved
    state.sums = {}
    state.epoch += 1
    state.batches_done = 0
    is_best = update_best(state, parts.monitor, scores)
    parts.log.epoch(state, losses | scores, parts.optimizer.param_groups[0]["lr"], is_best)
    parts.save(state, is_best)


def update_best(state: TrainState, monitor: str, scores: dict[str, float]) -> bool:
    """Whether the finished epoch is the best so far by the score `monitor`.

    Without validation, and with `last`, every epoch is. NaN is never the best.
    """
    if not scores or monitor == LAST_EPOCH:
        state.best_epoch = state.epoch
        return True
    value = _monitored(monitor, scores, state.epoch)
    if higher_is_better(monitor):
        value = -value
    if not value < state.best_loss:
        return False
    state.best_loss = value
    state.best_epoch = state.epoch
    return True


def _monitored(monitor: str, scores: dict[str, float], epoch: int) -> float:
    """Raises UserError for an unknown name: the parts of training.loss are known only after an epoch."""
    if monitor not in scores:
        raise UserError("training.monitor", f"{monitor!r} is not a score of this run", f"one of {', '.join(scores)}")
    if math.isnan(scores[monitor]):
        logger.warning("%s of epoch %d is NaN and is ignored", monitor, epoch)
    return scores[monitor]


def _not_finite(what: str, parts: Parts, state: TrainState, ids: list[str]) -> UserError:
    """The error for slides with a loss or gradient that is not finite; ids: of this rank (collective)."""
    names = [slide_id for of_rank in parts.objective.world.gather(ids) for slide_id in of_rank]
    return UserError("training", f"{what} is not finite at epoch {state.epoch + 1}, step {state.step + 1}, "
                     f"slides {', '.join(names[:_MAX_NAMED])}",
                     "check these slides, lower the learning rate or use fp32; the last checkpoint is good")
