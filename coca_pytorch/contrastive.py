"""The base class of contrastive captioners: the contrastive space, its temperature and its loss.

Shapes: i texts, j images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .layers import EmbedToLatents
from .losses import contrastive_loss, cosine_similarity, siglip_loss

# CLIP (https://arxiv.org/abs/2103.00020) initializes the logit scale to 1 / 0.07 and clips it at 100, which its authors
# found necessary for stability
_FIRST_TEMPERATURE = math.log(1 / 0.07)
_LAST_TEMPERATURE = math.log(100)
# SigLIP's initial values (https://arxiv.org/abs/2303.15343): nearly all pairs are negatives
_SIGLIP_TEMPERATURE, _SIGLIP_BIAS = math.log(10), -10.0


class ContrastiveCaptioner(nn.Module):
    """Base class of contrastive captioners: the loss weights, and the contrastive space with its loss.

    Parameters are direct attributes, as published state dicts have them. A subclass sets `text_to_latents` and
    `img_to_latents` (`EmbedToLatents`) and calls `init_temperature`.

    Attributes:
        temperature: Logarithm of the logit scale, one number.
        logit_bias: SigLIP's bias, (1,); None for CLIP.
        max_positions: Longest text in tokens; None = any.
        supports: Which of compile, grad_checkpointing and probe_tokens a subclass has.
        never_generated: Ids that captions must not contain, beside begin and padding.
    """

    text_to_latents: EmbedToLatents
    img_to_latents: EmbedToLatents
    temperature: nn.Parameter
    logit_bias: nn.Parameter | None
    max_positions: int | None = None
    supports: frozenset[str] = frozenset()
    never_generated: tuple[int, ...] = ()

    def __init__(self, caption_loss_weight: float, contrastive_loss_weight: float, label_smoothing: float) -> None:
        """
        Args:
            caption_loss_weight, contrastive_loss_weight: A loss of weight 0 is not computed.
            label_smoothing: Epsilon of the caption loss in training mode.
        """
        super().__init__()
        self.caption_loss_weight, self.contrastive_loss_weight = caption_loss_weight, contrastive_loss_weight
        self.label_smoothing = label_smoothing

    def init_temperature(self, contrastive: str, temperature: nn.Parameter | None = None) -> None:
        """Initialize the temperature.

        Args:
            contrastive: The loss, clip or siglip.
            temperature: Of a pretrained model, to continue from with CLIP's loss.
        """
        if temperature is None:
            temperature = nn.Parameter(torch.tensor([_FIRST_TEMPERATURE]))
        self.temperature = temperature
        self.register_parameter("logit_bias", None)
        if contrastive == "siglip":
            self.use_siglip()

    def use_siglip(self) -> None:
        """Switch to SigLIP's loss, with its initial temperature and bias."""
        self.logit_bias = nn.Parameter(torch.tensor([_SIGLIP_BIAS]))
        with torch.no_grad():
            self.temperature.fill_(_SIGLIP_TEMPERATURE)

    def cast_frozen(self, dtype: torch.dtype) -> None:
        """Keep weights that do not train in `dtype`, where they are so large that it matters; here they are not."""

    def describe(self) -> dict[str, Any]:
        """What a checkpoint needs, beside the config, to rebuild the model and the weights that it does not hold."""
        return {}

    @property
    def smoothing(self) -> float:
        """Epsilon of label smoothing, 0 in evaluation."""
        return self.label_smoothing if self.training else 0.0

    @property
    def dim_latents(self) -> int:
        """Dimension of the contrastive space."""
        return self.text_to_latents.to_latents.out_features

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return self.temperature.dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.temperature.device

    @property
    def logit_scale(self) -> Tensor:
        """The factor of the cosines in the contrastive loss: a float32 scalar, at most 100."""
        return self.temperature.float().clamp(max=_LAST_TEMPERATURE).exp().squeeze(0)

    @torch.no_grad()
    def limit_temperature(self) -> None:
        """Clip the temperature at its maximum; called before each training step.

        The parameter itself is clipped: a clamp in the graph would leave it stuck above the maximum without a gradient.
        """
        self.temperature.clamp_(max=_LAST_TEMPERATURE)

    @property
    def logit_parameters(self) -> tuple[Tensor, ...]:
        """What `pair_loss` takes after the latents: the logit scale, and the bias of SigLIP."""
        if self.logit_bias is None:
            return (self.logit_scale,)
        return self.logit_scale, self.logit_bias.squeeze(0)

    @property
    def pair_loss(self) -> Callable[..., Tensor]:
        """`contrastive_loss` or `siglip_loss`."""
        return contrastive_loss if self.logit_bias is None else siglip_loss

    def label_log_probabilities(self, text: Tensor, labels: Tensor, *, image_tokens: Tensor, text_mask: Tensor,
                                temperature: float = 1.0) -> Tensor:
        """text, labels, text_mask (b, t), image tokens (b, n, D) -> log probabilities of the labels (b, t), float32; 0
        at padding. Logits are divided by `temperature`."""
        logits = self(text, image_tokens=image_tokens, text_mask=text_mask).float() / temperature
        return logits.log_softmax(-1).gather(2, labels.unsqueeze(2)).squeeze(2).where(text_mask, 0)

    def similarity(self, text_embeds: Tensor, image_embeds: Tensor) -> Tensor:
        """Text embeddings (i, dim), image embeddings (j, dim) -> their cosines (i, j) in the contrastive space."""
        return cosine_similarity(self.text_to_latents(text_embeds), self.img_to_latents(image_embeds))
