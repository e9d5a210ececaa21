"""The two losses of CoCa (https://arxiv.org/abs/2205.01917): captioning and contrastive.

Letters: b batch, t text tokens, m real positions of the batch, v words of the vocabulary.
Both are computed in float32 from the logits on, whatever autocast says.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class CoCaLosses:
    """Scalars: `loss` is the weighted sum that is trained on, the parts are unweighted (0 for a part of weight 0)."""

    loss: Tensor
    caption_loss: Tensor
    contrastive_loss: Tensor


def caption_loss(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the next word over the m real positions of a batch; 0 if there are none.

    hidden: (m, dim), normalised. weight: (v, dim), the word embeddings. labels: (m,) ids.
    (`F.linear_cross_entropy` is no faster, and its chunked form takes 4 to 9 times as long on CPU.)
    """
    logits = F.linear(hidden, weight).float()  # (m, v)
    return F.cross_entropy(logits, labels, reduction="sum") / max(len(labels), 1)


def contrastive_loss(text_latents: Tensor, image_latents: Tensor, logit_scale: Tensor,
                     text_groups: Tensor | None = None) -> Tensor:
    """CLIP's symmetric loss (https://arxiv.org/abs/2103.00020): text i belongs to image i. A batch of one gives 0.

    text_latents, image_latents: (b, dim_latents), L2-normalised; b may be a batch gathered from all processes.
    logit_scale: scalar. text_groups: (b,), equal numbers for equal texts: a slide whose text is the same word for word
    is no negative, so these pairs are left out of both softmax denominators.
    """
    similarity = cosine_similarity(text_latents, image_latents) * logit_scale.float()  # (b, b)
    own = torch.arange(len(similarity), device=similarity.device)
    if text_groups is not None:
        same = text_groups.unsqueeze(0) == text_groups.unsqueeze(1)
        similarity = similarity.masked_fill(same.fill_diagonal_(False), float("-inf"))
    return (F.cross_entropy(similarity, own) + F.cross_entropy(similarity.T, own)) / 2


def cosine_similarity(text_latents: Tensor, image_latents: Tensor) -> Tensor:
    """(i, dim_latents) and (j, dim_latents), L2-normalised -> cosines (i, j) in float32.

    Not in bfloat16: times a logit scale of 100 its rounding would move a logit by 0.4.
    """
    with torch.autocast(text_latents.device.type, enabled=False):
        return text_latents.float() @ image_latents.float().T


def equal_text_groups(text: Tensor, mask: Tensor) -> Tensor:
    """text (b, t) ids, mask (b, t) true = a real token -> (b,): the first row with equal tokens."""
    real = text.masked_fill(~mask, -1)
    equal = (real.unsqueeze(0) == real.unsqueeze(1)).all(-1)  # (b, b)
    return equal.long().argmax(-1)
