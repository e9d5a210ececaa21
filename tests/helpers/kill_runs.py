"""Training runs that are killed at a chosen point, for tests/training/test_resume.py: real `finetune.training.run.train`, tiny model.

All failpoints are here; the code under test has none. A run is forked from a server that has torch already imported,
so that one costs a fraction of a second. `kill` is POINT:COUNT[:SIGNAL], by default SIGKILL at the COUNT-th time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # an optimizer imports it, which takes a second: better once in the server than in each run

from finetune.checkpoints.format import Checkpoint, read_pth
from finetune.common import device
from finetune.config.schema import Config, apply_overrides
from finetune.data.slide_cache import SlideCache
from finetune.models import build as model
from finetune.training import loop, run, saver
from finetune.training.caption_validation import CaptionScores
from finetune.training.run_log import RunLog
from finetune.training.validation import Validator
from prism import PerceiverConfig, PrismSlideEncoder
from tests.helpers.files import write_json, write_slides

WIDTH = 8  # of a tile
SETTINGS = ["data.image_dim=8", "data.val_split=0.3", "data.embeddings_dir=../h5", "data.labels_file=../labels.json",
            "prism.weights=tiny", "model.image_dim=16", "model.dim=16", "model.unimodal_depth=1",
            "model.multimodal_depth=1", "model.dim_latents=8", "model.num_img_queries=2", "model.heads=2",
            "model.dim_head=8", "training.batch_size=2", "training.accum_freq=2", "training.epochs=4",
            "training.learning_rate=0.03", "training.save_every=2", "training.save_every_steps=2",
            "training.output_dir=run", "training.precision=fp32", "training.workers=0", "training.eval_captions=3",
            "training.monitor=val_loss"]
_SERVER = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")


def make_data(folder: Path) -> None:
    """14 slides: 10 to train on, which is 3 steps of 2 x 2 slides an epoch, and 4 to validate."""
    write_slides(folder / "h5", {f"s{i}": 2 + i % 3 for i in range(14)}, WIDTH)
    write_json(folder / "labels.json", {f"s{i}": f"{'胃肠肺'[i % 3]}腺癌，{i}级。" for i in range(14)})


def train_in(folder: Path, kill: str = "", mutation: str = "", *more: str) -> int:
    """Run `--resume auto` in `folder` in a subprocess; returns its exit code, -9 for SIGKILL."""
    folder.mkdir(exist_ok=True)
    if os.name == "posix":
        _SERVER.set_forkserver_preload([__name__])
    process = _SERVER.Process(target=_child, args=(str(folder), kill, mutation, more))
    process.start()
    process.join(60)
    assert process.exitcode is not None, f"{kill} {mutation}: hangs"
    return process.exitcode


def fingerprint(folder: Path) -> dict[str, str]:
    """{file: hash of what it holds} of a run folder: tensors, not the bytes of the .pth around them."""
    files = {p.name: _hash(read_pth(p)) for p in sorted((folder / "run").glob("*.pth"))}
    files["nearest.pt"] = _hash(read_pth(folder / "run" / "nearest.pt"))
    return files | {name: hashlib.sha256((folder / "run" / name).read_bytes()).hexdigest()
                    for name in ("metrics.jsonl", "validation_captions.jsonl")} | {
                    "others": " ".join(sorted(p.name for p in (folder / "run").iterdir() if p.suffix != ".pth"))}


def _hash(value: object) -> str:
    digest = hashlib.sha256()

    def add(item: object) -> None:
        if isinstance(item, torch.Tensor):
            digest.update(f"{item.dtype} {tuple(item.shape)}".encode())
            digest.update(item.reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(item, dict):
            for key, inner in item.items():
                digest.update(repr(key).encode())
                add(inner)
        elif isinstance(item, (list, tuple)):
            digest.update(f"{type(item).__name__} {len(item)}".encode())
            for inner in item:
                add(inner)
        else:
            digest.update(repr(item).encode())

    add(value)
    return digest.hexdigest()


def _child(folder: str, kill: str, mutation: str, more: tuple[str, ...]) -> None:
    os.chdir(folder)
    sys.stderr = sys.stdout = open("stderr.txt", "w", encoding="utf-8", buffering=1)  # noqa: SIM115
    torch.set_num_threads(1)
    _shrink()
    if kill:
        _install(*kill.split(":"))
    if mutation:
        MUTATIONS[mutation]()
    code = 2
    try:
        code = run.train(apply_overrides(Config(), [*SETTINGS, "model.probe_tokens=2", *more]), "auto")
    except Exception as error:
        print(error)
    finally:
        os._exit(code)  # what pytest has registered to happen at exit is not for a fork


def tiny_prism(weights: str, revision: str | None) -> PrismSlideEncoder:
    """In place of `load_prism`: milliseconds instead of seconds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        prism = PrismSlideEncoder(PerceiverConfig(latent_seq=3, latent_dim=16, context_dim=WIDTH, mhsa_heads=2,
                                                  perceiver_depth=1, transformer_depth=1)).freeze()
    prism.source, prism.sha256 = weights, "0" * 64
    return prism


def _shrink() -> None:
    """A tiny Prism, a loss scaler that moves every third step, noise from all generators, as dropout would draw it, and
    a validation loss that is lowest after the second of four epochs."""
    forward = model.SlideCaptioner.forward

    def noisy(self, *args, **options):
        losses = forward(self, *args, **options)
        noise = torch.rand(()).item() + random.random() + np.random.rand() if self.training else 0.0
        return dataclasses.replace(losses, caption_loss=losses.caption_loss * (1 + noise))

    end_epoch = loop.end_epoch

    def lowest_at_half_rate(parts, state):
        rate, peak = parts.optimizer.param_groups[0]["lr"], parts.learning_rate.keywords["peak"]
        loss = {"val_loss": abs(rate / peak - 0.5)}
        end_epoch(dataclasses.replace(parts, validate=lambda epoch: parts.validate(epoch) | loss), state)

    loop.end_epoch = lowest_at_half_rate
    saver._WORTH_SAVING = 0  # else it would depend on the clock what a kill loses
    model.load_prism = tiny_prism
    model.SlideCaptioner.forward = noisy
    device.Precision.scaler = lambda self: torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=3)


def _before(owner: object, name: str, do: Callable, when: Callable[..., bool] = lambda *a, **k: True) -> None:
    original = getattr(owner, name)

    def wrapped(*args, **kwargs):
        if when(*args, **kwargs):
            do()
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


def _after(owner: object, name: str, do: Callable, when: Callable[..., bool] = lambda *a, **k: True) -> None:
    original = getattr(owner, name)

    def wrapped(*args, **kwargs):
        result = original(*args, **kwargs)
        if when(*args, **kwargs):
            do()
        return result

    setattr(owner, name, wrapped)


def _install(point: str, count: str, signal_name: str = "SIGKILL") -> None:
    left = int(count)

    def hit() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), getattr(signal, signal_name))

    def half_written(content, file, save=torch.save) -> None:
        whole = io.BytesIO()
        save(content, whole)
        file.write(whole.getvalue()[: whole.tell() // 2])
        file.flush()
        hit()
        file.write(whole.getvalue()[whole.tell() // 2:])

    def to(*names: str) -> Callable[..., bool]:
        return lambda source, target: str(target).endswith(names)

    if point == "mid_write":
        torch.save = half_written
        return
    {"step": lambda: _after(loop, "train_step", hit), "validation": lambda: _before(Validator, "_scores", hit),
     "validated": lambda: _after(Validator, "_observe", hit), "captioned": lambda: _after(CaptionScores, "observe", hit),
     "scored": lambda: _after(CaptionScores, "scores", hit), "encoded": lambda: _after(SlideCache, "encode_all", hit),
     "cached": lambda: _after(SlideCache, "write", hit),
     "before_cached": lambda: _before(os, "replace", hit, to(".npy")),
     "before_log": lambda: _before(RunLog, "epoch", hit), "after_log": lambda: _after(RunLog, "epoch", hit),
     "before_write": lambda: _before(torch, "save", hit), "between": lambda: _after(os, "replace", hit, to("best_model.pth")),
     "before_replace": lambda: _before(os, "replace", hit, to(".pth")),
     "after_replace": lambda: _after(os, "replace", hit, to(".pth")),
     "finish": lambda: _before(os, "replace", hit, to("nearest.pt")),
     "start": lambda: _before(loop, "train_step", hit)}[point]()


def _forget_on_restore(**fields: object) -> None:
    saved_state = run.saved_state
    run.saved_state = lambda checkpoint: dataclasses.replace(saved_state(checkpoint), **fields)


def _write_in_place() -> None:
    def save(checkpoint, folder, names):
        content = {name: value for name, value in vars(checkpoint).items() if name not in ("calibration", "path")}
        for name in names:
            with open(folder / name, "wb") as file:
                torch.save(content, file)

    Checkpoint.save = save


def _ignore(owner: object, name: str) -> Callable[[], None]:
    return lambda: setattr(owner, name, lambda *args, **kwargs: None)


# Each takes one line out of saving or restoring; the comparison must then fail.
MUTATIONS: dict[str, Callable[[], None]] = {
    "optimizer": _ignore(torch.optim.AdamW, "load_state_dict"),
    "scaler": _ignore(torch.amp.GradScaler, "load_state_dict"),
    "torch generator": _ignore(torch, "set_rng_state"),
    "python generator": _ignore(random, "setstate"),
    "numpy generator": _ignore(np.random, "set_state"),
    "best": lambda: _forget_on_restore(best_loss=float("inf")),
    "position in the epoch": lambda: _forget_on_restore(batches_done=0),
    "running sums": lambda: _forget_on_restore(sums={}),
    "step": lambda: _forget_on_restore(step=0),
    "log truncation": _ignore(RunLog, "truncate"),
    "atomic write": _write_in_place,
}
