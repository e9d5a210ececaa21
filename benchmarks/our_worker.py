"""One measurement of this project, in a process of its own: python -m benchmarks.our_worker CASE JSON."""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

from coca_pytorch import CoCa
from finetune.batching import Batches, BatchOrder, Sample
from finetune.distributed import World
from finetune.latents import SlideCache
from finetune.loop import Parts, TrainState, train_step
from finetune.model import SlideCaptioner
from finetune.objective import Objective
from finetune.optim import build_optimizer, resolve_device, resolve_precision
from finetune.run import encode
from finetune.runlog import RunLog
from finetune.tiles import find_files, index_slides
from prism import load_prism

from .common import peak_bytes


def epochs(folder: str, batch: int, tokens: int, words: int, model: dict[str, int], precision: str) -> dict[str, Any]:
    """Seconds of two epochs: in the first the slide cache is filled, headers read and all; in the second only read."""
    device = resolve_device("auto")
    resolved = resolve_precision(precision, device)
    coca = CoCa(num_tokens=words, image_dim=1280, **model)
    captioner = SlideCaptioner(load_prism("random"), coca, "latents").to(device)
    optimizer = build_optimizer(captioner, 1e-4, 0.01)
    generator = torch.Generator().manual_seed(0)
    seconds = []
    for epoch in range(2):
        start = time.perf_counter()
        files = find_files(folder)
        slides, _ = index_slides(files, list(files), None, 2560)
        texts = torch.randint(4, words, (len(slides), tokens + 1), generator=generator).tolist()
        samples = [Sample(s, t) for s, t in zip(slides, texts, strict=True)]
        cache = SlideCache.of(Path(folder) / "cache", captioner.prism.sha256, resolved.name,
                              *captioner.image_tokens_shape)
        cache.fill(slides, lambda tiles, mask: encode(captioner, resolved, tiles, mask))
        order = BatchOrder([(0, tokens)] * len(slides), batch, 0, shuffle=True)
        batches = Batches(samples, order, cache, 0, workers=2, encoded=True)
        parts = Parts(Objective(captioner, resolved, World()), optimizer, resolved.scaler(), batches, None,
                      RunLog(Path(folder)), lambda *_: None, lambda: False, epochs=2, peak_lr=1e-4, warmup=0,
                      grad_clip_norm=1.0)
        for group in batches.epoch(epoch):
            assert math.isfinite(train_step(parts, group, 1e-4, TrainState())["loss"])
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds, "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}


def encode_peak(tiles: int) -> dict[str, Any]:
    """Bytes that encoding one slide of float16 tiles takes beside the tiles and the weights."""
    prism = load_prism("random")

    def encode_half(count: int) -> None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            prism.slide_representations(embeddings[:, :count])

    embeddings = torch.randn(1, tiles, 2560).half()
    encode_half(1)  # makes the bfloat16 copies of the weights
    return {"bytes": peak_bytes(lambda: encode_half(tiles))}


CASES = {"epochs": epochs, "encode_peak": encode_peak}

if __name__ == "__main__":
    print(json.dumps(CASES[sys.argv[1]](**json.loads(sys.argv[2]))))
