"""Vectors of slides and texts in the contrastive space, as numpy: for retrieval, classes and nearest slides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from coca_pytorch import CoCa

from ..data.batch import encode_text
from ..data.tokenizer import Tokenizer

_TEXTS = 64  # embedded together


@torch.no_grad()
def embed_slides(coca: CoCa, image_tokens: torch.Tensor) -> np.ndarray:
    """Image tokens (B, n, D) -> unit vectors (B, dim_latents), float32."""
    return coca.img_to_latents(coca.embed_image(image_tokens=image_tokens)[0]).cpu().numpy()


@torch.no_grad()
def embed_texts(coca: CoCa, tokenizer: Tokenizer, texts: Sequence[str], max_seq_len: int) -> np.ndarray:
    """Unit vectors (texts, dim_latents), as in training: with the begin, without the end token."""
    device, rows = coca.temperature.device, []
    for begin in range(0, len(texts), _TEXTS):
        ids = [torch.tensor(encode_text(tokenizer, t, max_seq_len)[0][:-1]) for t in texts[begin:begin + _TEXTS]]
        text = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=tokenizer.pad_id)
        mask = torch.arange(text.shape[1]) < torch.tensor([[len(i)] for i in ids])
        rows.append(coca.text_to_latents(coca.embed_text(text.to(device), mask.to(device))[0]).cpu().numpy())
    return np.concatenate(rows)
