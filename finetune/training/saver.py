"""What a checkpoint of a run holds: gathered from the run's parts and put back into them."""

from __future__ import annotations

import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checkpoints.format import BEST, FORMAT_VERSION, LAST, epoch_name, save_checkpoint
from ..common.distributed import ALONE, World
from ..common.errors import UserError
from ..models.captioner import SlideCaptioner
from .state import TrainState


def random_states() -> dict[str, Any]:
    """The states of all global random generators, as plain types and tensors."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(internal), gauss],
        "numpy": [name, [int(k) for k in keys], int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],  # of this process's GPU
    }


def set_random_states(states: dict[str, Any]) -> None:
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    if (cuda := states["cuda"]) and torch.cuda.is_available():  # format 1 has all GPUs of that machine
        torch.cuda.set_rng_state(cuda[min(torch.cuda.current_device(), len(cuda) - 1)])


class Saver:
    """Saves and restores one run: everything that decides how it goes on, in one dict of plain types and tensors."""

    def __init__(self, folder: Path, save_every: int, model: SlideCaptioner, optimizer: torch.optim.Optimizer,
                 scaler: torch.amp.GradScaler, about: dict[str, Any], world: World = ALONE) -> None:
        """about: what does not change during the run: config, tokenizer, prism, data, versions."""
        self.folder, self.save_every, self.about, self.world = folder, save_every, about, world
        self.model, self.optimizer, self.scaler = model, optimizer, scaler

    def save(self, state: TrainState, is_best: bool) -> None:
        """On rank 0 write last_model.pth, and before it best_model.pth and checkpoint_epoch_N.pth when they are due."""
        mine, *others = self.world.gather(random_states())
        if not self.world.is_main:
            return
        at_epoch_end = state.batches_done == 0
        periodic = at_epoch_end and self.save_every and state.epoch % self.save_every == 0
        names = [BEST] * is_best + [epoch_name(state.epoch)] * bool(periodic) + [LAST]
        save_checkpoint(self.folder, names, {
            "format_version": FORMAT_VERSION, **self.about, "progress": asdict(state),
            "random_states": mine | ({"other_ranks": others} if others else {}),
            "model": self.model.saved_state(), "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict()})

    def restore(self, content: dict[str, Any], where: Path) -> dict[str, Any]:
        """Put a checkpoint's tensors and random states back; returns its progress. Raises UserError if unfit."""
        self.model.load_saved_state(content["model"], str(where))
        if bool(content["scaler"]) != self.scaler.is_enabled():
            before, now = ("fp16", "another") if content["scaler"] else ("another", "fp16")
            raise UserError(where, f"the precision changed from or to fp16 (was {before}, now {now})",
                            "resume with the same precision")
        try:
            if different := _other_parameters(content["optimizer"], self.optimizer):
                raise UserError(where, f"its optimizer was for other parameters ({different})",
                                "use the config the checkpoint was trained with")
            self.scaler.load_state_dict(content["scaler"])
            self.optimizer.load_state_dict(content["optimizer"])
            of_ranks = [content["random_states"], *content["random_states"].get("other_ranks", [])]
            if self.world.rank < len(of_ranks):  # else there are more ranks than before, and this one is as seeded
                set_random_states(of_ranks[self.world.rank])
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError, OverflowError) as error:
            raise UserError(where, f"its training state is not usable ({type(error).__name__})",
                            "use another checkpoint of the run") from None
        return content["progress"]


def _other_parameters(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> str | None:
    """How the parameters of a saved optimizer state differ from those of `optimizer`, or None.

    torch itself looks at their number only and fails at the first step, or trains with another parameter's moments.
    """
    now = optimizer.state_dict()["param_groups"]
    for before, group in zip(saved["param_groups"], now, strict=True):
        if before.get("param_names") != group.get("param_names") or before["params"] != group["params"]:
            return f"{len(before['params'])} in a group, here {len(group['params'])}"
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, state in saved["state"].items():
        for name, value in state.items():
            if value.ndim and value.shape != parameters[index].shape:
                return f"{name} of number {index} is {tuple(value.shape)}, here {tuple(parameters[index].shape)}"
    return None
