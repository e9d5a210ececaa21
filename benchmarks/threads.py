"""Training on the CPU beside a busy process: seconds of an epoch with threads that sleep or spin while they wait.

The busy process is the benchmark's own; all cases take turns, and the fastest epoch of each counts.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from finetune.demo import make_slides

from .common import ROOT, Row

_BUSY = 1
_ROUNDS = 3
# What OpenMP (GCC's) does by itself: it tries 300 000 times before a thread sleeps
_WAITING = {"asleep, our default": {}, "spinning, OpenMP's own": {"GOMP_SPINCOUNT": "300000"}}
_OF_USER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def rows(small: bool = False) -> list[Row]:
    """An epoch of a small model, alone and beside a busy process."""
    cases = [(name, busy) for name in _WAITING for busy in (0, _BUSY)]
    seconds: dict[tuple[str, int], list[float]] = {case: [] for case in cases}
    with tempfile.TemporaryDirectory() as folder:
        make_slides(Path(folder), 12 if small else 60)
        for number in range(1 if small else _ROUNDS):
            for name, busy in cases:
                with busy_processes(busy):
                    seconds[name, busy].append(epoch_seconds(Path(folder), f"{name}_{busy}_{number}", _WAITING[name]))
    best = {case: min(times) for case, times in seconds.items()}
    table = []
    for name in _WAITING:
        alone, beside = best[name, 0], best[name, _BUSY]
        wanted = "2x slower at most" if not _WAITING[name] else ""
        table.append(Row(f"epoch beside {_BUSY} busy process, threads {name}", f"{beside:.2f} s",
                         f"alone {alone:.2f} s", f"{beside / alone:.2f}x slower", wanted=wanted))
    return table


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """As many processes that never rest."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def epoch_seconds(folder: Path, name: str, settings: dict[str, str]) -> float:
    """Seconds of the faster of two epochs. settings: Environment variables in place of the user's own."""
    run = folder / name.replace(" ", "_")
    env = {key: value for key, value in os.environ.items() if key not in _OF_USER} | settings
    command = [sys.executable, "train_finetune.py", "--prism", "random-tiny", "--embeddings_dir", folder / "embeddings",
               "--labels_file", folder / "labels.json", "--output_dir", run, "--epochs", "2", "--save_every", "0",
               "--set", f"training.log_dir={run}", f"data.latents_cache={folder}/cache", "data.views=1"]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-800:])
    events = map(json.loads, (run / "events.jsonl").read_text(encoding="utf-8").splitlines())
    return min(event["seconds"] for event in events if event["kind"] == "epoch")
