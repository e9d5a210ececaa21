"""Decoding at full size: 100 tokens greedily, against upstream CoCa-pytorch 0.1.0, which has no cache.

The floor reads each weight that a token needs once, at the rate a sum over 1 GB reads memory in the same run.
"""

from __future__ import annotations

import torch

from coca_pytorch import CoCa
from finetune.config import GenerationOptions
from finetune.generate import generate

from .common import Row, in_process, in_turn, read_work
from .peers import install

_TOKENS, _BOS, _NO_END, _WORDS = 100, 1, -1, 42384


def rows() -> list[Row]:
    torch.manual_seed(0)
    coca = CoCa(dim=1024, num_tokens=_WORDS, unimodal_depth=6, multimodal_depth=6, dim_latents=5120, image_dim=1280)
    coca.eval()
    slides = torch.randn(8, 513, 1280)
    with torch.no_grad():
        reading, read_bytes = read_work()
        works = {"read": reading, "one": lambda: _caption(coca, slides[:1]), "eight": lambda: _caption(coca, slides),
                 "beam": lambda: _caption(coca, slides[:1], num_beams=4)}
        least = {name: min(times) for name, times in in_turn(works, 2).items()}
    uncached = in_process("benchmarks.caption_worker", str(_WORDS), str(_TOKENS), path=install())["seconds"]
    floor = _TOKENS * _weight_bytes(coca) / (read_bytes / least["read"])
    return [
        Row("memory read (sum)", f"{read_bytes / least['read'] / 1e9:.1f} GB/s"),
        Row("greedy caption of 100 tokens, bf16", f"{least['one']:.2f} s",
            f"floor {floor:.2f} s: {least['one'] / floor:.1f}x", "2x"),
        Row("upstream's, without a cache", f"{uncached:.1f} s", f"{uncached / least['one']:.1f}x", "10x"),
        Row("8 slides at once, per slide", f"{least['eight'] / 8:.2f} s",
            f"{8 * least['one'] / least['eight']:.1f}x one by one", "4x"),
        Row("beam search, 4 beams, one slide", f"{least['beam']:.2f} s", f"{least['beam'] / least['one']:.1f}x greedy"),
    ]


def _caption(coca: CoCa, image_tokens: torch.Tensor, **options: int) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        generate(coca, image_tokens, GenerationOptions(max_length=_TOKENS + 1, **options), bos_id=_BOS, eos_id=_NO_END,
                 pad_id=0)


def _weight_bytes(coca: CoCa) -> int:
    """Bytes of the matrices a token goes through, in bfloat16; keys and values of the image are computed once."""
    layers = [*coca.unimodal_layers.parameters(), *coca.token_emb.parameters()]
    layers += [p for name, p in coca.multimodal_layers.named_parameters() if "to_kv" not in name]
    return 2 * sum(p.numel() for p in layers)
