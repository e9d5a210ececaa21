"""The captioner on cached latents, 4 slides of 513 image tokens: training step and decoding, against upstream
CoCa-pytorch 0.1.0, which has no cache.

dim 1024, 6 + 6 layers, latents 5120. Upstream decodes with a plain greedy loop that recomputes text and
image for each token, in its best mode (autocast around the loop, so that weights are cast once).
"""

from __future__ import annotations

from .common import Row, compared, gigabytes
from .peers import run_both, run_ours, run_peer

_FULL = {"dim": 1024, "unimodal_depth": 6, "multimodal_depth": 6, "dim_latents": 5120}
_TINY = {"dim": 32, "unimodal_depth": 1, "multimodal_depth": 1, "dim_latents": 32}
_ROUNDS = 3


def step(small: bool = False) -> list[Row]:
    """The floor: products at the GEMM rate, and AdamW's reads and writes (28 bytes a parameter) at the read rate."""
    model, tokens, rounds = (_TINY, 8, 1) if small else (_FULL, 128, _ROUNDS)
    result = []
    for vocabulary in (50, 40) if small else (42384, 4000):
        ours, theirs = run_both("step", rounds, model=model, vocabulary=vocabulary, tokens=tokens)
        run = min(ours, key=lambda r: r["seconds"])
        floor = run["flop"] / run["gemm"] + 28 * run["parameters"] / run["read"]
        kept = 16 * run["parameters"]  # weight, gradient, two moments
        row = compared(f"training step, 4 x {tokens} tokens, vocabulary {vocabulary}", ours, theirs,
                       wanted="1.6x, memory 0.75x",
                       floor=f"{floor:.2f} s: {floor / run['seconds']:.0%}; {gigabytes(kept)}")
        result.append(row)
    return result


def decode(small: bool = False) -> list[Row]:
    """The floor: each weight a token needs is read once, in bfloat16, at the rate of a sum over 1 GB."""
    model, vocabulary, tokens, rounds = (_TINY, 50, 8, 1) if small else (_FULL, 42384, 100, _ROUNDS)
    case = {"model": model, "vocabulary": vocabulary, "tokens": tokens}
    ours, theirs = run_both("caption", rounds, slides=1, beams=1, **case)
    run = min(ours, key=lambda r: r["seconds"])
    floor = tokens * run["weight_bytes"] / run["read"]
    peer = [run_peer("caption", slides=8, beams=1, **case)]
    eight, beam = ([run_ours("caption", slides=slides, beams=beams, **case)] for slides, beams in ((8, 1), (1, 4)))
    batched, searched = eight[0]["seconds"] / 8, beam[0]["seconds"]
    return [
        compared(f"greedy caption of {tokens} tokens, bf16", ours, theirs, wanted="10x, floor 2x",
                 floor=f"{floor:.2f} s: {run['seconds'] / floor:.1f}x ({run['read'] / 1e9:.0f} GB/s)"),
        compared("the same for 8 slides at once", eight, peer, wanted="4x one by one",
                 floor=f"{run['seconds'] / batched:.1f}x one by one"),
        Row("beam search, 4 beams, one slide", f"{searched:.2f} s", floor=f"{searched / run['seconds']:.1f}x greedy")]
