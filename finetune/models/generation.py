"""Captions from CoCa's key/value cache; the search itself is `prism.generation`, which Prism's own decoder uses too."""

from __future__ import annotations

import torch

from coca_pytorch import CoCa
from prism import GenerationOptions, search


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


@torch.no_grad()
def confidences(coca: CoCa, image_tokens: torch.Tensor, captions: list[list[int]], max_length: int, *, bos_id: int,
                eos_id: int, pad_id: int, temperature: float = 1.0) -> list[float]:
    """Mean probability of a caption's tokens, its end among them unless `max_length` cut it; of each of B captions.

    One pass over the finished captions, so that it is the same for greedy search, beams and sampling, whose own rules
    move probabilities. temperature: from `calibration`; logits are divided by it.
    """
    rows = [[bos_id, *ids, *[eos_id] * (len(ids) + 2 <= max_length)] for ids in captions]
    length = max(map(len, rows))
    ids = torch.tensor([row + [pad_id] * (length - len(row)) for row in rows], device=image_tokens.device)
    mask = torch.arange(length - 1, device=ids.device) < torch.tensor([[len(r) - 1] for r in rows], device=ids.device)
    logits = coca(ids[:, :-1], image_tokens=image_tokens, text_mask=mask)
    chosen = (logits.float() / temperature).softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)
    return (chosen.where(mask, 0).sum(1) / mask.sum(1)).tolist()
