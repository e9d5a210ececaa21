"""The slide encoder at full size: ours against the published code (prism-embedder 1.1.1) on the same weights, in
float32, which is its best on a CPU.

The GEMM rates are of 2048 x 2048 x 2048, in the same rounds. Work is counted as the multiplications of the matrix
products our formulation does (`flop`); softmax, norms and casts count nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from math import log

import torch

from prism import PrismSlideEncoder, load_prism

from .common import Row, gemm_work, in_turn, ratio, seconds
from .peers import install, run_ours

Encoder = Callable[[torch.Tensor], dict[str, torch.Tensor]]
_TILES, _SEVERAL, _ROUNDS = 4000, 4, 2
_GROWTH = (16_000, 50_000, 100_000)


def flop(tiles: int, slots: int = 513, dim: int = 1280, width: int = 2560) -> tuple[float, float]:
    """Floating-point operations for a slide: of our formulation (first layer without keys), of the published one."""
    block = 2 * slots * dim * (3 * dim + dim + 2 * dim + dim) + 4 * slots * slots * dim  # qkv, out, feed-forward
    cross = 2 * slots * dim * (dim + dim + 2 * dim + dim)  # q, out, feed-forward
    project, attend = 4 * tiles * width * dim, 4 * slots * tiles * dim
    latents = 48 * block + 8 * cross
    folded = 4 * slots * dim * width + 4 * slots * tiles * width
    return latents + folded + project + 7 * attend, latents + 2 * project + 8 * attend


def rows() -> list[Row]:
    prism = load_prism("random")
    with torch.no_grad():
        reference = _reference(prism)
        return [*_speed(prism, reference), *_sizes(prism, reference), *_memory(), *_growth(prism)]


def _reference(prism: PrismSlideEncoder) -> Encoder:
    sys.path.append(str(install()))  # last: our coca_pytorch stays ours
    from .peer_worker import reference_encoder

    reference = reference_encoder()
    reference.load_state_dict(prism.image_resampler.state_dict())
    return reference


def _half(prism: PrismSlideEncoder, tiles: torch.Tensor) -> Callable[[], dict[str, torch.Tensor]]:
    def work() -> dict[str, torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            return prism.slide_representations(tiles)
    return work


def _speed(prism: PrismSlideEncoder, reference: Encoder) -> list[Row]:
    tiles = torch.randn(_SEVERAL, _TILES, 2560)
    (gemm32, work32), (gemm16, work16) = gemm_work(torch.float32), gemm_work(torch.bfloat16)
    works = {"gemm32": gemm32, "gemm16": gemm16, "reference": lambda: reference(tiles[:1]),
             "ours32": lambda: prism(tiles[:1]), "one": _half(prism, tiles[:1]), "several": _half(prism, tiles)}
    far = (reference(tiles[:1])["image_latents"] - prism(tiles[:1])["image_latents"]).abs().max().item()
    seconds(works["one"])  # makes the copies of the weights
    times = in_turn(works, _ROUNDS)
    times["several"] = [t / _SEVERAL for t in times["several"]]
    least = {name: min(values) for name, values in times.items()}
    ours, theirs = flop(_TILES)

    def share(name: str, gemm: float) -> str:
        return f"{ours / least[name] / gemm:.0%} of the GEMM rate (counting the published FLOP: " \
               f"{theirs / least[name] / gemm:.0%})"

    rate32, rate16 = work32 / least["gemm32"], work16 / least["gemm16"]
    return [
        Row("GEMM 2048^3", f"{rate32 / 1e9:.0f} GFLOP/s fp32", f"{rate16 / 1e9:.0f} GFLOP/s bf16"),
        Row("reference encoder, 4000 tiles, fp32", f"{least['reference']:.2f} s", f"largest difference {far:.0e}"),
        Row("ours, fp32", f"{least['ours32']:.2f} s", f"{ratio(times['reference'], times['ours32']):.2f}x", "1x"),
        Row("", share("ours32", rate32)),
        Row("ours, bf16, one slide", f"{least['one']:.2f} s", f"{ratio(times['reference'], times['one']):.2f}x", "2x"),
        Row("", share("one", rate16), "", "60 %"),
        Row(f"ours, bf16, {_SEVERAL} slides, per slide", f"{least['several']:.2f} s",
            f"{ratio(times['reference'], times['several']):.2f}x", "2.5x"),
        Row("", share("several", rate16), "", "75 %"),
    ]


def _sizes(prism: PrismSlideEncoder, reference: Encoder) -> list[Row]:
    result = []
    for count in (1000, 16000):
        tiles = torch.randn(1, count, 2560)
        times = in_turn({"reference": lambda t=tiles: reference(t), "ours": _half(prism, tiles)}, 1)
        result.append(Row(f"encode {count} tiles, bf16", f"{times['ours'][0]:.2f} s",
                          f"reference {times['reference'][0]:.2f} s: {ratio(times['reference'], times['ours']):.2f}x",
                          "2x"))
    return result


def _memory() -> list[Row]:
    result = []
    for count in (4000, 16000):
        extra, own = run_ours("encode_peak", tiles=count)["bytes"], count * 5120
        result.append(Row(f"extra memory, bf16, {count} float16 tiles", f"{extra / 1e6:.0f} MB",
                          f"tiles {own / 1e6:.0f} MB: {extra / own:.1f}x", "3x"))
    return result


def _growth(prism: PrismSlideEncoder) -> list[Row]:
    """Seconds beyond the latents' own work, which does not depend on the tiles: how these grow."""
    times = {n: seconds(_half(prism, torch.randn(1, n, 2560).half())) for n in (1, *_GROWTH)}
    first, last = _GROWTH[0], _GROWTH[-1]
    exponent = log((times[last] - times[1]) / (times[first] - times[1])) / log(last / first)
    told = ", ".join(f"{n}: {t:.1f} s" for n, t in times.items())
    return [Row("growth with tiles, bf16", told, f"exponent of what is beyond the 1 tile: {exponent:.2f}", "1.05")]
