"""A transparent version of the encoder for one slide: tiles have weights, and attention is returned.

For explanations only. Equal to `PrismSlideEncoder.slide_representations` where all weights are 1; a weight of 0 is the
slide without that tile. Shapes as in `perceiver.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .perceiver import SelfAttention
from .slide_encoder import PrismSlideEncoder


def encode_weighted(encoder: PrismSlideEncoder, tiles: Tensor, log_weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Encode one slide whose tiles count with weights, differentiable in them.

    Args:
        tiles: (N, C), of the type of the weights of the encoder.
        log_weights: (N,), added to the scores of each cross-attention: 0 = nothing is changed, -inf = no such tile.

    Returns:
        Slide embedding (D,), image latents (L, D), and the attention rollout (S, N) of the slots: the share of each
        tile in a slot (Abnar & Zuidema 2020, https://arxiv.org/abs/2005.00928), from attention averaged over heads with
        half of each sum taken for the residual. The rest of a row, up to 1, comes from the learned latents.
    """
    resampler = encoder.image_resampler
    x = resampler.perceiver.latents
    rollout = tiles.new_zeros(len(x), len(tiles))
    keys_values: dict[int, tuple[Tensor, Tensor]] = {}
    for layer in resampler.perceiver.layers:
        cross = layer.xattn.xattn
        if id(cross) not in keys_values:  # layers that share it share these
            keys_values = {id(cross): cross.to_kv(tiles).chunk(2, dim=-1)}
        key, value = keys_values[id(cross)]
        query = cross.to_q(cross.x_norm(x))
        attention = (query @ key.T * query.shape[-1] ** -0.5 + log_weights).softmax(dim=-1)  # (S, N)
        x = x + cross.to_out(attention @ value)
        x = x + layer.xattn.ff(x)
        rollout = (rollout + attention.detach()) / 2
        for block in layer.tf:
            rollout = (rollout + _mean_attention(block.mhsa.mha, block.mhsa.norm(x)) @ rollout) / 2
            x = block(x.unsqueeze(0)).squeeze(0)
    return resampler.cls_norm(x[0]), resampler.img_norm(x[1:]), rollout


@torch.no_grad()
def _mean_attention(attention: SelfAttention, x: Tensor) -> Tensor:
    """x (S, D), normed -> attention (S, S), the mean of the heads."""
    qkv = F.linear(x, attention.in_proj_weight).unflatten(-1, (3, attention.heads, -1))  # (S, 3, H, D / H)
    query, key = qkv[:, 0].transpose(0, 1), qkv[:, 1].transpose(0, 1)  # (H, S, D / H)
    return (query @ key.transpose(1, 2) * query.shape[-1] ** -0.5).softmax(dim=-1).mean(dim=0)
