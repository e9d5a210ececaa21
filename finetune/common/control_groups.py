"""The control groups of this process (Linux), which limit what a container or a job of Slurm may use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def group_folders(controller: str, cgroups: Path = CGROUPS, own: Path = OWN_CGROUPS) -> list[Path]:
    """The folders of the groups of this process and of those above them, whose limits hold for it, too.

    https://docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1.

    Args:
        controller: cpu or memory; only version 1 has a tree of groups for each.
        cgroups: Where they are mounted.
        own: Lists the groups of this process.

    Returns:
        Folders that may not exist; none on another system than Linux.
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    return [folder for line in lines for folder in _folders_of_line(line, controller, cgroups)]


def _folders_of_line(line: str, controller: str, cgroups: Path) -> Iterator[Path]:
    """From a line `0::/path` (version 2) or `4:cpu,cpuacct:/path` (version 1)."""
    _, _, rest = line.partition(":")
    controllers, _, path = rest.partition(":")
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for root in _roots(cgroups, controllers, controller):
        # in a container the path is often that of the host, of which only the root is mounted
        yield from (root.joinpath(*parts[:depth]) for depth in range(len(parts) + 1))


def _roots(cgroups: Path, controllers: str, wanted: str) -> list[Path]:
    """Where the groups of these controllers are mounted, if the wanted one is among them; version 2 names none."""
    if not controllers:
        return [cgroups, cgroups / "unified"]
    return [cgroups / controllers, cgroups / wanted] if wanted in controllers.split(",") else []
