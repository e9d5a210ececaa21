"""torch, the NVIDIA driver, and whether they fit each other."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import Any

from .findings import ERROR, OK, WARNING, Finding
from .machine import INSTALL, import_failure

TESTED = "2.13.0"
_SITE = "https://pytorch.org/get-started/locally"


@dataclass(frozen=True)
class Driver:
    """What nvidia-smi says. version: Of the driver. cuda: The newest CUDA it can run, such as `12.4`."""

    version: str
    cuda: str
    gpus: tuple[str, ...]


def import_torch() -> Any | None:
    """torch, None if it is missing or broken."""
    if import_failure("torch") is not None:
        return None
    import torch

    return torch


def check_torch() -> Finding:
    """Whether it can be imported, and its version."""
    failure = import_failure("torch")
    if failure:
        return Finding("torch", ERROR, failure, f"activate the environment (.venv), or install: {INSTALL}")
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    text = f"{torch.__version__} ({build}), {torch.get_num_threads()} threads"
    if str(torch.__version__).partition("+")[0] != TESTED:
        return Finding("torch", WARNING, text, f"tested with {TESTED}: python -m pip install torch=={TESTED}")
    return Finding("torch", OK, text)


def read_driver() -> Driver | None:
    """From nvidia-smi; None if there is none or it finds no GPU."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    table = _output(program)
    rows = _output(program, "--query-gpu=name,driver_version", "--format=csv,noheader").strip().splitlines()
    if not rows:
        return None
    cuda = re.search(r"CUDA[^:|]*Version: *(\d+\.\d+)", table)
    gpus = [row.rpartition(",") for row in rows]
    return Driver(gpus[0][2].strip(), cuda[1] if cuda else "unknown", tuple(name.strip() for name, _, _ in gpus))


def _output(*command: str) -> str:
    """What a program prints; nothing if it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace", timeout=30,
                              check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def check_gpu(torch: Any, driver: Driver | None, device: str = "auto") -> Finding:
    """Whether torch can compute on the GPUs. device: Value of training.device."""
    if torch.cuda.is_available():
        return _compute(torch)
    if driver is None:
        status, fix = (ERROR, "set training.device: auto") if device.startswith("cuda") else (OK, "")
        return Finding("GPU", status, "none found (no NVIDIA driver): training runs on the CPU", fix)
    seen = f"{', '.join(driver.gpus)}, driver {driver.version} (up to CUDA {driver.cuda})"
    built = torch.version.cuda
    if built is None:
        return Finding("GPU", WARNING, f"{seen}, but this torch is built without CUDA: training runs on the CPU",
                       f"install torch {TESTED} for CUDA {driver.cuda} or older, see {_SITE}")
    if _as_numbers(driver.cuda) < _as_numbers(built):
        return Finding("GPU", ERROR, f"{seen}, but this torch is built for CUDA {built}",
                       f"update the driver, or install torch {TESTED} for CUDA {driver.cuda} or older, see {_SITE}")
    return Finding("GPU", ERROR, f"{seen}, but torch for CUDA {built} finds none",
                   "is CUDA_VISIBLE_DEVICES empty, or the GPU not passed to the container (docker run --gpus all)?")


def _compute(torch: Any) -> Finding:
    names = []
    for number in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(number)
        try:
            wrong = float(torch.ones(4, device=f"cuda:{number}").sum()) != 4
            free, total = torch.cuda.mem_get_info(number)
        except RuntimeError as error:  # such as: no kernel image is available for execution on the device
            return Finding("GPU", ERROR, f"cuda:{number} {name} does not compute ({str(error).splitlines()[0][:120]})",
                           f"install a build of torch {TESTED} for this GPU, see {_SITE}")
        if wrong:
            return Finding("GPU", ERROR, f"cuda:{number} {name} computes wrongly", "run it without this GPU")
        names.append(f"cuda:{number} {name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free")
    return Finding("GPU", OK, "; ".join(names))


def _as_numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))
