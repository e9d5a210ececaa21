"""Vectors of slides and texts in the contrastive space, as numpy: for retrieval, classes and nearest slides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..data.batch import encode_text
from ..data.tokenizer import Tokenizer
from .captioner import CaptionDecoder

_TEXTS = 64  # embedded together


@torch.no_grad()
def embed_slides(decoder: CaptionDecoder, image_tokens: torch.Tensor) -> np.ndarray:
    """Image tokens (B, n, D) -> unit vectors (B, dim_latents), float32."""
    image_embeds, _ = decoder.embed_image(image_tokens=image_tokens)
    return decoder.img_to_latents(image_embeds).cpu().numpy()


@torch.no_grad()
def embed_texts(decoder: CaptionDecoder, tokenizer: Tokenizer, texts: Sequence[str], max_seq_len: int) -> np.ndarray:
    """Unit vectors (texts, dim_latents), as in training: with the begin, without the end token."""
    rows = []
    for begin in range(0, len(texts), _TEXTS):
        ids = [torch.tensor(encode_text(tokenizer, t, max_seq_len)[0][:-1]) for t in texts[begin:begin + _TEXTS]]
        text = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=tokenizer.pad_id)
        mask = torch.arange(text.shape[1]) < torch.tensor([[len(row)] for row in ids])
        text_embeds, _ = decoder.embed_text(text.to(decoder.device), mask.to(decoder.device))
        rows.append(decoder.text_to_latents(text_embeds).cpu().numpy())
    return np.concatenate(rows)
