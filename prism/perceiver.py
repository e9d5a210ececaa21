"""The Perceiver of Prism: learned latents read the tiles by cross-attention, then think by self-attention.

Idea: Perceiver (https://arxiv.org/abs/2103.03206); feed-forwards are GEGLU (https://arxiv.org/abs/2002.05202).
Module and parameter names are the keys of the published checkpoint; that is why some of them nest oddly.

Shapes: B slides, N tiles, C tile width (`context_dim`), L image latents (`latent_seq`), S = L + 1 slots
(slot 0 is the slide query), D latent width (`latent_dim`), H heads.
"""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class PerceiverConfig:
    """Architecture, in the field names of the published `perceiver_config`; the defaults are the published model.

    Layers from `share_xattn_start_layer` (`share_tf_start_layer`) on share one cross-attention (one stack of
    self-attention blocks); earlier layers have their own.

    Raises:
        ValueError: a field has a type, range or value this implementation does not have; the message names it.
    """

    latent_seq: int = 512
    latent_dim: int = 1280
    context_dim: int = 2560
    mhsa_heads: int = 8
    perceiver_depth: int = 8
    transformer_depth: int = 6
    share_xattn_start_layer: int = 1
    share_tf_start_layer: int = 0
    xattn_heads: int = 1
    mlp_mult: int = 1
    mlp_activation: str = "geglu"

    def __post_init__(self) -> None:
        if self.mlp_activation != "geglu":
            raise ValueError(f"perceiver_config.mlp_activation is {self.mlp_activation!r}; only 'geglu' is supported")
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in ("share_xattn_start_layer", "share_tf_start_layer", "transformer_depth") else 1
            if field.type is int and (type(value) is not int or value < least):
                raise ValueError(f"perceiver_config.{field.name} is {value!r}; need a whole number >= {least}")
        if self.xattn_heads != 1:
            raise ValueError(f"perceiver_config.xattn_heads is {self.xattn_heads}; only 1 is supported")
        if self.latent_dim % self.mhsa_heads:
            raise ValueError(
                f"perceiver_config.mhsa_heads is {self.mhsa_heads}, which does not divide latent_dim {self.latent_dim}"
            )


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention with the softmax in float32.

    Plain products on purpose. `F.scaled_dot_product_attention` on two CPU cores takes 3 times as long at one head
    of width 1280, the same time at 8 heads of 160 in float32, and 2.7 times as long there in bfloat16.

    Args:
        query: (..., S, d)
        key, value: (..., N, d)
        mask: bool, broadcasts to (..., S, N), True = may be attended; None = all.

    Returns:
        (..., S, d)
    """
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)  # (..., S, N)
    scores = scores.float()
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return scores.softmax(dim=-1).to(value.dtype) @ value


class GEGLU(nn.Module):
    """`x * gelu(gate)` over the two halves of the last dimension: (..., 2 D) -> (..., D)."""

    def forward(self, x: Tensor) -> Tensor:
        x, gate = x.chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    """Pre-norm GEGLU feed-forward, without its residual: (B, S, D) -> (B, S, D)."""

    def __init__(self, dim: int, mult: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.net = nn.Sequential(nn.Linear(dim, 2 * dim * mult), GEGLU(), nn.Linear(dim * mult, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.norm(x))


class CrossAttention(nn.Module):
    """One head of the full width: latents (B, S, D) read tiles (B, N, C). The tiles are not normalised."""

    def __init__(self, dim: int, context_dim: int) -> None:
        super().__init__()
        self.x_norm = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_kv = nn.Linear(context_dim, 2 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)

    def keys_values(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """Tiles (B, N, C) -> keys and values, each (B, N, D). They do not depend on the latents: compute once."""
        key, value = self.to_kv(tiles).chunk(2, dim=-1)
        return key, value

    def forward(self, x: Tensor, keys_values: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        return self.to_out(attend(self.to_q(self.x_norm(x)), *keys_values, mask))


class CrossBlock(nn.Module):
    """Cross-attention and feed-forward, each with its residual: (B, S, D) -> (B, S, D)."""

    def __init__(self, config: PerceiverConfig) -> None:
        super().__init__()
        self.xattn = CrossAttention(config.latent_dim, config.context_dim)
        self.ff = FeedForward(config.latent_dim, config.mlp_mult)

    def forward(self, x: Tensor, keys_values: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        x = x + self.xattn(x, keys_values, mask)
        return x + self.ff(x)


class SelfAttention(nn.Module):
    """Multi-head self-attention without biases: (B, S, D) -> (B, S, D)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * dim, dim)))
        self.out_proj = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        qkv = F.linear(x, self.in_proj_weight).unflatten(-1, (3, self.heads, -1))  # (B, S, 3, H, D / H)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, S, D / H)
        return self.out_proj(attend(query, key, value).transpose(1, 2).flatten(2))


class NormedSelfAttention(nn.Module):
    """Pre-norm around `SelfAttention`; a level of its own because the checkpoint's keys have one."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mha = SelfAttention(dim, heads)

    def forward(self, x: Tensor) -> Tensor:
        return self.mha(self.norm(x))


class SelfBlock(nn.Module):
    """Self-attention and feed-forward, each with its residual: (B, S, D) -> (B, S, D)."""

    def __init__(self, config: PerceiverConfig) -> None:
        super().__init__()
        self.mhsa = NormedSelfAttention(config.latent_dim, config.mhsa_heads)
        self.ff = FeedForward(config.latent_dim, config.mlp_mult)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mhsa(x)
        return x + self.ff(x)


class PerceiverLayer(nn.Module):
    """One reading of the tiles and the self-attention after it. It only holds blocks, which layers may share."""

    def __init__(self, xattn: CrossBlock, tf: nn.ModuleList) -> None:
        super().__init__()
        self.xattn = xattn
        self.tf = tf


class Perceiver(nn.Module):
    """Tiles (B, N, C) -> slots (B, S, D)."""

    def __init__(self, config: PerceiverConfig) -> None:
        super().__init__()
        self.latents = nn.Parameter(0.02 * torch.randn(config.latent_seq + 1, config.latent_dim))
        self.layers = nn.ModuleList()
        for index in range(config.perceiver_depth):
            if index <= config.share_xattn_start_layer:
                xattn = CrossBlock(config)
            if index <= config.share_tf_start_layer:
                tf = nn.ModuleList(SelfBlock(config) for _ in range(config.transformer_depth))
            self.layers.append(PerceiverLayer(xattn, tf))

    def forward(self, tiles: Tensor, tile_mask: Tensor | None) -> Tensor:
        mask = None if tile_mask is None else tile_mask[:, None, :]  # (B, 1, N)
        x = self.latents.expand(len(tiles), -1, -1)  # (B, S, D)
        reader, keys_values = None, None
        for layer in self.layers:
            if layer.xattn is not reader:  # layers that share the reader share its keys and values
                keys_values = None  # free the old ones first: 1 GB at 100 000 tiles
                reader, keys_values = layer.xattn, layer.xattn.xattn.keys_values(tiles)
            x = layer.xattn(x, keys_values, mask)
            for block in layer.tf:
                x = block(x)
        return x


class ImageResampler(nn.Module):
    """The published `image_resampler`: the perceiver, then one LayerNorm for slot 0 and one for the rest."""

    def __init__(self, config: PerceiverConfig) -> None:
        super().__init__()
        self.perceiver = Perceiver(config)
        self.cls_norm = nn.LayerNorm(config.latent_dim)
        self.img_norm = nn.LayerNorm(config.latent_dim)

    def forward(self, tiles: Tensor, tile_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tiles (B, N, C) and mask (B, N) or None -> slide embedding (B, D), image latents (B, L, D)."""
        slots = self.perceiver(tiles, tile_mask)
        return self.cls_norm(slots[:, 0]), self.img_norm(slots[:, 1:])
