"""Captions from CoCa's key/value cache; the search itself is `prism.generation`, which Prism's own decoder uses too."""

from __future__ import annotations

import torch

from coca_pytorch import CoCa
from prism import search

from .config import GenerationOptions


@torch.no_grad()
def generate(coca: CoCa, image_tokens: torch.Tensor, options: GenerationOptions, *, bos_id: int, eos_id: int,
             pad_id: int) -> list[list[int]]:
    """Captions of B slides as ids, without begin and end token.

    image_tokens: (B, n, image width), what CoCa was trained on. A slide's greedy or beam caption does not depend on the
    other slides of its batch.
    """
    _, pooled = coca.embed_image(image_tokens=image_tokens)  # (B, q, dim)
    prompt = torch.full((len(pooled), 1), bos_id, device=pooled.device)
    return search(coca.decode_step, coca.start_decoding(pooled), prompt, options, eos_id=eos_id, pad_id=pad_id,
                  banned=tuple({bos_id, pad_id} - {eos_id}))  # of some tokenizers they are one and the same
