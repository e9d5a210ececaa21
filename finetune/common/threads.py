"""The threads of a run on the CPU: how many, and how they wait for each other. Imports no torch: OpenMP reads its
settings when torch is imported, so they must be in the environment before.

OpenMP's threads spin while they wait for each other. Beside one busy process on as many cores as there are threads, the
one that is waited for is not running, and a training epoch takes 3 to 60 times as long; threads that sleep while they
wait cost nothing even on an idle machine (`python -m benchmarks threads`).
"""

from __future__ import annotations

import math
import os
from collections.abc import MutableMapping
from pathlib import Path

from .control_groups import CGROUPS, OWN_CGROUPS, group_folders

_WAIT = "OMP_WAIT_POLICY"
_OWN_WAIT = (_WAIT, "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # of OpenMP, GCC's and LLVM's: settings of the user
_OWN_COUNT = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def prepare_threads(environ: MutableMapping[str, str] = os.environ) -> None:
    """Make OpenMP's threads sleep while they wait, and no more of them than a container may use cores.

    What the user has set stays. By itself OpenMP counts the cores that the process may run on; it does not know the CPU
    time that a container gets (`docker run --cpus`, limits of Kubernetes).
    """
    if not any(name in environ for name in _OWN_WAIT):
        environ[_WAIT] = "PASSIVE"
    quota = cpu_quota()
    if quota is not None and quota < usable_cores() and not any(name in environ for name in _OWN_COUNT):
        environ["OMP_NUM_THREADS"] = str(max(1, math.floor(quota)))


def describe_threads(num_threads: int, environ: MutableMapping[str, str] = os.environ) -> str:
    """One line on the threads of this process: number, cores, how they wait. num_threads: Those of torch."""
    quota = cpu_quota()
    limit = "" if quota is None else f", a container limit of {quota:g}"
    own = [f"{name}={environ[name]}" for name in (*_OWN_COUNT, *_OWN_WAIT[1:]) if name in environ]
    waiting = {"PASSIVE": "asleep", "ACTIVE": "spinning"}.get(environ.get(_WAIT, "").upper(), "as OpenMP does")
    return (f"{num_threads} threads on {usable_cores()} cores{limit}; they wait for each other {waiting}"
            f"{' (' + ', '.join(own) + ')' if own else ''}")


def usable_cores() -> int:
    """The cores that this process may run on: fewer than the machine has under taskset, Slurm or in a container."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_quota(cgroups: Path = CGROUPS, own: Path = OWN_CGROUPS) -> float | None:
    """The number of cores whose time this process may use by its control groups (Linux), None without a limit.

    By cpu.max of version 2 and cpu.cfs_quota_us of version 1.

    Args:
        cgroups: Where they are mounted.
        own: Lists the groups of this process.
    """
    quotas = [quota for folder in group_folders("cpu", cgroups, own) if (quota := _quota(folder)) is not None]
    return min(quotas, default=None)


def _quota(folder: Path) -> float | None:
    """Cores of one group: `max 100000` or `150000 100000` microseconds in cpu.max, or two files in version 1."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()[:2]
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text(encoding="ascii")
            period = (folder / "cpu.cfs_period_us").read_text(encoding="ascii")
        cores = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or `max`
        return None
    return cores if cores > 0 else None  # -1: no limit
