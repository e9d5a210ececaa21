"""Training step on cached latents at full size: ours against upstream CoCa-pytorch 0.1.0, both with bfloat16 autocast.

4 slides of 513 x 1280 image tokens, 128 text tokens; dim 1024, 6 + 6 layers, latents 5120. Each run has a process of
its own; ours and theirs take turns.
"""

from __future__ import annotations

from .common import ROOT, Row, in_process, ratio
from .peers import install

_ROUNDS = 2


def rows() -> list[Row]:
    upstream, result = install(), []
    for words in (42384, 4000):
        runs: dict[str, list[dict[str, float]]] = {"ours": [], "upstream": []}
        for _ in range(_ROUNDS):
            for who, path in (("ours", ROOT), ("upstream", upstream)):
                runs[who].append(in_process("benchmarks.step_worker", who, "bf16", str(words), path=path))
        times = {who: [run["seconds"] for run in done] for who, done in runs.items()}
        peaks = {who: min(run["peak"] for run in done) for who, done in runs.items()}
        result += [
            Row(f"training step, 4 x 128 tokens, {words} words", f"{min(times['ours']):.2f} s",
                f"upstream {min(times['upstream']):.2f} s: {ratio(times['upstream'], times['ours']):.2f}x", "1.6x"),
            Row(f"its peak memory, {words} words", f"{peaks['ours'] / 1e9:.2f} GB",
                f"upstream {peaks['upstream'] / 1e9:.2f} GB: {peaks['ours'] / peaks['upstream']:.2f}x", "0.75x")]
    return result
