"""Several processes on one machine: seconds of a training step over 8 cached slides, by how many processes share it.

On a machine whose cores one process can fill, two processes cannot be faster; the row says what they cost. dim 512,
6 + 6 layers, texts of 128 tokens, a vocabulary of 4000. Run by `python -m benchmarks scaling`; as a module,
under torchrun, it is one of the processes.
"""

from __future__ import annotations

import json
import sys

import torch

from coca_pytorch import CoCa
from finetune.common.device import resolve_precision
from finetune.common.distributed import World, join_world
from finetune.data.batch import Batch
from finetune.data.sampler import split_for_rank
from finetune.models.captioner import SlideCaptioner
from finetune.training.objective import Objective
from finetune.training.optim import build_optimizer
from prism import load_prism

from .common import Row, in_process, seconds

_SLIDES, _STEPS = 8, 4
_FULL = {"dim": 512, "unimodal_depth": 6, "multimodal_depth": 6, "tokens": 128, "vocabulary": 4000}
_TINY = {"dim": 32, "unimodal_depth": 1, "multimodal_depth": 1, "tokens": 8, "vocabulary": 50}


def rows(small: bool = False) -> list[Row]:
    layouts = [(1, 1, 1), (1, 2, 1), (1, 1, 2), (2, 1, 1)]  # processes, threads of each, micro-batches of each
    if small:
        layouts = layouts[-1:]
    found = {layout: _measured(*layout, small) for layout in layouts}
    result = []
    for (processes, threads, parts), run in found.items():
        rival = found.get((1, 2, 1), run)
        gradients = f"; {run['sum_seconds']:.2f} s of it sum {run['gradient_bytes'] / 1e6:.0f} MB of gradients"
        result.append(Row(
            f"step of {_SLIDES} slides: {processes} process{'es' * (processes > 1)} x {threads} thread"
            f"{'s' * (threads > 1)}{f', {parts} micro-batches' if parts > 1 else ''}",
            f"{run['seconds']:.2f} s{gradients if processes > 1 else ''}",
            ratio=f"{rival['seconds'] / run['seconds']:.2f}x of 1 process x 2 threads"))
    return result


def _measured(processes: int, threads: int, parts: int, small: bool) -> dict[str, float]:
    worker = ["benchmarks.scaling", json.dumps({"threads": threads, "parts": parts, **(_TINY if small else _FULL)})]
    if processes == 1:
        return in_process(*worker)
    return in_process("torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m", *worker)


def _steps(world: World, threads: int, parts: int, tokens: int, vocabulary: int, **model: int) -> dict[str, float]:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    coca = CoCa(num_tokens=vocabulary, dim_latents=512, image_dim=1280, **model)
    captioner = SlideCaptioner(load_prism("random-tiny"), coca, "latents")
    objective = Objective(captioner, resolve_precision("auto", torch.device("cpu")), world)
    optimizer = build_optimizer(captioner.named_parameters(), 1e-4, 0.01)
    text = torch.randint(4, vocabulary, (_SLIDES, tokens))
    whole = Batch([str(i) for i in range(_SLIDES)], None, None, text, text.roll(-1, 1),
                  torch.ones_like(text, dtype=torch.bool), torch.randn(_SLIDES, 513, 1280))
    pieces = whole.split(_SLIDES // (world.size * parts))
    mine = [pieces[i] for [i] in split_for_rank([[i] for i in range(len(pieces))], world.rank, world.size)]

    def step() -> None:
        objective.backward(mine, torch.amp.GradScaler("cpu", enabled=False))
        optimizer.step()

    times = []
    for _ in range(_STEPS):
        optimizer.zero_grad(set_to_none=True)
        times.append(seconds(step))
    parameters = list(captioner.trained_parameters())
    return {"seconds": min(times[1:]), "sum_seconds": min(seconds(lambda: world.sum_gradients(parameters))
                                                          for _ in range(_STEPS)),
            "gradient_bytes": sum(p.grad.nbytes for p in parameters)}


if __name__ == "__main__":
    with join_world(torch.device("cpu")) as this:
        measured = _steps(this, **json.loads(sys.argv[1]))
        if this.is_main:
            print(json.dumps(measured))
