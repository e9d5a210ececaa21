"""Fixtures shared by the tests."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from tests.helpers.files import ROOT, random_tiles, write_h5
from tests.helpers.scripts import TEXTS

LONG_FILES = ["scripts/test_benchmarks.py", "scripts/test_end_to_end.py", "training/test_resume.py", "training/test_torchrun.py",
              "scripts/test_learning_benchmark.py", "scripts/test_fields_benchmark.py", "scripts/test_language_model_runs.py",
              "scripts/test_prism_runs.py", "training/test_distributed.py", "pages/test_browser.py", "scripts/test_fuzz.py"]


def pytest_configure() -> None:
    """A worker of pytest-xdist has a core: threads of its own would only wait for each other."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes that tests start


@pytest.hookimpl(trylast=True)  # of those that -m leaves
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped where there is none. Long files, then those of many tests come first: a worker has
    a file for itself, and one that began a long one at the end would keep the others waiting."""
    tests = Counter(item.path for item in items)
    long = {ROOT / "tests" / name: rank for rank, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: (long.get(item.path, len(long)), -tests[item.path]))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


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
    """A folder with embeddings (20 tiles with coordinates each), labels.json and a small trained run. What is cancer shows
    in the first five tiles."""
    folder = tmp_path_factory.mktemp("explained")
    direction = np.random.default_rng(0).standard_normal(2560)
    labels = {}
    for i in range(12):
        tiles = random_tiles(20, 2560, i)
        tiles[:5] += 6 * direction if i % 2 else 0
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


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """12 slides whose tiles lean towards one of three directions, which is what their text says."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((3, 2560))
    (folder / "embeddings" / "nested").mkdir(parents=True)
    labels = {}
    for i in range(12):
        place = folder / "embeddings" / ("nested" if i % 2 else "")
        with h5py.File(place / f"s{i:02d}.h5", "w") as file:
            tiles = rng.standard_normal((rng.integers(3, 9), 2560)) + directions[i % 3]
            file["features" if i % 2 else "embeddings"] = tiles.astype(np.float16)
        labels[f"s{i:02d}"] = TEXTS[i % 3]
    (folder / "labels.json").write_text(json.dumps(labels, ensure_ascii=False), encoding="utf-8")
    return folder
