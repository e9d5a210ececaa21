"""Two epochs over slides on disk, ours against the usual pipeline (read, encode, step, in each epoch).

16 slides of 4000 tiles, batches of 4, texts of 128 tokens, a vocabulary of 4000, the default captioner, the published
encoder.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import h5py
import numpy as np

from .common import Row, gigabytes
from .peers import run_ours, run_peer

_MODEL = {"dim": 512, "unimodal_depth": 6, "multimodal_depth": 6, "dim_latents": 512}
_SMALL = {"dim": 32, "unimodal_depth": 1, "multimodal_depth": 1, "dim_latents": 32}


def make_slides(folder: Path, count: int, tiles: int) -> None:
    rng = np.random.default_rng(0)
    for i in range(count):
        with h5py.File(folder / f"slide_{i:02d}.h5", "w") as file:
            file["embeddings"] = rng.standard_normal((tiles, 2560), dtype=np.float32).astype(np.float16)


def rows(small: bool = False) -> list[Row]:
    slides, tiles = (4, 8) if small else (16, 4000)
    with tempfile.TemporaryDirectory() as folder:
        make_slides(Path(folder), slides, tiles)
        case = {"folder": folder, "prism": "random-tiny" if small else "random", "batch": 4, "tokens": 128,
                "vocabulary": 4000, "model": _SMALL if small else _MODEL}
        ours, theirs = run_ours("epochs", **case), run_peer("epochs", **case)
    pairs = zip(ours["seconds"], theirs["seconds"], strict=True)
    peaks = f"{gigabytes(ours['peak'])} / {gigabytes(theirs['peak'])}"
    return [Row(f"epoch {n}, {slides} slides of {tiles} tiles", f"{mine:.1f} s", f"{other:.1f} s",
                f"{other / mine:.2f}x", peak=peaks, wanted=wanted)
            for n, (mine, other), wanted in zip((1, 2), pairs, ("3x", "10x"), strict=True)]
