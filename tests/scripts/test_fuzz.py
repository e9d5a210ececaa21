"""Any broken file ends in one clean error line: no traceback, no hang, no exhausted memory."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from tests import fuzz

pytestmark = [pytest.mark.full, pytest.mark.skipif(os.name != "posix", reason="needs fork and alarm")]
_SERVER = multiprocessing.get_context("forkserver")


def attack(kind: str, folder: Path, seconds: float, most: int) -> tuple[int, list[str]]:
    """Read up to `most` inputs of a kind for up to `seconds`; (inputs read, what went wrong)."""
    _SERVER.set_forkserver_preload(["tests.fuzz", "tests.kill_runs"])
    process = _SERVER.Process(target=fuzz.work, args=(kind, 0, seconds, most, str(folder)))
    process.start()
    process.join(seconds + 120)
    process.kill()
    process.join()
    done = int((folder / "done").read_text(encoding="utf-8") or 0)
    bad = (folder / "bad").read_text(encoding="utf-8").splitlines()
    if process.exitcode:  # killed by a signal: -11 is a crash, -14 an input that took too long
        bad.append(f"{kind} {done}: ended with {process.exitcode}")
    return done, bad


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_broken_files_are_refused_in_one_line(kind, tmp_path):
    done, bad = attack(kind, tmp_path, 20, 60 if kind == "pth" else 200)
    assert not bad and done > 20


@pytest.mark.slow
@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_broken_files_are_refused_in_one_line_for_long(kind, tmp_path):
    """PRISM_COCA_FUZZ_SECONDS for all kinds together, ten minutes if not set."""
    seconds = float(os.environ.get("PRISM_COCA_FUZZ_SECONDS", 600)) / len(fuzz.KINDS)
    done, bad = attack(kind, tmp_path, seconds, 10**9)
    print(f"fuzz {kind}: {done} inputs, {len(bad)} failures in {seconds:.0f} s")
    assert not bad
