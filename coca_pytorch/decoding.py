"""What CoCa keeps between two decoded tokens. Letters: b sequences, t tokens, j keys, d width of a head."""

from __future__ import annotations

import torch
from torch import Tensor

_FIRST_CAPACITY = 64  # tokens; doubled when full, so that a caption costs a handful of copies


class DecoderCache:
    """Keys and values of all layers: of the tokens so far (self-attention) and of the image (cross-attention).

    Made by `CoCa.start_decoding`, filled by `CoCa.decode_step`; multi-query attention keeps it small
    (full size: 0.8 MB a slide, 6 KB a token). `length` is the number of tokens seen.
    """

    def __init__(self, cross: list[tuple[Tensor, Tensor]], batch: int, depth: int) -> None:
        """cross: per multimodal layer keys and values, each (b, j, d). depth: number of self-attention layers."""
        self.cross, self.batch, self.length = cross, batch, 0
        self._past: list[Tensor | None] = [None] * depth  # per layer (2, b, capacity, d)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """k, v (b, t, d) of the tokens after `length` -> keys and values of all tokens, each (b, length + t, d).

        `length` itself moves in `advance`, once every layer has seen the tokens.
        """
        end, past = self.length + k.shape[1], self._past[layer]
        if past is None or end > past.shape[2]:
            grown = v.new_empty(2, len(k), max(_FIRST_CAPACITY, 2 * end), k.shape[-1])
            if past is not None:
                grown[:, :, :self.length] = past[:, :, :self.length]
            past = self._past[layer] = grown
        past[0, :, self.length:end], past[1, :, self.length:end] = k, v
        return past[0, :, :end], past[1, :, :end]

    def advance(self, tokens: int) -> None:
        self.length += tokens

    def reorder(self, indices: Tensor) -> None:
        """indices (b',): sequence n goes on from what is now sequence indices[n], as beam search chooses."""
        self.batch = len(indices)
        self.cross = [(k.index_select(0, indices), v.index_select(0, indices)) for k, v in self.cross]
        self._past = [None if past is None else past.index_select(1, indices) for past in self._past]

    def repeat(self, n: int) -> None:
        """Expand each sequence to n neighbours: a b c -> a a b b c c for n = 2."""
        device = self.cross[0][0].device if self.cross else None
        self.reorder(torch.arange(self.batch, device=device).repeat_interleave(n))
