"""The training loop: `fit` and `train_step` say in order what happens; names say what the rest does."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from ..common.errors import UserError
from ..common.log import logger
from ..common.score_table import higher_is_better
from ..data.batch import Batch
from ..data.loader import BatchLoader
from ..models.captioner import SlideCaptioner
from .collapse_check import CollapseCheck
from .objective import Objective, StepLosses, is_out_of_memory
from .optim import lr_at
from .run_log import RunLog
from .state import TrainState

_MAX_SKIPS = 20  # fp16 steps skipped in a row: a loss scale that has halved 20 times will not recover
_WEIGHTS = {"caption_loss": "words", "contrastive_loss": "slides", "negatives": "slides"}  # else: parts of the user's
_NO_MEANS = {"loss", "words", "slides", "lr", "grad_norm"}
_UNTIL_SLIDES_MATTER = 0.1  # of all epochs: a young captioner first learns what texts look like


@dataclass
class Parts:
    """What `fit` works with. `save(state, names)` writes checkpoints; `stop()` is true after SIGINT or SIGTERM."""

    objective: Objective
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    batches: BatchLoader
    validation: BatchLoader | None
    log: RunLog
    save: Callable[[TrainState, bool], None]
    stop: Callable[[], bool]
    epochs: int
    peak_lr: float
    warmup: float
    grad_clip_norm: float | None
    save_every_steps: int = 0
    watch: CollapseCheck | None = None
    monitor: str = "val_loss"

    @property
    def model(self) -> SlideCaptioner:
        return self.objective.model


def fit(parts: Parts, state: TrainState) -> TrainState:
    """Train until `parts.epochs` or a stop signal; the only function that moves `state`. Resumable after every step."""
    parts.model.train()
    total_steps = sum(parts.batches.count(epoch) for epoch in range(parts.epochs))
    while state.epoch < parts.epochs:
        with parts.log.epoch_bar(state, parts.batches.count(state.epoch), parts.epochs) as bar:
            for group in parts.batches.epoch(state.epoch, state.batches_done):
                lr = lr_at(state.step, total_steps, parts.peak_lr, parts.warmup)
                with oom_as_user_error(f"epoch {state.epoch + 1}, step {state.step + 1}", group):
                    report = train_step(parts, group, lr, state)
                state.batches_done += 1
                _add(state.sums, report)
                parts.log.step(bar, report)
                stop = parts.stop()
                if stop or (parts.save_every_steps and state.step % parts.save_every_steps == 0):
                    parts.save(state, False)
                if stop:
                    return state
        losses, state.sums = _means(state.sums, parts.model), {}
        state.epoch, state.batches_done = state.epoch + 1, 0
        scores = validate(parts, state.epoch) if parts.validation else {}
        is_best = _note_score(state, parts.monitor, scores)
        if parts.watch and state.epoch > parts.epochs * _UNTIL_SLIDES_MATTER:
            parts.watch.warn()
        parts.log.epoch(state, losses | scores, parts.optimizer.param_groups[0]["lr"], is_best)
        parts.save(state, is_best)
        if parts.stop():
            break
    return state


def train_step(parts: Parts, group: list[Batch], lr: float, state: TrainState) -> dict[str, float]:
    """One optimizer step over `group`, this rank's micro-batches of it. Raises UserError before the weights see a
    non-finite number. All ranks see the same losses and gradients, hence decide alike."""
    for param_group in parts.optimizer.param_groups:
        param_group["lr"] = lr
    losses = parts.objective.backward(group, parts.scaler)
    report = _report(losses, parts.model)
    if not math.isfinite(report["loss"]):
        raise _not_finite("loss", state, parts.objective.world.gather(losses.bad_ids))
    parts.scaler.unscale_(parts.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(parts.model.trained_parameters(), parts.grad_clip_norm or math.inf).item()
    if math.isfinite(norm):
        state.step, state.skipped_in_row = state.step + 1, 0
    elif parts.scaler.is_enabled() and state.skipped_in_row < _MAX_SKIPS:
        state.skipped, state.skipped_in_row = state.skipped + 1, state.skipped_in_row + 1  # the schedule stays, too
    else:
        raise _not_finite("gradient", state, parts.objective.world.gather([i for b in group for i in b.ids]))
    parts.scaler.step(parts.optimizer)  # skips by itself when a gradient is not finite
    parts.scaler.update()
    parts.optimizer.zero_grad(set_to_none=True)
    return report | {"lr": lr, "grad_norm": norm}


@torch.no_grad()
def validate(parts: Parts, epoch: int = 0) -> dict[str, float]:
    """Mean losses over the validation slides of all ranks: per word (caption) and per slide (contrastive)."""
    assert parts.validation is not None
    parts.model.eval()
    see = None
    if parts.watch:
        parts.watch.begin(epoch)
        see = partial(parts.watch.see, parts.model)
    sums: dict[str, float] = {}
    lone = 0
    for group in parts.log.bar(parts.validation.epoch(0), parts.validation.count(0), "validation"):
        with oom_as_user_error(f"the validation of epoch {epoch}", group):
            report = _report(parts.objective.losses(group, see), parts.model)
        if report["slides"] == 1:  # it has no negatives, hence no contrastive loss to count
            lone, report["contrastive_loss"] = lone + 1, 0.0
        _add(sums, report)
    sums["contrastive_loss"] *= sums["slides"] / max(sums["slides"] - lone, 1.0)
    parts.model.train()
    watched = parts.watch.scores(parts.objective.world) if parts.watch else {}
    return {f"val_{name}": value for name, value in _means(sums, parts.model).items() if name != "negatives"} | watched


def _report(losses: StepLosses, model: SlideCaptioner) -> dict[str, float]:
    values = {name: value for name, value in vars(losses).items() if name not in ("bad_ids", "user")}
    total = model.weighted(losses.caption_loss, losses.contrastive_loss) + sum(losses.user.values())
    return values | losses.user | {"loss": total}


def _add(sums: dict[str, float], report: dict[str, float]) -> None:
    """Add a step's means to the running sums, each weighted by what it is a mean of."""
    for name in (name for name in report if name not in _NO_MEANS):
        sums[name] = sums.get(name, 0.0) + report[name] * report[_WEIGHTS.get(name, "slides")]
    for weight in ("words", "slides"):
        sums[weight] = sums.get(weight, 0.0) + report[weight]


def _means(sums: dict[str, float], model: SlideCaptioner) -> dict[str, float]:
    means = {name: sums[name] / max(sums[_WEIGHTS.get(name, "slides")], 1.0) for name in sums if name not in _NO_MEANS}
    user = sum(value for name, value in means.items() if name not in _WEIGHTS)
    return {"loss": model.weighted(means["caption_loss"], means["contrastive_loss"]) + user} | means


def _note_score(state: TrainState, monitor: str, scores: dict[str, float]) -> bool:
    """True if the epoch just finished is the best by `monitor`, never by NaN; without validation always."""
    if not scores:
        state.best_epoch = state.epoch
        return True
    if monitor not in scores:  # parts of training.loss are known only now
        raise UserError("training.monitor", f"{monitor!r} is no score of this run", f"one of {', '.join(scores)}")
    value = scores[monitor]
    if math.isnan(value):
        logger.warning("%s of epoch %d is not a number: it does not count", monitor, state.epoch)
    if higher_is_better(monitor):
        value = -value
    if not value < state.best_loss:
        return False
    state.best_loss, state.best_epoch = value, state.epoch
    return True


@contextlib.contextmanager
def oom_as_user_error(where: str, group: list[Batch]) -> Iterator[None]:
    """What does not fit into memory although micro-batches were halved, as a UserError."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise UserError("training", f"out of memory at {where} ({_largest(group)})", "halving did not help: lower "
                        "data.max_tiles or make the model smaller, in another folder; the last checkpoint is good"
                        ) from None


def _largest(group: list[Batch]) -> str:
    """What of a group takes most memory."""
    if any(b.tile_mask is None for b in group):
        return f"texts of up to {max(b.text.shape[1] for b in group)} tokens"
    sizes = [pair for b in group for pair in zip(b.tile_mask.sum(1).tolist(), b.ids, strict=True)]
    tiles, slide_id = max(sizes, default=(0, "of another process"))
    return f"{tiles} tiles in slide {slide_id}"


def _not_finite(what: str, state: TrainState, ids: list[list[str]]) -> UserError:
    """ids: of the slides concerned, from all ranks."""
    names = [slide_id for of_rank in ids for slide_id in of_rank]
    return UserError("training", f"{what} is not finite at epoch {state.epoch + 1}, step {state.step + 1}, "
                     f"slides {', '.join(names[:8])}", "look at these slides, lower the learning rate or use fp32; "
                     "the last checkpoint is good")
