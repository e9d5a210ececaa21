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
from safetensors.torch import save_file, save_model

from coca_pytorch import CoCa
from finetune.common.device import keep_freed_memory, resolve_device, resolve_precision
from finetune.common.distributed import World
from finetune.data.batch import Sample
from finetune.data.loader import BatchLoader
from finetune.data.sampler import BatchOrder
from finetune.data.slide_cache import SlideCache
from finetune.data.slides import find_files, index_slides
from finetune.models.captioner import SlideCaptioner
from finetune.models.generation import generate
from finetune.training.loop import Parts, train_step
from finetune.training.objective import Objective
from finetune.training.optim import build_optimizer
from finetune.training.run_log import RunLog
from finetune.training.setup import encode as encode_slides
from finetune.training.state import TrainState
from prism import GenerationOptions, load_prism

from .common import gemm_rate, peak_bytes, read_rate, timed

DEVICE = resolve_device("auto")
_DTYPE = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_BOS, _NO_END = 1, -1


def encode(prism: str, tiles: int, slides: int, precision: str) -> dict[str, Any]:
    """Seconds and peak memory of encoding slides of `tiles` tiles in one call."""
    encoder, resolved = load_prism(prism).to(DEVICE), resolve_precision(precision, DEVICE)
    embeddings = torch.randn(slides, tiles, encoder.tile_dim, device=DEVICE)

    @torch.no_grad()
    def work() -> None:
        with resolved.autocast():
            encoder.slide_representations(embeddings)

    work()  # makes the half copies of the weights
    peak = peak_bytes(work, DEVICE)
    return {"tiles": tiles, "seconds": timed(work, DEVICE), "peak": peak, "gemm": gemm_rate(_DTYPE[precision], DEVICE)}


def encode_to(prism: str, tiles: int, folder: str) -> dict[str, Any]:
    """Leave weights, tiles and what comes out in `folder`, for the peer to compute the same."""
    encoder, embeddings = load_prism(prism), torch.randn(1, tiles, 2560)
    with torch.no_grad():
        ours = encoder.slide_representations(embeddings)
    save_model(encoder.image_resampler, str(Path(folder) / "weights.safetensors"))  # layers share weights
    save_file({"tiles": embeddings, **{k: v.contiguous() for k, v in ours.items()}}, Path(folder) / "ours.safetensors")
    return {}


def encode_peak(prism: str, tiles: int) -> dict[str, Any]:
    """Bytes that encoding one slide of float16 tiles takes beside the tiles and the weights."""
    encoder, resolved = load_prism(prism).to(DEVICE), resolve_precision("bf16", DEVICE)
    embeddings = torch.randn(1, tiles, encoder.tile_dim, device=DEVICE).half()

    @torch.no_grad()
    def work(count: int) -> None:
        with resolved.autocast():
            encoder.slide_representations(embeddings[:, :count])

    work(1)  # makes the half copies of the weights
    return {"bytes": peak_bytes(lambda: work(tiles), DEVICE)}


def encode_growth(prism: str, sizes: list[list[int]], one: list[int] | None = None) -> dict[str, Any]:
    """Seconds for each (slides, tiles), and for `one`, the base they are to be counted from."""
    encoder, resolved = load_prism(prism).to(DEVICE), resolve_precision("bf16", DEVICE)

    @torch.no_grad()
    def measured(slides: int, tiles: int) -> float:
        embeddings = torch.randn(slides, tiles, encoder.tile_dim, device=DEVICE).half()

        def work() -> None:
            with resolved.autocast():
                encoder.slide_representations(embeddings)
        return timed(work, DEVICE, 2)

    measured(1, 1)
    return {"seconds": [(size, measured(*size)) for size in sizes], "base": measured(*one) if one else 0.0}


def _coca(model: dict[str, int], vocabulary: int) -> CoCa:
    torch.manual_seed(0)
    return CoCa(num_tokens=vocabulary, image_dim=1280, **model).to(DEVICE)


def step(model: dict[str, int], vocabulary: int, tokens: int) -> dict[str, Any]:
    """The second training step: forward, backward, AdamW (the first one also makes the optimizer's state)."""
    keep_freed_memory(DEVICE)  # as a run does
    text = torch.randint(4, vocabulary, (4, tokens + 1), device=DEVICE)
    image_tokens, resolved, found = torch.randn(4, 513, 1280, device=DEVICE), resolve_precision("bf16", DEVICE), {}

    def work() -> None:
        coca = _coca(model, vocabulary)
        optimizer = build_optimizer(coca.named_parameters(), 1e-4, 0.01)

        def one() -> None:
            with resolved.autocast():
                loss = coca(text, image_tokens=image_tokens, return_loss=True)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        one()
        in_layers = sum(p.numel() for p in coca.parameters() if p.ndim == 2) - coca.img_queries.numel()
        found.update(seconds=timed(one, DEVICE, 2), parameters=sum(p.numel() for p in coca.parameters()),
                     flop=6.0 * 4 * (tokens + 1) * in_layers)

    found["peak"] = peak_bytes(work, DEVICE)
    return found | {"gemm": gemm_rate(torch.bfloat16, DEVICE), "read": read_rate(DEVICE)}


def caption(model: dict[str, int], vocabulary: int, tokens: int, slides: int, beams: int) -> dict[str, Any]:
    """Captions of `tokens` tokens each; `weight_bytes` go through for a token, in bfloat16."""
    coca, image_tokens = _coca(model, vocabulary).eval(), torch.randn(slides, 513, 1280, device=DEVICE)
    options, resolved = GenerationOptions(max_length=tokens + 1, num_beams=beams), resolve_precision("bf16", DEVICE)

    @torch.no_grad()
    def work() -> None:
        with resolved.autocast():
            generate(coca, image_tokens, options, bos_id=_BOS, eos_id=_NO_END, pad_id=0)

    peak = peak_bytes(work, DEVICE)
    layers = [*coca.unimodal_layers.parameters(), *coca.token_emb.parameters()]
    # keys and values of the image are computed once
    layers += [p for name, p in coca.multimodal_layers.named_parameters() if "to_kv" not in name]
    return {"seconds": timed(work, DEVICE), "peak": peak, "read": read_rate(DEVICE),
            "weight_bytes": 2 * sum(p.numel() for p in layers)}


def epochs(folder: str, prism: str, batch: int, tokens: int, vocabulary: int, model: dict[str, int]) -> dict[str, Any]:
    """Seconds of two epochs: in the first the slide cache is filled, headers read and all; in the second only read."""
    keep_freed_memory(DEVICE)
    resolved = resolve_precision("bf16", DEVICE)
    encoder = load_prism(prism)
    captioner = SlideCaptioner(encoder, CoCa(num_tokens=vocabulary, image_dim=encoder.image_dim, **model), "latents")
    captioner.to(DEVICE)
    optimizer = build_optimizer(captioner.named_parameters(), 1e-4, 0.01)
    generator = torch.Generator().manual_seed(0)
    seconds = []
    for epoch in range(2):
        start = time.perf_counter()
        paths = [path for paths in find_files(folder).values() for path in paths]
        slides, _ = index_slides(paths, None, encoder.tile_dim)
        texts = torch.randint(4, vocabulary, (len(slides), tokens + 1), generator=generator).tolist()
        samples = [Sample(s, t) for s, t in zip(slides, texts, strict=True)]
        cache = SlideCache.of(Path(folder) / "cache", captioner.prism.sha256, resolved.name,
                              *captioner.image_tokens_shape)
        cache.fill(slides, lambda tiles, mask: encode_slides(captioner, resolved, tiles, mask))
        order = BatchOrder([(0, tokens)] * len(slides), batch, 0, shuffle=True)
        batches = BatchLoader(samples, order, cache, 0, workers=2, device=DEVICE)
        parts = Parts(Objective(captioner, resolved, World()), optimizer, resolved.scaler(), batches, lambda step: 1e-4,
                      None, RunLog(Path(folder)), lambda *_: None, lambda: False, epochs=2, grad_clip_norm=1.0)
        for group in batches.epoch(epoch):
            assert math.isfinite(train_step(parts, group, 1e-4, TrainState())["loss"])
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


CASES = {case.__name__: case for case in (encode, encode_to, encode_peak, encode_growth, step, caption, epochs)}

if __name__ == "__main__":
    print(json.dumps(CASES[sys.argv[1]](**json.loads(sys.argv[2]))))
