"""The scripts as subprocesses, with flags for a tiny run; checks of their refusals and checkpoints."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from tests.helpers.files import ROOT

TINY = ["model.dim=32", "model.unimodal_depth=1", "model.multimodal_depth=1", "model.dim_latents=16",
        "model.num_img_queries=4", "model.heads=2", "model.dim_head=16", "training.workers=0"]
TEXTS = ["乳腺浸润性导管癌，Ⅱ级。", "胃腺癌，低分化，HER-2 (3+)。", "结肠腺癌，大小3.5cm。"]


def run(script: str, *args: object, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / script), *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, encoding="utf-8", timeout=300,
                          env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})})


def assert_one_error(result: subprocess.CompletedProcess, *words: str) -> None:
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert result.returncode == 2 and len(errors) == 1 and "Traceback" not in result.stderr, result.stderr
    for word in words:
        assert word in errors[0], errors[0]


def flags(data: Path, *more: object) -> list[object]:
    return ["--prism", "random-tiny", "--embeddings_dir", data / "embeddings", "--labels_file", data / "labels.json",
            "--batch_size", 3, "--lr", "3e-3", "--val_split", 0.25, "--output_dir", "run", *more]


def flat(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.reshape(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return {k: flat(v) for k, v in value.items()}
    return [flat(v) for v in value] if isinstance(value, (list, tuple)) else value


def assert_equal_state(left: Path, right: Path) -> None:
    """Everything that training changes is bit-equal."""
    first, second = (torch.load(p, weights_only=True) for p in (left, right))
    for key in ("model", "optimizer", "scaler", "progress", "random_states"):
        assert flat(first[key]) == flat(second[key]), f"{key} differs"


def without_judge(record: dict) -> dict:
    """A record without what nearest.pt adds, which an exported folder and Prism alone do not have."""
    return {key: value for key, value in record.items() if key not in ("unusual", "unusual_reason", "made_from")}
