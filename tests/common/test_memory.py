"""Free memory by the machine and its control groups, from files as the kernel writes them, and what is refused by it."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.common import memory
from finetune.common.memory import free_memory, memory_for, memory_limit, require_memory
from tests.helpers.files import refused

MEMINFO = "MemTotal:       24000000 kB\nMemFree:         1000000 kB\nMemAvailable:   20000000 kB\nHugePages_Total:       0\n"
GB = 1_000_000_000


@pytest.fixture
def machine(tmp_path):
    """Arguments of `free_memory` for a machine with the given files of its control groups."""
    def make(own: str, groups: dict[str, str], meminfo: str = MEMINFO) -> tuple[Path, Path, Path]:
        for name, text in {"meminfo": meminfo, "own": own, **{f"groups/{n}": t for n, t in groups.items()}}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="ascii")
        return tmp_path / "meminfo", tmp_path / "groups", tmp_path / "own"

    return make


def test_without_a_limit_the_memory_of_the_machine_counts(machine):
    assert free_memory(*machine("0::/\n", {"memory.max": "max\n", "memory.current": "5\n"})) == 1024 * 20_000_000


@pytest.mark.parametrize(("own", "prefix", "names"), [
    ("0::/job\n", "job", ("memory.max", "memory.current", "inactive_file")),
    ("4:memory:/job\n3:cpu:/other\n", "memory/job",
     ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")),
])
def test_the_smallest_limit_counts_and_droppable_pages_are_free(machine, own, prefix, names):
    limit, use, droppable = names
    files = {f"{prefix}/{limit}": f"{4 * GB}\n", f"{prefix}/{use}": f"{3 * GB}\n",
             f"{prefix}/memory.stat": f"anon 1\n{droppable} {GB // 2}\n"}
    assert free_memory(*machine(own, files)) == 3 * GB // 2


@pytest.mark.parametrize(("own", "prefix", "name"), [
    ("0::/job/step\n", "", "memory.max"), ("4:memory:/job/step\n", "memory/", "memory.limit_in_bytes")])
def test_the_limit_is_the_smallest_of_the_groups_above(machine, own, prefix, name):
    _, groups, own_file = machine(own, {f"{prefix}job/{name}": f"{3 * GB}\n", f"{prefix}job/step/{name}": f"{4 * GB}\n"})
    assert memory_limit(groups, own_file) == 3 * GB


def test_without_a_limit_there_is_none(machine, tmp_path):
    _, groups, own_file = machine("0::/\n", {"memory.max": "max\n"})
    assert memory_limit(groups, own_file) is None
    assert memory_limit(tmp_path / "none", tmp_path / "nor this") is None


def test_a_full_group_has_nothing_left(machine):
    files = {"memory.max": f"{GB}\n", "memory.current": f"{2 * GB}\n"}
    assert free_memory(*machine("0::/\n", files)) == 0


def test_a_system_that_does_not_say_refuses_nothing(tmp_path, monkeypatch):
    assert free_memory(tmp_path / "a", tmp_path / "b", tmp_path / "c") is None
    monkeypatch.setattr(memory, "free_memory", lambda: None)
    require_memory("file", 10**18, "its tiles")


def test_this_machine_has_some():
    free = free_memory()
    assert free is None or 1 << 20 < free < 1 << 50


def test_what_does_not_fit_twice_is_refused_before_it_is_read(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 5 * GB)
    with memory_for("slide.h5", 2 * GB, "its 9 tiles"):
        pass
    with refused("slide.h5: its 9 tiles need 6.0 GB of memory, 5.0 GB are free"), memory_for("slide.h5", 3 * GB, "its 9 tiles"):
        raise AssertionError("must not be reached")


def test_a_limit_that_no_file_shows_is_one_line_too():
    with refused("slide.h5: its 9 tiles need more memory than is free"), memory_for("slide.h5", 1, "its 9 tiles"):
        raise MemoryError
