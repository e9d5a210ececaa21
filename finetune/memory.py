"""How this process gets its memory from the system."""

from __future__ import annotations

import ctypes
import sys

import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # mallopt(3), glibc's malloc.h
_NEVER = 2**31 - 1


def keep_freed_memory(device: torch.device) -> bool:
    """For training on the CPU: let glibc keep what is freed for the next allocation; true if it agreed (Linux, glibc).

    By default each large tensor is a mapping of its own, whose pages the kernel clears and maps anew on first touch: a
    training step on the CPU, whose gradients and casts of weights are new each time, spends a quarter to a third of its
    time on that (LOG.md, 2026-11-25). The memory stays with the process; its peak is the same.
    """
    if device.type != "cpu" or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # musl has a mallopt-free malloc; glibc answers 1 for what it took
    return bool(mallopt and mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _NEVER))
