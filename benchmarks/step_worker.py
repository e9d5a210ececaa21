"""One training step of a CoCa on cached latents, in a process of its own; prints JSON. Run by `benchmarks.step`.

    python -m benchmarks.step_worker ours|upstream bf16|fp32 WORDS

Which `coca_pytorch` is imported, ours or upstream's, is a matter of PYTHONPATH: both have that name.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import torch

from benchmarks.common import peak_bytes, seconds

_BATCH, _TOKENS, _STEPS = 4, 128, 3


def make_step(who: str, precision: str, words: int) -> Callable[[], None]:
    """A function that takes one step: forward, backward, AdamW; with what each would use for it."""
    from coca_pytorch.coca_pytorch import CoCa

    torch.manual_seed(0)
    coca = CoCa(dim=1024, num_tokens=words, unimodal_depth=6, multimodal_depth=6, dim_latents=5120, image_dim=1280,
                pad_id=0)
    tokens, text = torch.randn(_BATCH, 513, 1280), torch.randint(4, words, (_BATCH, _TOKENS + 1))
    if who == "ours":
        from finetune.memory import keep_freed_memory
        from finetune.optim import build_optimizer

        keep_freed_memory()  # as a run does
        optimizer = build_optimizer(coca, 1e-4, 0.01)
    else:
        optimizer = torch.optim.AdamW(coca.parameters(), lr=1e-4, weight_decay=0.01)

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = coca(text, image_tokens=tokens, return_loss=True)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def main() -> None:
    who, precision, words = sys.argv[1:]
    times: list[float] = []

    def work() -> None:
        step = make_step(who, precision, int(words))
        times.extend(seconds(step) for _ in range(_STEPS))

    peak = peak_bytes(work)
    print(json.dumps({"seconds": min(times[1:]), "peak": peak}))  # the first step also fills the optimizer's state


if __name__ == "__main__":
    main()
