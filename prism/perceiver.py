"""The Perceiver of Prism: learned latents read the tiles by cross-attention, then each other by self-attention.

Idea: Perceiver (https://arxiv.org/abs/2103.03206); feed-forwards are GEGLU (https://arxiv.org/abs/2002.05202).
Module and parameter names are the keys of the published checkpoint; that is why some of them nest oddly.

Shapes: B slides, N tiles, C tile width (`context_dim`), L image latents (`latent_seq`), S = L + 1 slots
(slot 0 is the slide query), D latent width (`latent_dim`), H heads.
"""

import itertools
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import PerceiverConfig

PART = 4096  # tiles handled at once: scores of 513 queries are then 8 MB, whatever the size of the slide
KeysValues = list[tuple[Tensor, Tensor]]  # keys and values (n, D), a pair for each part of a slide's tiles


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention: query (..., S, d), key and value (..., N, d) -> (..., S, d).

    bias: (..., S, N), added to the scores.

    Plain products on purpose. `F.scaled_dot_product_attention` on two CPU cores takes 3 times as long at one head
    of width 1280, the same time at 8 heads of 160 in float32, and twice as long there in bfloat16.
    """
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)  # (..., S, N)
    if bias is not None:
        scores = scores + bias
    # softmax of a half type computes in float32 inside; the copy in float32 would be 4 bytes a score
    return scores.softmax(dim=-1).to(value.dtype) @ value


def attend_in_parts(query: Tensor, parts: Iterable[tuple[Tensor, Tensor]], scale: float) -> Tensor:
    """Attention over keys and values that come in parts, so that no score matrix covers all tiles.

    Each part is attended to alone; then the parts are averaged, each weighing the sum of its exponentials. Exact
    and differentiable.

    Args:
        query: (S, d)
        parts: Keys (n, d) and values (n, e), a pair for each part, n any number above 0
        scale: What scores are multiplied with.

    Returns:
        (S, e)
    """
    query, results, weights = query * scale, [], []
    for key, value in parts:
        scores = query @ key.T  # (S, n)
        results.append(scores.softmax(dim=-1).to(value.dtype) @ value)
        weights.append(scores.float().logsumexp(dim=-1, keepdim=True))
    if len(results) == 1:
        return results[0]
    shares = torch.stack(weights).softmax(dim=0)  # (parts, S, 1)
    return sum(share * result for share, result in zip(shares, results, strict=True)).to(query.dtype)


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


class Tiles:
    """The real tiles of one slide, (N, C) of any float dtype, in parts cast to the compute dtype.

    In parts, because a cast copy of all tiles would be as large as the tiles, or twice.
    """

    def __init__(self, tiles: Tensor, dtype: torch.dtype) -> None:
        self.tiles, self.dtype = tiles, dtype

    def __len__(self) -> int:
        return len(self.tiles)

    def parts(self) -> Iterator[Tensor]:
        return (part.to(self.dtype) for part in self.tiles.split(PART))


class CrossAttention(nn.Module):
    """One head of the full width: latents (B, S, D) read the tiles of B slides. The tiles are not normalised."""

    def __init__(self, dim: int, context_dim: int) -> None:
        super().__init__()
        self.x_norm = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_kv = nn.Linear(context_dim, 2 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)

    def keys_values(self, tiles: Tiles, slots: int, uses: int) -> KeysValues | None:
        """Keys and values of one slide, a pair (n, D) for each part, to be used by `uses` layers of `slots` queries;
        None where `forward` does with fewer operations without them.

        Without: queries are brought to the width of the tiles (q Wk) and the means of tiles back (m Wv), that is
        2 S D C multiplications a layer more and 2 S N (C - D) for the wider attention, instead of 2 N C D once.
        """
        dim, width = self.to_q.out_features, self.to_kv.in_features
        if uses * slots * (dim * width + len(tiles) * (width - dim)) < len(tiles) * dim * width:
            return None
        return [tuple(self.to_kv(part).chunk(2, dim=-1)) for part in tiles.parts()]

    def forward(self, x: Tensor, slides: list[Tiles], known: list[KeysValues | None]) -> Tensor:
        """x (B or 1, S, D); the tiles of B slides, and what `keys_values` gave for each -> (B, S, D)."""
        query = self.to_q(self.x_norm(x))
        to_key, to_value = self.to_kv.weight.chunk(2)  # each (D, C)
        wide = query @ to_key if None in known else query  # (B or 1, S, C)
        scale = query.shape[-1] ** -0.5
        results = []
        for index, (tiles, pairs) in enumerate(zip(slides, known, strict=True)):
            row = index if len(query) > 1 else 0
            if pairs is not None:
                results.append(attend_in_parts(query[row], pairs, scale))
                continue
            means = attend_in_parts(wide[row], ((part, part) for part in tiles.parts()), scale)  # (S, C)
            results.append(F.linear(means, to_value))
        return self.to_out(torch.stack(results))


class CrossBlock(nn.Module):
    """Cross-attention and feed-forward, each with its residual: (B or 1, S, D) -> (B, S, D)."""

    def __init__(self, config: PerceiverConfig) -> None:
        super().__init__()
        self.xattn = CrossAttention(config.latent_dim, config.context_dim)
        self.ff = FeedForward(config.latent_dim, config.mlp_mult)

    def forward(self, x: Tensor, slides: list[Tiles], known: list[KeysValues | None]) -> Tensor:
        x = x + self.xattn(x, slides, known)
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
    """Pre-norm around `SelfAttention`; a separate module because the checkpoint's keys have this level."""

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
    """A cross-attention to the tiles and the self-attention after it; a container of blocks, which layers may share."""

    def __init__(self, xattn: CrossBlock, tf: nn.ModuleList) -> None:
        super().__init__()
        self.xattn = xattn
        self.tf = tf


class Perceiver(nn.Module):
    """Tiles of B slides -> slots (B, S, D)."""

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

    def forward(self, slides: list[Tensor]) -> Tensor:
        """Tiles (N, C) of B slides, each with its own N and none padded -> slots (B, S, D)."""
        device = self.latents.device.type
        dtype = self.latents.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        tiles = [Tiles(slide, dtype) for slide in slides]
        x = self.latents.unsqueeze(0)  # (1, S, D): the first queries are the same for all slides
        for _, group in itertools.groupby(self.layers, key=lambda layer: id(layer.xattn)):
            x = self._read_tiles(x, tiles, list(group))
        return x

    def _read_tiles(self, x: Tensor, tiles: list[Tiles], layers: list[PerceiverLayer]) -> Tensor:
        """Run layers that share one cross-attention and so its keys and values, 1 GB at 100 000 tiles; freed after."""
        cross_block = layers[0].xattn
        known = [cross_block.xattn.keys_values(slide, len(self.latents), len(layers)) for slide in tiles]
        for layer in layers:
            x = cross_block(x, tiles, known)
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

    def forward(self, slides: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Tiles (N, C) of B slides -> slide embeddings (B, D), image latents (B, L, D)."""
        slots = self.perceiver(slides)
        return self.cls_norm(slots[:, 0]), self.img_norm(slots[:, 1:])
