"""The blocks of CoCa, with the parameter names of CoCa-pytorch 0.1.0 (https://github.com/lucidrains/CoCa-pytorch).

Shapes: b batch, t text tokens, i queries, j keys, h heads, d dimension of a head.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

Rotary = tuple[Tensor, Tensor]  # cosines and sines, each (b or 1, t, 1, d / 2) float32
Remember = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # new keys and values -> all so far; each (b, j, d)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multi-query attention: all heads read one set of keys and values (https://arxiv.org/abs/1911.02150).

    The heads become further query rows, so no key or value is repeated: as fast as fused attention in float32 on CPU
    (128 x 128), 3 to 4 times as fast under bfloat16 autocast, and the masks stay one tensor for all layers.

    Args:
        q: (b or 1, i, h, d)
        k, v: (b, j, d)
        bias: (b or 1, i, j), added to the scores.

    Returns:
        (b, i, h * d)
    """
    scores = attention_scores(q, k)
    if bias is not None:
        scores = scores + bias.unsqueeze(2)
    weights = scores.softmax(-1, dtype=torch.float32).to(v.dtype)
    out = rearrange(weights, "b i h j -> b (i h) j") @ v
    return rearrange(out, "b (i h) d -> b i (h d)", h=q.shape[2])


def attention_scores(q: Tensor, k: Tensor) -> Tensor:
    """q (b or 1, i, h, d), k (b, j, d) -> scaled dot products (b, i, h, j)."""
    heads, d = q.shape[-2:]
    scores = rearrange(q * d**-0.5, "b i h d -> b (i h) d") @ k.transpose(1, 2)
    return rearrange(scores, "b (i h) j -> b i h j", h=heads)


def attention_bias(allowed: Tensor) -> Tensor:
    """Boolean, true = may attend -> float32 of the same shape to add to scores.

    Finite, not -inf, so that an image without any token gives finite numbers.
    """
    return torch.zeros(allowed.shape, device=allowed.device).masked_fill_(~allowed, torch.finfo(torch.float32).min)


def inverse_frequencies(d: int, device: torch.device | None = None) -> Tensor:
    """Angle per position of each pair of elements of a head, (d / 2,) float32."""
    return 1.0 / 10000 ** (torch.arange(0, d, 2, device=device).float() / d)


def rotary_table(positions: Tensor, d: int) -> Rotary:
    """positions (b or 1, t) -> the rotations of rotary embedding (https://arxiv.org/abs/2104.09864), in float32."""
    angles = positions[..., None, None].float() * inverse_frequencies(d, positions.device)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotate x (b, t, h, d) by its positions. Element n of a head is paired with element n + d / 2."""
    cos, sin = rotary
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


class LayerNorm(nn.Module):
    """Layer norm without a bias. `beta` is a buffer of zeros only because published state dicts contain it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))
        self.register_buffer("beta", torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.gamma, self.beta)


class Residual(nn.Module):
    """x + fn(x)."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor, *args: object) -> Tensor:
        return x + self.fn(x, *args)


class SwiGLU(nn.Module):
    """Gated unit (https://arxiv.org/abs/2002.05202): (..., 2 n) -> (..., n); the second half is the gate."""

    def forward(self, x: Tensor) -> Tensor:
        x, gate = x.chunk(2, dim=-1)
        return F.silu(gate) * x


class EmbedToLatents(nn.Module):
    """(..., dim) -> L2-normalised contrastive latents (..., dim_latents), float32 under autocast too."""

    def __init__(self, dim: int, dim_latents: int) -> None:
        super().__init__()
        self.to_latents = nn.Linear(dim, dim_latents, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.to_latents(x).float(), dim=-1)


class RotaryEmbedding(nn.Module):
    """Keeps `inv_freq` in the state dict, where published checkpoints have it.

    Not read: `model.bfloat16()` would round it, so `rotary_table` recomputes it.
    """

    def __init__(self, d: int) -> None:
        super().__init__()
        self.register_buffer("inv_freq", inverse_frequencies(d))


class ParallelTransformerBlock(nn.Module):
    """Self-attention and feed-forward side by side from one projection, as in PaLM (https://arxiv.org/abs/2204.02311)."""

    def __init__(self, dim: int, dim_head: int, heads: int, ff_mult: int) -> None:
        super().__init__()
        self.heads, ff_inner = heads, dim * ff_mult
        # the one key head follows the query heads, so both are rotated as h + 1 heads in one go
        self.fused_dims = ((heads + 1) * dim_head, dim_head, 2 * ff_inner)
        self.norm = LayerNorm(dim)
        self.rotary_emb = RotaryEmbedding(dim_head)
        self.fused_attn_ff_proj = nn.Linear(dim, sum(self.fused_dims), bias=False)
        self.attn_out = nn.Linear(heads * dim_head, dim, bias=False)
        self.ff_out = nn.Sequential(SwiGLU(), nn.Linear(ff_inner, dim, bias=False))

    def forward(self, x: Tensor, rotary: Rotary, bias: Tensor | None, remember: Remember | None = None) -> Tensor:
        """x: (b, t, dim). bias: (b or 1, t, j). remember: appends keys and values to those of earlier tokens."""
        qk, v, ff = self.fused_attn_ff_proj(self.norm(x)).split(self.fused_dims, dim=-1)
        qk = rotate(rearrange(qk, "b t (h d) -> b t h d", h=self.heads + 1), rotary)
        q, k = qk[:, :, :-1], qk[:, :, -1]
        if remember is not None:
            k, v = remember(k, v)
        return self.attn_out(attend(q, k, v, bias)) + self.ff_out(ff)


class CrossAttention(nn.Module):
    """Multi-query attention to a context, with a feed-forward beside it if `parallel_ff`.

    Keys and values come from `keys_values`, apart from `forward`: decoding needs them once per slide, not per token.
    """

    def __init__(self, dim: int, *, dim_head: int, heads: int, context_dim: int | None = None,
                 norm_context: bool = False, parallel_ff: bool = False, ff_mult: int = 4) -> None:
        super().__init__()
        self.heads, ff_inner = heads, dim * ff_mult
        context_dim = context_dim or dim
        self.norm = LayerNorm(dim)
        self.context_norm = LayerNorm(context_dim) if norm_context else nn.Identity()
        self.to_q = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(context_dim, 2 * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim, bias=False)
        self.ff = None
        if parallel_ff:
            self.ff = nn.Sequential(
                nn.Linear(dim, 2 * ff_inner, bias=False), SwiGLU(), nn.Linear(ff_inner, dim, bias=False))

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """context (b, j, context_dim) -> keys and values, each (b, j, d)."""
        return self.to_kv(self.context_norm(context)).chunk(2, dim=-1)

    def forward(self, x: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        """x: (b or 1, i, dim). k, v: (b, j, d). bias: (b, 1, j). Returns (b, i, dim)."""
        x = self.norm(x)
        out = self.to_out(attend(self._queries(x), k, v, bias))
        return out if self.ff is None else out + self.ff(x)

    def _queries(self, x: Tensor) -> Tensor:
        return rearrange(self.to_q(x), "b i (h d) -> b i h d", h=self.heads)
