"""Everything that only a machine with a GPU can show, in one command of under ten minutes and one table: parity with
the CPU, the tests marked `gpu`, encoder, training step, decoding, epochs, loading, `batch_size: auto`, fp16 overflow,
resume.

    python -m benchmarks gpu            on a machine with a CUDA device
    python -m benchmarks gpu --small    a dry run of tiny sizes, on a CPU too: it keeps this code working

Each check runs in a process of its own: one that fails is a row of the table and does not stop the others.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from finetune.checkpoints.format import LAST, Checkpoint
from finetune.demo import make_slides

from . import encoder, epochs, loader
from .common import ROOT, Row, gigabytes, in_process

_LIMIT = 540  # seconds; checks that would begin later are left out
_EACH = 240  # seconds of one check
_SIZES = {
    False: {"prism": "random", "vocabulary": 42384, "tokens": 128,
            "model": {"dim": 1024, "unimodal_depth": 6, "multimodal_depth": 6, "dim_latents": 5120}},
    True: {"prism": "random-tiny", "vocabulary": 50, "tokens": 8,
           "model": {"dim": 32, "unimodal_depth": 1, "multimodal_depth": 1, "dim_latents": 32}},
}
FAILED = "FAILED"  # in the table, of a check that failed or was not run


def require_device() -> None:
    """Exit with one line where there is no GPU."""
    if not torch.cuda.is_available():
        raise SystemExit("gpu: torch finds no CUDA device here; --small is a dry run without one")


def rows(small: bool = False) -> list[Row]:
    """One row or more for each check."""
    checks = {
        "parity": _parity, "tests marked gpu": _tests, "fp16 overflow": _overflow, "training step": _step,
        "batch_size: auto": _auto_batch, "encoder": _encoder, "decoding": _decode, "resume": _resume, "epochs": _epochs,
        "loading": _loader,
    }
    started = time.monotonic()
    table: list[Row] = []
    for name, check in checks.items():
        seconds = time.monotonic() - started
        if seconds > _LIMIT:
            table.append(Row(name, FAILED, floor=f"not run: {seconds:.0f} s have passed"))
            continue
        table += _checked(name, partial(check, small))
    return [*table, Row("all checks", f"{time.monotonic() - started:.0f} s", wanted="under 600 s")]


def _checked(name: str, check: Callable[[], list[Row]]) -> list[Row]:
    """The rows of a check, or one that says why it failed."""
    print(f"gpu: {name} ...", file=sys.stderr, flush=True)
    try:
        return check()
    except (RuntimeError, subprocess.SubprocessError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[-300:].replace("|", "/")
        return [Row(name, FAILED, floor=reason)]


def _worker(case: str, **arguments: Any) -> dict[str, Any]:
    return in_process("benchmarks.gpu_worker", case, json.dumps(arguments), timeout=_EACH)


def _ours(case: str, **arguments: Any) -> dict[str, Any]:
    return in_process("benchmarks.our_worker", case, json.dumps(arguments), timeout=_EACH)


def _parity(small: bool) -> list[Row]:
    found = _worker("parity", tiles=8 if small else 500, **_SIZES[small])
    worst = max(found.values())
    if worst > 1e-2:
        raise RuntimeError(f"the device and the CPU differ by {worst:.1e} in float32")
    return [Row("largest difference from the CPU, float32",
                f"{found['encoder']:.0e} encoder, {found['decoder']:.0e} logits", wanted="1e-3")]


def _tests(small: bool) -> list[Row]:
    """On a CPU all of them skip. Only their files are given: to collect the whole suite takes a minute."""
    files = [path for path in sorted((ROOT / "tests").rglob("test_*.py"))
             if "mark.gpu" in path.read_text(encoding="utf-8")]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "gpu", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_EACH)
    last = done.stdout.strip().splitlines()[-1:] or ["no output"]
    if done.returncode:
        raise RuntimeError(f"{last[0]}: {'; '.join(re.findall(r'^(?:FAILED|ERROR) (.*)$', done.stdout, re.MULTILINE))}")
    return [Row("tests marked gpu", re.sub(r" in [\d.]+s.*|=", "", last[0]).strip())]


def _overflow(small: bool) -> list[Row]:
    found = _worker("overflow", **_SIZES[small])
    if not found["skipped"] or found["steps"] < 3:
        raise RuntimeError(f"{found['skipped']} steps skipped, {found['steps']} taken")
    return [Row("steps skipped from a loss scale that overflows", f"{found['skipped']}, then {found['steps']} taken",
                floor=f"scale {found['scale']:.0e}, loss {found['loss']:.2f}", wanted="at least 1, then 3")]


def _step(small: bool) -> list[Row]:
    result = []
    for precision in ("fp32",) if small else ("fp16", "bf16"):
        run = _worker("step", batch=4 if small else 32, precision=precision, **_SIZES[small])
        rate = run["flop"] / run["seconds"]
        tokens = _SIZES[small]["tokens"]
        result.append(Row(f"training step, {4 if small else 32} x {tokens} tokens, {run['precision']}",
                          f"{1e3 * run['seconds']:.1f} ms", peak=gigabytes(run["peak"]),
                          floor=f"MFU {rate / run['gemm']:.0%} of {run['gemm'] / 1e12:.1f} TFLOP/s measured"))
    return result


def _auto_batch(small: bool) -> list[Row]:
    found = _worker("auto_batch", slides=8 if small else 4096, **_SIZES[small])
    if found["halved"]:
        raise RuntimeError(f"{found['size']} slides were found, but a step of them does not fit")
    return [Row("batch_size: auto", f"{found['size']} slides", floor=f"found in {found['seconds']:.1f} s",
                wanted="a step of them fits")]


def _encoder(small: bool) -> list[Row]:
    tiles = 8 if small else 4000
    result = []
    precision = "fp16" if torch.cuda.is_available() else "fp32"  # a CPU takes minutes for a product in fp16
    for slides in (2,) if small else (1, 4):
        run = _ours("encode", prism=_SIZES[small]["prism"], tiles=tiles, slides=slides, precision=precision)
        seconds = run["seconds"] / slides
        share = encoder.flop(tiles)[0] / seconds / run["gemm"]
        case = f"encode {tiles} tiles, {slides} slides at once, each, {precision}"
        result.append(Row(case, f"{1e3 * seconds:.1f} ms",
                          peak=gigabytes(run["peak"]),
                          floor=f"MFU {share:.0%} of {run['gemm'] / 1e12:.1f} TFLOP/s measured", wanted="60 %"))
    return result


def _decode(small: bool) -> list[Row]:
    sizes = {key: _SIZES[small][key] for key in ("model", "vocabulary")}
    tokens = 8 if small else 100
    result = []
    for slides in (2,) if small else (1, 8):
        run = _ours("caption", tokens=tokens, slides=slides, beams=1, **sizes)
        floor = tokens * run["weight_bytes"] / run["read"]
        result.append(Row(f"{slides} greedy captions of {tokens} tokens", f"{run['seconds']:.2f} s",
                          peak=gigabytes(run["peak"]), floor=f"{run['seconds'] / floor:.1f}x of {floor:.2f} s, memory"))
    return result


def _epochs(small: bool) -> list[Row]:
    slides, tiles = (4, 8) if small else (16, 4000)
    with tempfile.TemporaryDirectory() as folder:
        epochs.make_slides(Path(folder), slides, tiles)
        run = _ours("epochs", folder=folder, batch=4, prism=_SIZES[small]["prism"], vocabulary=50 if small else 4000,
                       tokens=_SIZES[small]["tokens"], model=_SIZES[small]["model"])
    first, second = run["seconds"]
    return [Row(f"two epochs, {slides} slides of {tiles} tiles", f"{first:.1f} s with encoding, {second:.1f} s")]


def _loader(small: bool) -> list[Row]:
    return loader.rows(small)


def _resume(small: bool) -> list[Row]:
    """A run that is stopped after an epoch and resumed, against one that is not; by the script, as a user does it."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_slides(folder, 12)
        _train(folder, "whole")
        (folder / "again").mkdir()
        shutil.copy(folder / "whole" / "checkpoint_epoch_1.pth", folder / "again" / LAST)
        _train(folder, "again", "--resume", "auto")
        whole, again = (Checkpoint.load(folder / name / LAST).model for name in ("whole", "again"))
    far = max((weight.float() - again[name].float()).abs().max().item() for name, weight in whole.items())
    if far > 1e-3:
        raise RuntimeError(f"the weights of the resumed run differ by {far:.1e}")
    return [Row("resumed after an epoch, against not stopped", "bit-equal" if far == 0 else f"weights within {far:.0e}",
                wanted="bit-equal on a CPU")]


def _train(folder: Path, name: str, *more: str) -> None:
    command = [sys.executable, "train_finetune.py", "--prism", "random-tiny", "--embeddings_dir", folder / "embeddings",
               "--labels_file", folder / "labels.json", "--output_dir", folder / name, "--epochs", "2",
               "--save_every", "1", *more, "--set", f"training.log_dir={folder}/logs",
               f"data.latents_cache={folder}/cache", "data.views=1"]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=_EACH)
    if done.returncode:
        raise RuntimeError(done.stderr[-800:])
