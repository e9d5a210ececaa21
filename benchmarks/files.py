"""What is done with files: reading tiles, indexing headers, starting the scripts, padding of batches."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np

from finetune.data.header_cache import read_headers, write_headers
from finetune.data.sampler import BatchOrder
from finetune.data.slides import find_files, index_slides, inspect_slide
from finetune.data.tile_reader import read_tiles

from .common import ROOT, Row, in_turn, ratio, seconds

_ROUNDS = 5


def reading(small: bool = False) -> list[Row]:
    """A contiguous float16 slide against a plain map of the same bytes; both are summed, so that all is read."""
    count = 160 if small else 16000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.h5"
        with h5py.File(path, "w") as file:
            file["embeddings"] = np.zeros((count, 2560), np.float16)
        slide = inspect_slide(path, None, 2560)
        works = {"ours": lambda: read_tiles(slide, check=False).view(np.uint64).sum(),
                 "map": lambda: np.memmap(path, np.uint64, "r", slide.offset, (count, 640)).sum(),
                 "checked": lambda: read_tiles(slide)}
        times = in_turn(works, _ROUNDS)
    gigabytes = count * 5120 / 1e9
    mapped = f"{ratio(times['map'], times['ours']):.0%} of {gigabytes / min(times['map']):.1f} GB/s, numpy.memmap"
    return [Row(f"read a contiguous slide, {1e3 * gigabytes:.0f} MB", f"{gigabytes / min(times['ours']):.1f} GB/s",
                floor=mapped, wanted="90 %"),
            Row("the same with the check for NaN", f"{gigabytes / min(times['checked']):.1f} GB/s")]


def indexing(small: bool = False) -> list[Row]:
    """Headers of many small files, then again with the manifest of the first time, each file looked at for changes."""
    count = 40 if small else 20000
    with tempfile.TemporaryDirectory() as folder:
        for i in range(count):
            with h5py.File(Path(folder) / f"slide_{i}.h5", "w") as file:
                file["embeddings"] = np.zeros((2, 8), np.float16)
        paths = [path for paths in find_files(folder).values() for path in paths]
        wanted, manifest, found = (None, 8, None), Path(folder) / "index.json", []
        first = seconds(lambda: found.extend(index_slides(paths, *wanted)[0]))
        write_headers(manifest, *wanted, found)
        again = seconds(lambda: index_slides(paths, *wanted, read_headers(manifest, *wanted)))
    cores = os.cpu_count() or 1
    return [Row(f"index {count} headers", f"{count / first / cores:.0f} files/s per core of {cores}", wanted="2000"),
            Row("index again, nothing changed", f"{count / again:.0f} files/s")]


def startup(small: bool = False) -> list[Row]:
    works = {name: lambda name=name: subprocess.run([sys.executable, name, "--help"], cwd=ROOT, check=True,
                                                    stdout=subprocess.DEVNULL)
             for name in ("train_finetune.py", "train_with_config.py", "inference.py")}
    return [Row(f"{name} --help", f"{min(times):.2f} s", wanted="0.5 s")
            for name, times in in_turn(works, 1 if small else 3).items()]


def padding(captions: str | None) -> list[Row]:
    """captions: CSV with a column `text`. A text of w words counts as w + 2 tokens."""
    if captions is None:
        return [Row("padding of batches", "not measured: give --captions FILE.csv")]
    with open(captions, encoding="utf-8", newline="") as file:
        lengths = [min(128, len(row["text"].split()) + 2) for row in csv.DictReader(file)]
    sizes = [(0, n) for n in lengths]
    budget = 16 * round(sum(lengths) / len(lengths))
    by_order = {"batches of 16": BatchOrder(sizes, 16, 0, shuffle=True),
                f"budget of {budget} tokens": BatchOrder(sizes, 16, 0, shuffle=True, max_tokens=budget)}
    return [Row(f"padding, {len(sizes)} captions, {name}", f"{order.padding(0):.1%}",
                wanted="10 %" if "budget" in name else "") for name, order in by_order.items()]
