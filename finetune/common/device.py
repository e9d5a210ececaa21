"""How this process gets its memory from the system."""

from __future__ import annotations

import ctypes
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from .errors import UserError


@dataclass(frozen=True)
class Precision:
    """The resolved number format of the forward pass, and why it was chosen."""

    name: str
    device: torch.device
    reason: str

    def autocast(self) -> AbstractContextManager:
        dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": None}[self.name]
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def use_tf32(self) -> None:
        """For fp32 on CUDA let matrix products take their inputs as TF32, which has 10 bits: several times faster."""
        if self.name == "fp32" and self.device.type == "cuda":
            torch.set_float32_matmul_precision("high")

    def scaler(self) -> torch.amp.GradScaler:
        """Loss scaling for fp16, whose gradients underflow without it; a no-op otherwise."""
        return torch.amp.GradScaler(self.device.type, enabled=self.name == "fp16")


def resolve_device(name: str, local_rank: int | None = None) -> torch.device:
    """`auto`: CUDA if there is one, else the CPU. Raises UserError for a device that is not here.

    local_rank: number of this process among several on this machine, each of which takes a GPU of its own.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if local_rank is not None and name.startswith("cuda"):
        if name != "cuda":
            raise UserError("training.device", f"{name!r} is one device for all processes", "use auto or cuda")
        name = f"cuda:{local_rank}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError("training.device", f"{name!r} is no device", "use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError("training.device", f"{name!r} is not supported", "use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError("training.device", f"{name!r} asked for, {torch.cuda.device_count()} CUDA devices found",
                        "use auto or cpu, or install a CUDA build of torch")
    return device


def resolve_precision(name: str, device: torch.device) -> Precision:
    """`auto`: fp16 on CUDA, bf16 on a CPU that has it, else fp32. Unsupported wishes fall back, with a reason."""
    if device.type == "cuda":
        if name == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision("fp32", device, "bf16 was asked for, this GPU lacks it")
        return Precision("fp16", device, "auto on CUDA") if name == "auto" else Precision(name, device, "as configured")
    has_bf16 = bool(torch.cpu.get_capabilities().get("avx512_bf16") or torch.cpu.get_capabilities().get("amx_bf16"))
    best = "bf16" if has_bf16 else "fp32"
    if name == "fp16":
        return Precision(best, device, "fp16 was asked for, it needs CUDA")
    if name == "auto":
        return Precision(best, device, f"auto on a CPU with{'' if has_bf16 else 'out'} bf16 instructions")
    return Precision(name, device, "as configured")


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
