"""The global random generators of a process: seeded when a run starts, saved in and restored from its checkpoints.

Order, split and tile sampling use their own generators; the global ones serve layers such as dropout.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Seed the generators of Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_states() -> dict[str, Any]:
    """The states of all global generators, as plain types and tensors."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(internal), gauss],
        "numpy": [name, [int(k) for k in keys], int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],  # of this process's GPU
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Restore the states from `random_states`, on any device."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    of_gpus = states["cuda"]
    if of_gpus and torch.cuda.is_available():  # format 1 has all GPUs of that machine
        torch.cuda.set_rng_state(of_gpus[min(torch.cuda.current_device(), len(of_gpus) - 1)])
