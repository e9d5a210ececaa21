"""A version of the encoder for one slide that is differentiable in how far each tile is from the slide's mean tile.

For explanations only. Equal to `PrismSlideEncoder.slide_representations` where all shares are 1; where all are 0, each
tile is the mean tile. Shapes as in `perceiver.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .perceiver import CrossAttention, PerceiverLayer, Tiles
from .slide_encoder import PrismSlideEncoder


class BlendedSlide:
    """The tiles t_j (N, C) of a slide, replaced by m + s_j (t_j - m): m is their mean, s the shares that are given.

    Keys and values are linear in a tile, so what does not depend on the shares is computed once for all passes, and no
    blended tile ever exists.

    Args:
        encoder: Its weights.
        tiles: (N, C), any float type.
    """

    def __init__(self, encoder: PrismSlideEncoder, tiles: Tensor) -> None:
        self._resampler = encoder.image_resampler
        self._latents = self._resampler.perceiver.latents
        self._tiles = Tiles(tiles, self._latents.dtype)
        self._mean = sum(part.sum(dim=0) for part in self._tiles.parts()) / len(tiles)  # (C,)
        self._groups: list[tuple[list[PerceiverLayer], list[tuple[Tensor, Tensor]] | None]] = []
        with torch.no_grad():
            for _, group in itertools.groupby(self._resampler.perceiver.layers, key=lambda layer: id(layer.xattn)):
                layers = list(group)
                pairs = layers[0].xattn.xattn.keys_values(self._tiles, len(self._latents), len(layers))
                self._groups.append((layers, pairs))

    def shares(self, value: float) -> Tensor:
        """The same share for all tiles, (N,)."""
        return self._latents.new_full((len(self._tiles),), value)

    def encode(self, shares: Tensor) -> tuple[Tensor, Tensor]:
        """shares (N,) -> slide embedding (D,) and image latents (L, D), differentiable in the shares.

        Each layer is computed again in the backward pass: kept, the scores of 513 queries and 50 000 tiles would be
        several times 0.1 GB a layer, and Prism has 8.
        """
        x = self._latents
        for layers, pairs in self._groups:
            for layer in layers:
                x = checkpoint(self._layer, layer, pairs, x, shares, use_reentrant=False)
        return self._resampler.cls_norm(x[0]), self._resampler.img_norm(x[1:])

    def _layer(self, layer: PerceiverLayer, pairs: list[tuple[Tensor, Tensor]] | None, x: Tensor,
               shares: Tensor) -> Tensor:
        """x (S, D), shares (N,) -> (S, D)."""
        x = x + self._read_tiles(layer.xattn.xattn, pairs, x, shares)
        x = x + layer.xattn.ff(x)
        for block in layer.tf:
            x = block(x.unsqueeze(0)).squeeze(0)
        return x

    def _read_tiles(self, cross: CrossAttention, pairs: list[tuple[Tensor, Tensor]] | None, x: Tensor,
                    shares: Tensor) -> Tensor:
        """Cross-attention (S, D), with keys and values or, without them, with queries as wide as the tiles."""
        query = cross.to_q(cross.x_norm(x)) * cross.to_q.out_features ** -0.5
        to_key, to_value = cross.to_kv.weight.chunk(2)  # each (D, C)
        if pairs is not None:
            mean = _attend(query, pairs, shares, to_key @ self._mean, to_value @ self._mean)
        else:
            parts = ((part, part) for part in self._tiles.parts())
            mean = _attend(query @ to_key, parts, shares, self._mean, self._mean) @ to_value.T
        return cross.to_out(mean)


def _attend(query: Tensor, pairs: Iterable[tuple[Tensor, Tensor]], shares: Tensor, mean_key: Tensor,
            mean_value: Tensor) -> Tensor:
    """Attention (S, e) of scaled queries (S, d) to pairs of keys (n, d) and values (n, e), blended with their means.

    A key is k + s (key - k), so scores are s (q key - q k) up to a constant of the query, which softmax ignores.
    """
    of_mean = (query @ mean_key).unsqueeze(1)  # (S, 1)
    results, moved, weights, begin = [], [], [], 0
    for key, value in pairs:
        share = shares[begin:begin + len(key)]
        scores = (query @ key.T - of_mean) * share
        blended = scores.softmax(dim=-1) * share  # (S, n)
        results.append(blended @ value)
        moved.append(blended.sum(dim=-1, keepdim=True))
        weights.append(scores.logsumexp(dim=-1, keepdim=True))
        begin += len(key)
    of_parts = torch.stack(weights).softmax(dim=0)  # (parts, S, 1)
    return (of_parts * (torch.stack(results) - torch.stack(moved) * mean_value)).sum(0) + mean_value
