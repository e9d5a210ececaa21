"""What the module tests share: files written with plain h5py and json, and how a refusal must look."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest

from finetune.common.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def refused(*words: object) -> Iterator[None]:
    """The block raises a `UserError` whose one printable line holds all `words`."""
    with pytest.raises(UserError) as caught:
        yield
    line = caught.value.line()
    assert line.isprintable() and len(line) <= 300, line
    assert line.count("; ") >= 1, f"no fix in: {line}"
    for word in words:
        assert str(word) in line, f"{word!r} is not in: {line}"


def random_tiles(count: int, width: int, seed: int = 0, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, width)).astype(dtype)


def write_h5(path: Path, data: np.ndarray, key: str = "embeddings", **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset(key, data=data, **options)
    return path


def write_slides(folder: Path, counts: dict[str, int], width: int = 6) -> Path:
    """`folder`/ID.h5 with so many random tiles for each id."""
    for seed, (slide_id, count) in enumerate(counts.items()):
        write_h5(folder / f"{slide_id}.h5", random_tiles(count, width, seed))
    return folder


def write_json(path: Path, data: object) -> Path:
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.fixture
def log_lines() -> Iterator[list[str]]:
    """The lines that the code under test logs."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("prism_coca")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lines
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture(scope="session")
def run_with_coords(tmp_path_factory):
    """A folder with embeddings (20 tiles with coordinates each), labels.json and a small trained run."""
    folder = tmp_path_factory.mktemp("explained")
    rng = np.random.default_rng(0)
    labels = {}
    for i in range(12):
        tiles = random_tiles(20, 2560, i) + (2 * rng.standard_normal(2560) if i % 2 else 0)
        path = write_h5(folder / "embeddings" / f"s{i}.h5", tiles, key="features")
        with h5py.File(path, "a") as file:
            file["coords"] = np.stack([np.arange(20) % 5, np.arange(20) // 5], 1) * 512
        labels[f"s{i}"] = "胃腺癌，高分化。" if i % 2 else "未见癌。"
    (folder / "labels.json").write_text(json.dumps(labels, ensure_ascii=False), encoding="utf-8")
    small = ["dim=32", "unimodal_depth=1", "multimodal_depth=1", "dim_latents=32", "num_img_queries=4", "heads=2", "dim_head=16"]
    subprocess.run([sys.executable, "train_finetune.py", "--prism", "random-tiny", "--embeddings_dir", folder / "embeddings",
                    "--labels_file", folder / "labels.json", "--output_dir", folder / "run", "--epochs", "25", "--lr", "3e-3",
                    "--set", f"training.log_dir={folder}/logs", "training.workers=0", *(f"model.{s}" for s in small)],
                   cwd=ROOT, check=True, capture_output=True)
    return folder
