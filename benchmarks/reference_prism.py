"""A stand-in for the reference slide encoder, to compare speed with: computes as the published code does, in its best
mode on CPU (float32), and has the same parameter names as ours, so that both run on the same weights.

`nn.MultiheadAttention` for self-attention, `F.scaled_dot_product_attention` with one head of the full width for
cross-attention, keys and values once per distinct set of weights. Written from the description of the architecture.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _GEGLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x, gate = x.chunk(2, dim=-1)
        return x * F.gelu(gate)


class _FeedForward(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.net = nn.Sequential(nn.Linear(dim, 2 * dim), _GEGLU(), nn.Linear(dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.norm(x))


class _CrossAttention(nn.Module):
    def __init__(self, dim: int, context_dim: int) -> None:
        super().__init__()
        self.x_norm = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_kv = nn.Linear(context_dim, 2 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        query = self.to_q(self.x_norm(x))
        query, key, value = (t.unsqueeze(1) for t in (query, key, value))  # one head
        return self.to_out(F.scaled_dot_product_attention(query, key, value, attn_mask=mask).squeeze(1))


class _CrossBlock(nn.Module):
    def __init__(self, dim: int, context_dim: int) -> None:
        super().__init__()
        self.xattn, self.ff = _CrossAttention(dim, context_dim), _FeedForward(dim)

    def forward(self, x: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.xattn(x, key, value, mask)
        return x + self.ff(x)


class _SelfAttention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mha = nn.MultiheadAttention(dim, heads, bias=False, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.mha(x, x, x, need_weights=False)[0]


class _SelfBlock(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.mhsa, self.ff = _SelfAttention(dim, heads), _FeedForward(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mhsa(x)
        return x + self.ff(x)


class _Layer(nn.Module):
    def __init__(self, xattn: _CrossBlock, tf: nn.ModuleList) -> None:
        super().__init__()
        self.xattn, self.tf = xattn, tf


class _Perceiver(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(513, 1280))
        own, shared = (_CrossBlock(1280, 2560) for _ in range(2))
        tf = nn.ModuleList(_SelfBlock(1280, 8) for _ in range(6))
        self.layers = nn.ModuleList(_Layer(own if index == 0 else shared, tf) for index in range(8))

    def forward(self, tiles: Tensor, mask: Tensor | None) -> Tensor:
        x, reader = self.latents.expand(len(tiles), -1, -1), None
        for layer in self.layers:
            if layer.xattn is not reader:
                reader = layer.xattn
                key, value = reader.xattn.to_kv(tiles).chunk(2, dim=-1)
            x = layer.xattn(x, key, value, mask)
            for block in layer.tf:
                x = block(x)
        return x


class ReferenceEncoder(nn.Module):
    """Published sizes only. `load_state_dict` takes the state of our `PrismSlideEncoder().image_resampler`."""

    def __init__(self) -> None:
        super().__init__()
        self.perceiver, self.cls_norm, self.img_norm = _Perceiver(), nn.LayerNorm(1280), nn.LayerNorm(1280)

    @classmethod
    def like(cls, resampler: nn.Module) -> ReferenceEncoder:
        """With the weights of our encoder, frozen."""
        with torch.device("meta"):
            model = cls()
        state = resampler.state_dict()
        model.load_state_dict({k.replace("out_proj.bias", ""): v for k, v in state.items()}, assign=True)
        return model.eval().requires_grad_(False)

    def forward(self, tiles: Tensor, tile_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tiles (B, N, 2560), mask (B, N), true = a tile -> embeddings (B, 1280), latents (B, 512, 1280)."""
        mask = None if tile_mask is None else tile_mask[:, None, None, :]
        slots = self.perceiver(tiles, mask)
        return self.cls_norm(slots[:, 0]), self.img_norm(slots[:, 1:])
