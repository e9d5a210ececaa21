"""What the parts of the benchmark share: rows of the table, timing in turns, floors of this machine, peak memory."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Row:
    """One line of the table. `wanted` is the goal in words, `against` what `value` is to be compared with."""

    case: str
    value: str
    against: str = ""
    wanted: str = ""

    def line(self) -> str:
        return f"| {self.case} | {self.value} | {self.against} | {self.wanted} |"


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turn(works: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each work, all of them once per round, so that a busy minute of the machine hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            times[name].append(seconds(work))
    return times


def ratio(slow: list[float], fast: list[float]) -> float:
    """Median of the ratios round by round."""
    return statistics.median(s / f for s, f in zip(slow, fast, strict=True))


def gemm_work(dtype: torch.dtype, size: int = 2048) -> tuple[Callable[[], Any], float]:
    """A square matrix product, and its floating-point operations."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    return lambda: a @ b, 2.0 * size**3


def read_work(megabytes: int = 1024) -> tuple[Callable[[], Any], float]:
    """A sum over more memory than any cache holds, and its bytes."""
    data = torch.ones(megabytes * 2**18)
    return lambda: data.sum(), float(data.numel() * 4)


def peak_bytes(work: Callable[[], Any]) -> int:
    """How far the resident memory of this process rises above where it is, while `work` runs (Linux only)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # sets the high-water mark to what is resident now
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text(encoding="utf-8").splitlines() if x.startswith(field))
    return int(line.split()[1]) * 1024


def in_process(module: str, *args: str, path: Path = ROOT) -> dict[str, Any]:
    """What `python -m MODULE ARGS` printed as JSON on its last line; packages in `path` come first.

    Raises:
        RuntimeError: it failed; with the end of what it wrote.
    """
    env = os.environ | {"PYTHONPATH": os.pathsep.join(dict.fromkeys((str(path), str(ROOT))))}
    done = subprocess.run([sys.executable, "-P", "-m", module, *args], env=env, cwd=ROOT, capture_output=True,
                          text=True)
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(args)} failed: {done.stderr[-800:]}")
    return json.loads(done.stdout.splitlines()[-1])
