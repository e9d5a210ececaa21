"""One check of a device, in a process of its own: python -m benchmarks.gpu_worker CASE JSON. Full sizes on a GPU."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch

from coca_pytorch import CoCa
from finetune.common.device import Precision, resolve_precision
from finetune.common.distributed import World
from finetune.data.batch import Batch, Sample
from finetune.data.slides import SlideFile
from finetune.models.captioner import SlideCaptioner
from finetune.training.batch_size_finder import largest_batch
from finetune.training.loop import Parts, train_step
from finetune.training.objective import Objective
from finetune.training.optim import build_optimizer
from finetune.training.run_log import RunLog
from finetune.training.state import TrainState
from prism import load_prism

from .common import gemm_rate, peak_bytes, timed
from .our_worker import DEVICE

_SCALE = 2.0**40  # of the loss: its gradient overflows float16 until the scale has been halved often enough


def parity(prism: str, tiles: int, model: dict[str, int], vocabulary: int, tokens: int) -> dict[str, Any]:
    """Largest differences between this device and the CPU, both in float32: slide encoder and captioner."""
    captioner = _captioner(prism, model, vocabulary)
    embeddings = torch.randn(1, tiles, captioner.prism.tile_dim)
    text = torch.randint(4, vocabulary, (1, tokens))
    results = []
    for device in (torch.device("cpu"), DEVICE):
        captioner.to(device).eval()
        with torch.no_grad():
            image = captioner.image_tokens(embeddings.to(device), torch.ones(1, tiles, dtype=torch.bool))
            mask = torch.ones_like(text).bool().to(device)
            logits = captioner.decoder(text.to(device), image_tokens=image, text_mask=mask)
        results.append((image.cpu(), logits.cpu()))
    encoder, decoder = ((one - other).abs().max().item() for one, other in zip(*results, strict=True))
    return {"encoder": encoder, "decoder": decoder}


def step(prism: str, model: dict[str, int], vocabulary: int, tokens: int, batch: int, precision: str) -> dict[str, Any]:
    """A step of training on cached slides, as a run takes it: both losses, AdamW, loss scaling where it is needed."""
    captioner = _captioner(prism, model, vocabulary).to(DEVICE)
    parts = _parts(captioner, resolve_precision(precision, DEVICE))
    one = _batch(captioner, vocabulary, tokens, batch)
    state = TrainState()

    def work() -> None:
        train_step(parts, [one], 1e-4, state)

    work()  # makes the state of the optimizer
    peak = peak_bytes(work, DEVICE)
    in_layers = sum(p.numel() for p in captioner.decoder.parameters() if p.ndim == 2)
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[parts.objective.precision.name]
    return {"seconds": timed(work, DEVICE, 5), "peak": peak, "precision": parts.objective.precision.name,
            "flop": 6.0 * batch * (tokens + 1) * in_layers, "gemm": gemm_rate(dtype, DEVICE)}


def auto_batch(prism: str, model: dict[str, int], vocabulary: int, tokens: int, slides: int) -> dict[str, Any]:
    """What `training.batch_size: auto` finds, the time it takes, and whether a step of that size fits."""
    captioner = _captioner(prism, model, vocabulary).to(DEVICE)
    parts = _parts(captioner, resolve_precision("auto", DEVICE))
    samples = [Sample(SlideFile(str(i), str(i), "x", 1), [1, *range(4, 4 + tokens - 1), vocabulary - 1])
               for i in range(slides)]
    start = time.perf_counter()
    size = largest_batch(parts.objective, samples, None, cached=True)
    seconds = time.perf_counter() - start
    batch = _batch(captioner, vocabulary, tokens, size)
    for _ in range(2):
        train_step(parts, [batch], 1e-4, TrainState())
    return {"size": size, "seconds": seconds, "halved": parts.objective.max_slides is not None}


def overflow(prism: str, model: dict[str, int], vocabulary: int, tokens: int) -> dict[str, Any]:
    """Steps in float16 (in float32 on a CPU) from a loss scale that overflows: skipped, until the scale fits."""
    captioner = _captioner(prism, model, vocabulary).to(DEVICE)
    precision = resolve_precision("fp16" if DEVICE.type == "cuda" else "fp32", DEVICE)
    parts = _parts(captioner, precision)
    parts.scaler = torch.amp.GradScaler(DEVICE.type, init_scale=_SCALE if DEVICE.type == "cuda" else 2.0**127)
    before = {name: weight.clone() for name, weight in captioner.saved_state().items()}
    state, steps = TrainState(), 0
    while state.step < 3 and steps < 60:
        report = train_step(parts, [_batch(captioner, vocabulary, tokens, 4)], 1e-4, state)
        steps += 1
        now = captioner.saved_state()
        if state.step == 0 and not all(torch.equal(now[name], weight) for name, weight in before.items()):
            raise RuntimeError("a step that overflowed has changed the weights")
    return {"skipped": state.skipped, "steps": state.step, "scale": parts.scaler.get_scale(), "loss": report["loss"]}


def _captioner(prism: str, model: dict[str, int], vocabulary: int) -> SlideCaptioner:
    torch.manual_seed(0)
    encoder = load_prism(prism)
    decoder = CoCa(num_tokens=vocabulary, image_dim=encoder.image_dim, **model)
    return SlideCaptioner(encoder, decoder, "latents")


def _parts(captioner: SlideCaptioner, precision: Precision) -> Parts:
    objective = Objective(captioner, precision, World())
    optimizer = build_optimizer(captioner.named_trained_parameters(), 1e-4, 0.01)
    return Parts(objective, optimizer, precision.scaler(), [], lambda step: 1e-4, None, RunLog(None), lambda *_: None,
                 lambda: False, epochs=1, grad_clip_norm=1.0)


def _batch(captioner: SlideCaptioner, vocabulary: int, tokens: int, slides: int) -> Batch:
    """Random encoded slides with texts of `tokens` tokens, on the device."""
    ids = torch.randint(4, vocabulary, (slides, tokens + 1), device=DEVICE)
    image_tokens = torch.randn(slides, *captioner.image_tokens_shape, device=DEVICE).half()
    return Batch([""] * slides, None, None, ids[:, :-1], ids[:, 1:], torch.ones_like(ids[:, 1:]).bool(), image_tokens,
                 [tokens] * slides)


CASES = {case.__name__: case for case in (parity, step, auto_batch, overflow)}

if __name__ == "__main__":
    print(json.dumps(CASES[sys.argv[1]](**json.loads(sys.argv[2]))))
