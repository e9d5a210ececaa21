"""Shared by the parts of the benchmark: table rows, timing, hardware limits, peak memory."""

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
HEADINGS = ("case", "ours", "peer", "ratio", "floor", "peak memory", "wanted")


@dataclass
class Row:
    """One line of the table. floor: the hardware limit of `ours` and how close it comes; wanted: the goal."""

    case: str
    ours: str
    peer: str = ""
    ratio: str = ""
    floor: str = ""
    peak: str = ""
    wanted: str = ""

    def line(self) -> str:
        return f"| {' | '.join((self.case, self.ours, self.peer, self.ratio, self.floor, self.peak, self.wanted))} |"


def compared(case: str, ours: list[dict[str, float]], peers: list[dict[str, float]], *, wanted: str = "",
             floor: str = "", per: int = 1) -> Row:
    """A row of runs of ours and of a peer that took turns, each {"seconds", "peak" bytes}; per: slides in a run of
    ours, where the peer had one."""
    mine, other = [run["seconds"] / per for run in ours], [run["seconds"] for run in peers]
    peaks = f"{gigabytes(min(r['peak'] for r in ours))} / {gigabytes(min(r['peak'] for r in peers))}"
    return Row(case, f"{min(mine):.2f} s", f"{min(other):.2f} s", f"{ratio(other, mine):.2f}x", floor, peaks, wanted)


def gigabytes(number: float) -> str:
    return f"{number / 1e9:.2f} GB"


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def timed(work: Callable[[], Any], device: torch.device | str = "cpu", repeats: int = 1) -> float:
    """Seconds of the fastest of `repeats` calls; on a GPU between two of its own events."""
    if torch.device(device).type != "cuda":
        return min(seconds(work) for _ in range(repeats))
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return min(times)


def in_turn(works: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each work, all of them once per round, so that load on the machine affects all alike."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            times[name].append(seconds(work))
    return times


def ratio(slow: list[float], fast: list[float]) -> float:
    """Median of the ratios round by round."""
    return statistics.median(s / f for s, f in zip(slow, fast, strict=True))


def gemm_rate(dtype: torch.dtype, device: torch.device | str = "cpu") -> float:
    """Floating-point operations a second of this machine's matrix product, 2048^3 (on a GPU 8192^3)."""
    size = 8192 if torch.device(device).type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    a @ b
    return 2.0 * size**3 / timed(lambda: a @ b, device, 3)


def read_rate(device: torch.device | str = "cpu", megabytes: int = 1024) -> float:
    """Bytes a second of a sum over more memory than any cache holds."""
    data = torch.ones(megabytes * 2**18, device=device)
    return data.nbytes / timed(data.sum, device, 3)


def peak_bytes(work: Callable[[], Any], device: torch.device | str = "cpu") -> int:
    """How far memory rises while `work` runs: of the GPU, or resident of this process (Linux)."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # sets the high-water mark to what is resident now
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text(encoding="utf-8").splitlines() if x.startswith(field))
    return int(line.split()[1]) * 1024


def in_process(module: str, *args: str, path: Path = ROOT, timeout: float | None = None) -> dict[str, Any]:
    """What `python -m MODULE ARGS` printed as JSON on its last line; packages in `path` come first.

    Raises:
        RuntimeError: It failed; with the end of what it wrote.
        subprocess.TimeoutExpired: It took longer than `timeout` seconds.
    """
    env = os.environ | {"PYTHONPATH": os.pathsep.join(dict.fromkeys((str(path), str(ROOT))))}
    done = subprocess.run([sys.executable, "-P", "-m", module, *args], env=env, cwd=ROOT, capture_output=True,
                          text=True, timeout=timeout)
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(args)} failed: {done.stderr[-800:]}")
    return json.loads(done.stdout.splitlines()[-1])
