"""The two losses of CoCa (https://arxiv.org/abs/2205.01917): captioning and contrastive.

Both are computed in float32 from the logits on, also under autocast.

Shapes: b batch, t text tokens, m real positions of the batch, v size of the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# odd constants of SplitMix64, signed: step of its counter, another one for the position, its two multipliers
_SPLITMIX = (-0x61C8864680B583EB, 0x1F83D9ABFB41BD6B, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)


@dataclass(frozen=True)
class CoCaLosses:
    """Scalars: `loss` is the weighted sum that is trained on, the parts are unweighted (0 for a part of weight 0)."""

    loss: Tensor
    caption_loss: Tensor
    contrastive_loss: Tensor


@dataclass(frozen=True)
class CoCaOutputs:
    """The parts of a batch's losses, to be joined over micro-batches and processes before the losses are computed.

    Attributes:
        text_latents, image_latents: (b, dim_latents), L2-normalised; None if the contrastive loss has weight 0.
        text_groups: (b,), equal numbers for equal texts, in this and any other batch.
        caption_loss: Scalar, the sum over `num_tokens` tokens; 0 if it has weight 0 or was not requested.
        num_tokens: Number of labels in the caption loss; 0 if that is not computed.
        logits: (b, t, v), only if requested.
    """

    text_latents: Tensor | None
    image_latents: Tensor | None
    text_groups: Tensor
    caption_loss: Tensor
    num_tokens: int
    logits: Tensor | None = None

    def detach(self) -> CoCaOutputs:
        """A copy without graph and logits."""
        text_latents, image_latents = self.text_latents, self.image_latents
        if text_latents is not None:
            text_latents, image_latents = text_latents.detach(), image_latents.detach()
        return CoCaOutputs(text_latents, image_latents, self.text_groups, self.caption_loss.detach(), self.num_tokens)


def caption_loss(hidden: Tensor, weight: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Summed cross-entropy of the next token over the m real positions of a batch.

    Args:
        hidden: (m, dim), normalised.
        weight: (v, dim), the token embeddings.
        labels: (m,) ids.
        smoothing: Epsilon of label smoothing (https://arxiv.org/abs/1512.00567).
    """
    # `F.linear_cross_entropy` is no faster, and its chunked form takes 4 to 9 times as long on CPU
    logits = F.linear(hidden, weight).float()  # (m, v)
    return F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)


def contrastive_loss(text_latents: Tensor, image_latents: Tensor, logit_scale: Tensor,
                     text_groups: Tensor | None = None, rows: slice = slice(None)) -> Tensor:
    """CLIP's symmetric loss (https://arxiv.org/abs/2103.00020): text i belongs to image i. A batch of one gives 0.

    Args:
        text_latents, image_latents: (b, dim_latents), L2-normalised; b may be a batch gathered from all processes.
        logit_scale: Scalar.
        text_groups: (b,), equal numbers for equal texts: a slide with an identical text is not a negative, so these
            pairs are left out of both softmax denominators.
        rows: Texts and images whose part of the loss is computed, in memory of rows x b. The parts of all rows add up
            to the loss.
    """
    own = torch.arange(len(text_latents), device=text_latents.device)[rows]
    total = torch.zeros((), device=text_latents.device)
    for queries, keys in ((text_latents, image_latents), (image_latents, text_latents)):
        logits = cosine_similarity(queries[rows], keys) * logit_scale.float()  # (rows, b)
        if text_groups is not None:
            same = text_groups[rows].unsqueeze(1) == text_groups.unsqueeze(0)
            same = same.scatter(1, own.unsqueeze(1), False)
            logits = logits.masked_fill(same, float("-inf"))
        total = total + F.cross_entropy(logits, own, reduction="sum")
    return total / (2 * len(text_latents))


def siglip_loss(text_latents: Tensor, image_latents: Tensor, logit_scale: Tensor, logit_bias: Tensor,
                text_groups: Tensor | None = None, rows: slice = slice(None)) -> Tensor:
    """SigLIP's loss (https://arxiv.org/abs/2303.15343): a binary classification of each pair by itself.

    The sum over all pairs divided by b, as there. Pairs of another slide with an equal text are left out.

    Args:
        logit_bias: Scalar, added to each scaled cosine.
        others: As in `contrastive_loss`.
    """
    own = torch.arange(len(text_latents), device=text_latents.device)[rows]
    logits = cosine_similarity(text_latents[rows], image_latents) * logit_scale.float() + logit_bias.float()
    match = torch.zeros_like(logits).scatter(1, own.unsqueeze(1), 1.0)
    loss = F.binary_cross_entropy_with_logits(logits, match, reduction="none")
    if text_groups is not None:
        same = text_groups[rows].unsqueeze(1) == text_groups.unsqueeze(0)
        loss = loss.masked_fill(same & (match == 0), 0.0)
    return loss.sum() / len(text_latents)


def cosine_similarity(text_latents: Tensor, image_latents: Tensor) -> Tensor:
    """(i, dim_latents) and (j, dim_latents), L2-normalised -> cosines (i, j) in float32.

    Not in bfloat16: times a logit scale of 100 its rounding would move a logit by 0.4.
    """
    with torch.autocast(text_latents.device.type, enabled=False):
        return text_latents.float() @ image_latents.float().T


def equal_text_groups(text: Tensor, mask: Tensor) -> Tensor:
    """text (b, t) ids, mask (b, t) true = a real token -> (b,): equal numbers for equal texts, in any two batches.

    A 64-bit hash, the sum over the tokens of one random-looking number for each token at its position (SplitMix64,
    https://doi.org/10.1145/2660193.2660195): among 100 000 texts the probability that any two collide is 3e-10.
    """
    place = torch.arange(1, text.shape[1] + 1, device=text.device)
    x = text * _SPLITMIX[0] + place * _SPLITMIX[1]  # all of this modulo 2^64
    x = (x ^ _shifted(x, 30)) * _SPLITMIX[2]
    x = (x ^ _shifted(x, 27)) * _SPLITMIX[3]
    return (x ^ _shifted(x, 31)).masked_fill(~mask, 0).sum(1)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """x >> bits with zeros from the left: torch has no unsigned arithmetic for it."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
