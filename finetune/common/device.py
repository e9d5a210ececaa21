"""Device, precision and, for CPU runs, malloc settings."""

from __future__ import annotations

import ctypes
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from .errors import UserError

_DEVICE_KEY = "training.device"
_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Precision:
    """The resolved number format of the forward pass (fp16, bf16 or fp32), and why it was chosen."""

    name: str
    device: torch.device
    reason: str

    @property
    def dtype(self) -> torch.dtype:
        """Of the products of the forward pass."""
        return _DTYPES.get(self.name, torch.float32)

    def autocast(self) -> AbstractContextManager:
        """The autocast context of the forward pass; disabled for fp32."""
        dtype = _DTYPES.get(self.name)
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def use_tf32(self) -> None:
        """For fp32 on CUDA: TF32 inputs of matrix products (10 bits of mantissa), several times faster."""
        if self.name == "fp32" and self.device.type == "cuda":
            torch.set_float32_matmul_precision("high")

    def scaler(self) -> torch.amp.GradScaler:
        """Loss scaling for fp16, whose gradients underflow without it; a no-op otherwise."""
        return torch.amp.GradScaler(self.device.type, enabled=self.name == "fp16")


def resolve_device(name: str, local_rank: int | None = None) -> torch.device:
    """The device of this process.

    Args:
        name: auto (CUDA if available), cpu, cuda or cuda:N.
        local_rank: Number of this process among several on this machine, each on its own GPU; None if alone.

    Raises:
        UserError: An unknown or absent device, or one device for several processes.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if local_rank is not None and name.startswith("cuda"):
        name = _gpu_of_rank(name, local_rank)
    device = _parse_device(name)
    num_gpus = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= num_gpus:
        raise UserError(_DEVICE_KEY, f"{name!r} asked for, {num_gpus} CUDA devices found",
                        "use auto or cpu, or install a CUDA build of torch")
    return device


def _gpu_of_rank(name: str, local_rank: int) -> str:
    if name != "cuda":
        raise UserError(_DEVICE_KEY, f"{name!r} is one device for all processes", "use auto or cuda")
    return f"cuda:{local_rank}"


def _parse_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(_DEVICE_KEY, f"{name!r} is not a device", "use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(_DEVICE_KEY, f"{name!r} is not supported", "use auto, cpu, cuda or cuda:N")
    return device


def resolve_precision(name: str, device: torch.device, *, wide_range: bool = False) -> Precision:
    """The number format on a device; a format it lacks is replaced, and `reason` says so.

    Args:
        name: fp16, bf16, fp32, or auto: fp16 on CUDA, bf16 on a CPU that has it, else fp32.
        device: As resolved.
        wide_range: auto is bf16 in place of fp16: language models trained in bf16 overflow in fp16.
    """
    if device.type == "cuda":
        return _gpu_precision(name, device, wide_range)
    default, why = _cpu_default()
    if name == "auto":
        return Precision(default, device, why)
    if name == "fp16":
        return Precision(default, device, "fp16 was asked for, it needs CUDA")
    return Precision(name, device, "as configured")


def _gpu_precision(name: str, device: torch.device, wide_range: bool) -> Precision:
    if name == "auto" and not wide_range:
        return Precision("fp16", device, "auto on CUDA")
    if name == "auto":
        name = "bf16"
    if name == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return Precision("fp32", device, "bf16 was asked for, this GPU lacks it")
    return Precision(name, device, "as configured")


def _cpu_default() -> tuple[str, str]:
    """(format, reason) of auto on this CPU."""
    capabilities = torch.cpu.get_capabilities()
    if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"):
        return "bf16", "auto on a CPU with bf16 instructions"
    return "fp32", "auto on a CPU without bf16 instructions"


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error means out of memory: torch's CPU allocator raises a plain RuntimeError, numpy MemoryError."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # mallopt(3), glibc's malloc.h
_NEVER = 2**31 - 1


def keep_freed_memory(device: torch.device) -> bool:
    """For training on the CPU: let glibc keep freed memory for the next allocation.

    By default every large tensor is a memory mapping of its own, whose pages the kernel clears and maps on first
    touch: a training step on the CPU, whose gradients and casts of weights are new each time, spends a quarter to a
    third of its time on that (LOG.md, 2026-11-25). The memory stays with the process; its peak is the same.

    Returns:
        Whether it took effect: Linux with glibc, training on the CPU.
    """
    if device.type != "cpu" or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    # glibc returns 1 for a setting it took
    return bool(mallopt and mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _NEVER))
