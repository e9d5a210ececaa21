"""The slide encoder at full size: ours against the published code (prism-embedder 1.1.1), which is best in float32 on
a CPU and under autocast on a GPU.

Work is counted as the multiplications of the matrix products our formulation does (`flop`); softmax, norms and casts
count nothing. The floor is that work at the machine's own GEMM rate, measured in the same process.
"""

from __future__ import annotations

import tempfile
from math import log
from typing import Any

from .common import Row, compared
from .peers import run_both, run_ours, run_peer

_ROUNDS, _SEVERAL = 2, 4


def flop(tiles: int, slots: int = 513, dim: int = 1280, width: int = 2560) -> tuple[float, float]:
    """Floating-point operations for a slide: of our formulation (first layer without keys), of the published one."""
    block = 2 * slots * dim * (3 * dim + dim + 2 * dim + dim) + 4 * slots * slots * dim  # qkv, out, feed-forward
    cross = 2 * slots * dim * (dim + dim + 2 * dim + dim)  # q, out, feed-forward
    project, attend = 4 * tiles * width * dim, 4 * slots * tiles * dim
    latents = 48 * block + 8 * cross
    folded = 4 * slots * dim * width + 4 * slots * tiles * width
    return latents + folded + project + 7 * attend, latents + 2 * project + 8 * attend


def rows(small: bool = False) -> list[Row]:
    prism, unit, rounds = ("random-tiny", 4, 1) if small else ("random", 1000, _ROUNDS)
    ours, full = run_both("encode", rounds, prism=prism, tiles=4 * unit, slides=1, precision="fp32")
    result = [_same(prism, unit), _row(ours, full, "fp32", "1x")]
    for slides, wanted, of_floor in ((1, "2x", "60 %"), (_SEVERAL, "2.5x", "75 %")):
        ours = [run_ours("encode", prism=prism, tiles=4 * unit, slides=slides, precision="bf16") for _ in full]
        result.append(_row(ours, full, "bf16", f"{wanted}, {of_floor}", slides))
    for tiles in (unit, 16 * unit):
        ours, theirs = run_both("encode", 1, prism=prism, tiles=tiles, slides=1, precision="bf16")
        result.append(_row(ours, theirs, "bf16", "2x"))
    return [*result, *_memory(prism, unit), *_growth(prism, unit)]


def _row(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], precision: str, wanted: str, slides: int = 1) -> Row:
    tiles, per_slide = ours[0]["tiles"], min(run["seconds"] for run in ours) / slides
    gemm = max(run["gemm"] for run in ours)
    mine, published = (work / per_slide / gemm for work in flop(tiles))
    name = f"encode {tiles} tiles, {precision}" + (f", {slides} slides at once, each" if slides > 1 else "")
    return compared(name, ours, theirs, per=slides, wanted=wanted,
                    floor=f"{mine:.0%} of {gemm / 1e9:.0f} GFLOP/s (by the published FLOP {published:.0%})")


def _same(prism: str, tiles: int) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        run_ours("encode_to", prism=prism, tiles=tiles, folder=folder)
        far = run_peer("encode_to", tiles=tiles, folder=folder)["difference"]
    return Row("largest difference of any output, same weights, fp32", f"{far:.0e}", wanted="1e-4")


def _memory(prism: str, unit: int) -> list[Row]:
    result = []
    for count in (4 * unit, 16 * unit):
        extra, own = run_ours("encode_peak", prism=prism, tiles=count)["bytes"], count * 5120
        result.append(Row(f"extra memory, bf16, {count} float16 tiles", f"{extra / 1e6:.0f} MB",
                          floor=f"{extra / own:.1f}x the tiles' {own / 1e6:.0f} MB", wanted="3x"))
    return result


def _growth(prism: str, unit: int) -> list[Row]:
    """Exponents of the seconds over tiles, beyond the latents' own work, which does not depend on them; over slides."""
    by_tiles = run_ours("encode_growth", prism=prism, sizes=[[1, n * unit] for n in (16, 50, 100)], one=[1, 1])
    by_slides = run_ours("encode_growth", prism=prism, sizes=[[n, unit] for n in (1, 2, 4, 8)])
    told = ", ".join(f"{n} {s:.1f} s" for (_, n), s in by_tiles["seconds"])
    also = ", ".join(f"{n} {s:.1f} s" for (n, _), s in by_slides["seconds"])
    return [Row("growth with tiles, bf16", told, floor=f"exponent {_exponent(by_tiles, 1):.2f}", wanted="1.05"),
            Row(f"growth with slides of {unit} tiles, bf16", also, floor=f"exponent {_exponent(by_slides, 0):.2f}",
                wanted="1.05")]


def _exponent(grown: dict[str, Any], which: int) -> float:
    (first, fast), (last, slow) = grown["seconds"][0], grown["seconds"][-1]
    return log(max(slow - grown["base"], 1e-9) / max(fast - grown["base"], 1e-9)) / log(last[which] / first[which])
