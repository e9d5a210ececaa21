"""The demo: synthetic slides with Chinese descriptions; training is killed and resumed, then held-out slides captioned.

    python -m finetune.demo            # writes ./demo, 30 seconds on two cores

Needs no weights and no network. It runs the scripts as a user does, in subprocesses.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np

TISSUES = ("乳腺浸润性导管癌", "胃腺癌", "结肠腺癌", "肺鳞状细胞癌")
GRADES = ("高分化", "中分化", "低分化")
NECROSIS = ("未见坏死", "可见坏死")
_ROOT = Path(__file__).resolve().parent.parent
_SLIDES, _TILES, _WIDTH, _TILE = 240, (20, 60), 2560, 224

CONFIG = """\
data: {{embeddings_dir: {folder}/embeddings, labels_file: {folder}/labels.json, val_split: 0.15, views: 1}}
prism: {{weights: random-tiny}}
model: {{dim: 128, unimodal_depth: 2, multimodal_depth: 2, dim_latents: 128, num_img_queries: 32, heads: 4,
  dim_head: 32}}
training: {{batch_size: 12, epochs: 24, learning_rate: 1e-3, save_every: 8, workers: 0, eval_captions: 36,
  output_dir: {folder}/run, log_dir: {folder}/logs}}
"""


def make_slides(folder: Path, count: int = _SLIDES, seed: int = 0) -> None:
    """Write `count` slides as embeddings/ID.h5, (N, 2560) float16 with coords (N, 2), labels.json, and which tiles of a
    slide have necrosis as necrotic_tiles.json.

    A tile is noise plus the direction of its slide's tissue and grade; a tenth to a third of the tiles of a slide with
    necrosis carry the direction of necrosis instead of the grade's.
    """
    rng = np.random.default_rng(seed)
    directions = {name: rng.standard_normal(_WIDTH) for name in (*TISSUES, *GRADES, NECROSIS[1])}
    (folder / "embeddings").mkdir(parents=True, exist_ok=True)
    labels, necrotic = {}, {}
    for i in range(count):
        tissue, grade, necrosis = rng.choice(TISSUES), rng.choice(GRADES), rng.choice(NECROSIS)
        tiles = rng.standard_normal((rng.integers(*_TILES), _WIDTH)) + 0.5 * directions[tissue]
        dead = int(len(tiles) * rng.uniform(0.1, 0.33)) + 1 if necrosis == NECROSIS[1] else 0
        tiles[:dead] += 2 * directions[NECROSIS[1]]
        tiles[dead:] += 0.5 * directions[grade]
        with h5py.File(folder / "embeddings" / f"slide_{i:03d}.h5", "w") as file:
            order = rng.permutation(len(tiles))
            file["embeddings"] = tiles[order].astype(np.float16)
            file["coords"] = np.stack([order % 8, order // 8], axis=1) * _TILE  # necrotic tiles are adjacent
            file["coords"].attrs["patch_size_level0"] = _TILE
        labels[f"slide_{i:03d}"] = f"{tissue}，{grade}，{necrosis}。"
        necrotic[f"slide_{i:03d}"] = np.flatnonzero(order < dead).tolist()
    (folder / "labels.json").write_text(json.dumps(labels, ensure_ascii=False, indent=1), encoding="utf-8")
    (folder / "necrotic_tiles.json").write_text(json.dumps(necrotic), encoding="utf-8")


def _remove_demo(folder: Path) -> None:
    """Remove what an earlier demo has written, and nothing else that is in its folder."""
    for path in (folder / "embeddings").glob("slide_*.h5"):
        path.unlink()
    for name in ("labels.json", "necrotic_tiles.json", "captions.jsonl", ".captions.jsonl.unfinished"):
        (folder / name).unlink(missing_ok=True)
    for name in ("run", "logs"):
        shutil.rmtree(folder / name, ignore_errors=True)


def main() -> int:
    """Run the demo; returns 0 if at least nine in ten captions are exactly right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="where everything is written (default demo)")
    folder: Path = parser.parse_args().folder
    if folder.exists():
        if not (folder / "demo.yaml").exists():
            sys.exit(f"error: {folder}: not a demo folder; choose another --folder")
        _remove_demo(folder)
    started = time.monotonic()
    print(f"1. {_SLIDES} synthetic slides in {folder}/embeddings, descriptions in {folder}/labels.json", flush=True)
    make_slides(folder)
    config = folder / "demo.yaml"
    config.write_text(CONFIG.format(folder=folder.as_posix()), encoding="utf-8")
    train = [sys.executable, str(_ROOT / "train_with_config.py"), "--config", str(config), "--resume", "auto"]
    print(f"2. $ python train_with_config.py --config {config} --resume auto   (killed after some epochs)", flush=True)
    _kill_when(train, folder / "run" / "checkpoint_epoch_8.pth")
    print("3. the same command again: it resumes from the last checkpoint", flush=True)
    subprocess.run(train, check=True)
    print("4. captions of the slides that were held out, beside the truth", flush=True)
    infer = [sys.executable, str(_ROOT / "inference.py"), "--checkpoint", str(folder / "run" / "best_model.pth"),
             "--embeddings_dir", str(folder / "embeddings"), "--labels_file", str(folder / "labels.json"),
             "--split", "val", "--output", str(folder / "captions.jsonl")]
    subprocess.run(infer, check=True, stdout=subprocess.DEVNULL)
    return _report(folder, time.monotonic() - started)


def _kill_when(command: list[str], file: Path) -> None:
    """Run a command and kill it, without warning, once `file` is there."""
    with subprocess.Popen(command) as process:
        while process.poll() is None and not file.exists():
            time.sleep(0.05)
        if process.poll() is None:
            process.kill()
        elif process.returncode:
            sys.exit(process.returncode)


def _report(folder: Path, seconds: float) -> int:
    """Print captions beside the truth; 0 if nine in ten are exactly right."""
    labels = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    records = [json.loads(line) for line in (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
    for record in records:
        truth = labels[record["id"]]
        print(f"  {'=' if record['caption'] == truth else '!'} {record['id']}  {record['caption']}   (truth: {truth})")
    right = sum(r["caption"] == labels[r["id"]] for r in records)
    share = f"{right} of {len(records)} held-out slides ({right / len(records):.0%})"
    print(f"exactly right: {share}, {seconds:.0f} s in all")
    return 0 if right >= 0.9 * len(records) else 1


if __name__ == "__main__":
    sys.exit(main())
