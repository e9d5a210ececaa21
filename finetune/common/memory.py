"""The memory that this process may still take, held against what a file says that it needs. Imports no torch.

A compressed file of 5 MB may unpack to 5 GB. The kernel does not refuse the allocation: it ends the process, or another
one, when the pages are written. So what a file declares is compared before it is read.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from .control_groups import CGROUPS, OWN_CGROUPS, group_folders
from .errors import UserError

_MEMINFO = Path("/proc/meminfo")
_SMALL = 1 << 30  # bytes of a file that are read without asking: a slide of 200 000 tiles in float16
_FIX = "use a machine with more memory, or is the file what it should be?"
_one_at_a_time = threading.Lock()
# (limit, use, its reclaimable part in memory.stat) of a group in version 2 and version 1
_GROUP_FILES = (("memory.max", "memory.current", "inactive_file"),
                ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"))


@contextlib.contextmanager
def memory_for(where: str | Path, num_bytes: int, what: str) -> Iterator[None]:
    """Raise UserError if twice so many bytes are not free, or the block runs out of memory.

    Twice, as what is read is copied once more into a batch.

    Large files are read one at a time: only what another thread has read is known to be no longer free.

    Args:
        where: The file that asks for them.
        num_bytes: How many.
        what: They are for, such as "its tiles".
    """
    large = num_bytes > _SMALL
    with _one_at_a_time if large else contextlib.nullcontext():
        if large:
            require_memory(where, 2 * num_bytes, what)
        try:
            yield
        except MemoryError:  # of a limit such as `ulimit -v`, which no file shows
            raise UserError(where, f"{what} need more memory than is free", _FIX) from None


def require_memory(where: str | Path, num_bytes: int, what: str) -> None:
    """Raise UserError if so many bytes are not free. Arguments as in `memory_for`."""
    free = free_memory()
    if free is not None and num_bytes > free:
        raise UserError(where, f"{what} need {num_bytes / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free",
                        _FIX)


def free_memory(meminfo: Path = _MEMINFO, cgroups: Path = CGROUPS, own: Path = OWN_CGROUPS) -> int | None:
    """Bytes that this process may take without swapping, by the machine and its control groups.

    None where the system does not say (only Linux does).
    """
    free = [_available(meminfo), *(_left_in(folder) for folder in group_folders("memory", cgroups, own))]
    return min((number for number in free if number is not None), default=None)


def memory_limit(cgroups: Path = CGROUPS, own: Path = OWN_CGROUPS) -> int | None:
    """Bytes that the control groups of this process may use (a container, a job of Slurm); None without a limit."""
    limits = [_limit(folder) for folder in group_folders("memory", cgroups, own)]
    return min((number for number in limits if number is not None), default=None)


def _limit(folder: Path) -> int | None:
    """That of one group; None without one."""
    for limit_file, _, _ in _GROUP_FILES:
        try:
            return int((folder / limit_file).read_text(encoding="ascii"))
        except (OSError, ValueError):  # no such file, or `max`
            continue
    return None


def _available(meminfo: Path) -> int | None:
    """MemAvailable, from a line such as `MemAvailable:   23456 kB`."""
    for name, number in _numbers(meminfo).items():
        if name == "MemAvailable:":
            return 1024 * number
    return None


def _left_in(folder: Path) -> int | None:
    """Bytes below the limit of a group; None without one. The pages of files that it may drop count as free."""
    for limit_file, use_file, reclaimable in _GROUP_FILES:
        try:
            limit, use = (int((folder / name).read_text(encoding="ascii")) for name in (limit_file, use_file))
        except (OSError, ValueError):  # no such file, or `max`
            continue
        return max(0, limit - use + _numbers(folder / "memory.stat").get(reclaimable, 0))
    return None


def _numbers(path: Path) -> dict[str, int]:
    """{first word: number behind it} of the lines of a file of the kernel; empty if it cannot be read."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
        return {words[0]: int(words[1]) for words in map(str.split, lines) if len(words) > 1}
    except (OSError, ValueError):
        return {}
