"""Two epochs over slides on disk, ours against the usual pipeline (read, encode, step, in each epoch).

    python -m benchmarks.epochs [--small]

16 slides of 4000 tiles, batches of 4, texts of 128 tokens of 4000 words, the default captioner; the published encoder.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import h5py
import numpy as np

from .common import Row
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
        case = {"folder": folder, "batch": 4, "tokens": 128, "words": 4000, "model": _SMALL if small else _MODEL,
                "precision": "bf16"}
        ours, theirs = run_ours("epochs", **case), run_peer("epochs", **case)
    pairs = zip(ours["seconds"], theirs["seconds"], strict=True)
    result = [Row(f"epoch {n}", f"{mine:.1f} s",
                  f"read, reference encoder, CoCa-pytorch {other:.1f} s: {other / mine:.1f}x", wanted)
              for n, (mine, other), wanted in zip((1, 2), pairs, ("3x", "10x"), strict=True)]
    return [*result, Row("peak memory of both epochs", f"{ours['peak_gb']:.1f} GB", f"{theirs['peak_gb']:.1f} GB")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="only check that it runs")
    for row in rows(parser.parse_args().small):
        print(row.line())


if __name__ == "__main__":
    main()
