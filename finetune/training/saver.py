"""Saving a run: collects the content of a checkpoint and decides which files are due."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from ..checkpoints.format import BEST, LAST, Checkpoint, RunDescription, epoch_name
from ..common.distributed import ALONE, World
from ..models.captioner import SlideCaptioner
from .random_states import random_states
from .state import TrainState

_WORTH_SAVING = 5  # times that training must take longer than saving it


@dataclass
class Saver:
    """Writes the checkpoints of one run into `folder`; every `save_every` epochs one that is kept (0: none)."""

    folder: Path
    save_every: int
    model: SlideCaptioner
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    description: RunDescription
    world: World = ALONE
    _saved_at: float = field(default_factory=time.monotonic)
    _save_seconds: float = 0.0

    def is_late(self) -> bool:
        """Whether training since the last save took so long that losing it is worse than the time of one more save.
        The same on all ranks, which call this together."""
        seconds = time.monotonic() - self._saved_at
        return self.world.any(self.world.is_main and seconds > _WORTH_SAVING * self._save_seconds)

    def save(self, state: TrainState, is_best: bool) -> None:
        """On rank 0 write last_model.pth, and before it best_model.pth and checkpoint_epoch_N.pth when they are due.

        best_model.pth gets the weights only. Called on all ranks, whose random states it gathers.
        """
        started = time.monotonic()
        first, *others = self.world.gather(random_states())
        if not self.world.is_main:
            return
        if others:
            first["other_ranks"] = others
        checkpoint = Checkpoint(
            **vars(self.description), progress=asdict(state), random_states=first, model=self.model.saved_state(),
            optimizer=self.optimizer.state_dict(), scaler=self.scaler.state_dict())
        if is_best:
            checkpoint.weights_only().save(self.folder, [BEST])
        checkpoint.save(self.folder, self._due(state))
        self._saved_at = time.monotonic()
        self._save_seconds = self._saved_at - started

    def _due(self, state: TrainState) -> list[str]:
        names: list[str] = []
        at_epoch_end = state.batches_done == 0
        if at_epoch_end and self.save_every and state.epoch % self.save_every == 0:
            names.append(epoch_name(state.epoch))
        return [*names, LAST]  # the commit record is replaced last
