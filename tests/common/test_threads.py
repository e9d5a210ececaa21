"""Threads on the CPU: what is set before torch is imported, and what the user's own settings and limits change."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.common import threads
from finetune.common.threads import cpu_quota, describe_threads, prepare_threads, usable_cores
from tests.helpers.files import ROOT


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="ascii")
    return path


@pytest.mark.parametrize(("groups", "files", "cores"), [
    ("0::/", {"cpu.max": "150000 100000"}, 1.5),
    ("0::/", {"cpu.max": "max 100000"}, None),
    ("0::/a/b", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}, 2.0),
    ("0::/a/b", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "50000 100000", "cpu.max": "max 100000"}, 0.5),
    ("0::/docker/host", {"cpu.max": "300000 100000"}, 3.0),
    ("0::/../job", {"job/cpu.max": "100000 50000"}, 2.0),
    ("4:cpu,cpuacct:/x", {"cpu,cpuacct/x/cpu.cfs_quota_us": "400000", "cpu,cpuacct/x/cpu.cfs_period_us": "100000"}, 4.0),
    ("4:cpu:/x", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
    ("9:name=systemd:/\n3:cpuset:/", {"cpu.max": "100000 100000"}, None),
    ("4:cpu:/\n0::/", {"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"}, 2.5),
    ("0::/", {"cpu.max": "nonsense"}, None), ("3:memory:/", {"cpu.max": "100000 100000"}, None), ("", {}, None)])
def test_the_limit_of_a_container_is_read(tmp_path, groups, files, cores):
    for name, text in files.items():
        written(tmp_path / "cgroup" / name, text + "\n")
    assert cpu_quota(tmp_path / "cgroup", written(tmp_path / "own", groups + "\n")) == cores
    assert cpu_quota(tmp_path / "cgroup", tmp_path / "missing") is None


@pytest.mark.parametrize(("before", "quota", "after"), [
    ({}, None, {"OMP_WAIT_POLICY": "PASSIVE"}),
    ({}, 2.5, {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "2"}),
    ({}, 0.5, {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}),
    ({}, 64.0, {"OMP_WAIT_POLICY": "PASSIVE"}),
    ({"OMP_WAIT_POLICY": "ACTIVE"}, None, {"OMP_WAIT_POLICY": "ACTIVE"}),
    ({"GOMP_SPINCOUNT": "9"}, None, {"GOMP_SPINCOUNT": "9"}),
    ({"OMP_NUM_THREADS": "7"}, 2.0, {"OMP_NUM_THREADS": "7", "OMP_WAIT_POLICY": "PASSIVE"}),
    ({"MKL_NUM_THREADS": "7"}, 2.0, {"MKL_NUM_THREADS": "7", "OMP_WAIT_POLICY": "PASSIVE"})])
def test_settings_of_the_user_win(monkeypatch, before, quota, after):
    monkeypatch.setattr(threads, "cpu_quota", lambda: quota)
    monkeypatch.setattr(threads, "usable_cores", lambda: 8)
    environ = dict(before)
    prepare_threads(environ)
    assert environ == after


SHOW = """import sys
from finetune.common.errors import run_script
def main():
    assert "torch" not in sys.modules
    import torch, os
    print(torch.get_num_threads(), os.environ["OMP_WAIT_POLICY"])
run_script(main)"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_torch_has_as_many_threads_as_a_process_may_use_cores():
    allowed = sorted(os.sched_getaffinity(0))
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "MKL_"))}
    for cores in (allowed[:1], allowed):
        code = f"import os; os.sched_setaffinity(0, {cores}); exec({SHOW!r})"
        shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=clean, capture_output=True, text=True, check=True)
        count, policy = shown.stdout.split()
        assert int(count) <= len(cores) and policy == "PASSIVE"


def test_the_line_of_the_log_says_number_and_waiting(monkeypatch):
    monkeypatch.setattr(threads, "cpu_quota", lambda: 1.5)
    line = describe_threads(1, {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"})
    assert line == f"1 threads on {usable_cores()} cores, a container limit of 1.5; they wait for each other asleep (OMP_NUM_THREADS=1)"
    assert "spinning" in describe_threads(2, {"OMP_WAIT_POLICY": "active"})
    assert "as OpenMP does (GOMP_SPINCOUNT=5)" in describe_threads(2, {"GOMP_SPINCOUNT": "5"})
