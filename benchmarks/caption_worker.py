"""Captioning without a cache, in a process of its own; prints JSON. Run by `benchmarks.decode`.

    python -m benchmarks.caption_worker WORDS TOKENS

The greedy loop that one writes around CoCa-pytorch: the whole text and image anew for each token, best mode (bfloat16
autocast around the loop, so that weights are cast once). Every 11th step is timed, the others cost as much on average.
"""

from __future__ import annotations

import json
import sys

import torch

from benchmarks.common import seconds


def main() -> None:
    from coca_pytorch.coca_pytorch import CoCa

    words, tokens = map(int, sys.argv[1:])
    torch.manual_seed(0)
    coca = CoCa(dim=1024, num_tokens=words, unimodal_depth=6, multimodal_depth=6, dim_latents=5120, image_dim=1280)
    image_tokens = torch.randn(1, 513, 1280)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        def step(length: int) -> None:
            coca.eval()(torch.ones(1, length, dtype=torch.long), image_tokens=image_tokens)[:, -1].argmax(-1)

        step(tokens)  # casts the weights
        times = [seconds(lambda n=n: step(n)) for n in range(1, tokens + 1, 11)]
    print(json.dumps({"seconds": tokens * sum(times) / len(times)}))


if __name__ == "__main__":
    main()
