"""Samples, and the padded batches that are made of them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from .slides import Slide
from .tokenizer import Tokenizer


@dataclass(frozen=True)
class Sample:
    """One slide, or the slides of a case, and the ids of its text: [bos, ..., eos].

    references: all its texts as they stand in the labels. choices: the ids of each of them, where training takes
    another one each epoch.
    """

    slide: Slide
    token_ids: list[int]
    references: tuple[str, ...] = ()
    choices: tuple[list[int], ...] = ()

    def at(self, epoch: int, seed: int) -> Sample:
        """This sample in an epoch: its texts take turns, from a first one that depends on the seed and the id."""
        if len(self.choices) < 2:
            return self
        turn = zlib.crc32(f"{seed} {self.slide.slide_id}".encode()) + epoch
        return replace(self, token_ids=self.choices[turn % len(self.choices)])

    @property
    def most_tokens(self) -> int:
        """Length of its longest text, the begin token not counted."""
        return max(map(len, self.choices or (self.token_ids,))) - 1


@dataclass
class Batch:
    """B slides, padded to N tiles and T tokens.

    tile_embeddings (B, N, D) float16 or float32 and tile_mask (B, N) true = a tile; or, from the slide cache,
    image_tokens (B, n, D) and neither. text (B, T) = [bos .. last word]; labels (B, T) = [first word .. eos];
    text_mask (B, T) true = a token.
    """

    ids: list[str]
    tile_embeddings: torch.Tensor | None
    tile_mask: torch.Tensor | None
    text: torch.Tensor
    labels: torch.Tensor
    text_mask: torch.Tensor
    image_tokens: torch.Tensor | None = None

    def split(self, size: int) -> list[Batch]:
        """The same slides in batches of at most `size`; itself if it is small enough."""
        if len(self.ids) <= size:
            return [self]
        return [Batch(*(None if v is None else v[i:i + size] for v in vars(self).values()))
                for i in range(0, len(self.ids), size)]

    def to(self, device: torch.device) -> Batch:
        return Batch(self.ids, *(None if v is None else v.to(device, non_blocking=True)
                                 for k, v in vars(self).items() if k != "ids"))


def encode_text(tokenizer: Tokenizer, text: str, max_seq_len: int) -> tuple[list[int], bool]:
    """([bos, ..., eos], was it cut?): at most `max_seq_len` ids, the end token always among them."""
    ids = tokenizer.encode(text)
    return [tokenizer.bos_id, *ids[: max_seq_len - 2], tokenizer.eos_id], len(ids) > max_seq_len - 2


class Collate:
    """Pads samples and what was read of their slides, tiles or (`encoded`) image tokens, to one Batch."""

    def __init__(self, pad_id: int, *, encoded: bool = False) -> None:
        self.pad_id, self.encoded = pad_id, encoded

    def __call__(self, items: list[tuple[Sample, np.ndarray]]) -> Batch:
        samples, images = zip(*items, strict=True)
        length = max(len(s.token_ids) for s in samples) - 1
        ids = torch.tensor([s.token_ids + [self.pad_id] * (length + 1 - len(s.token_ids)) for s in samples])
        text_mask = torch.arange(length) < torch.tensor([[len(s.token_ids) - 1] for s in samples])
        # the end token is a label but never an input, so that a text's embedding is the same in every batch
        text = ids[:, :-1].masked_fill(~text_mask, self.pad_id)
        slide_ids = [s.slide.slide_id for s in samples]
        if self.encoded:
            return Batch(slide_ids, None, None, text, ids[:, 1:], text_mask, torch.from_numpy(np.stack(images)))
        return Batch(slide_ids, *pad_tiles(images), text, ids[:, 1:], text_mask)


def pad_tiles(tiles: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Slides of (N_i, D) -> (B, max N, D) zero-padded in the widest of their types, and the mask (B, max N)."""
    counts = torch.tensor([[len(t)] for t in tiles])
    dtype = np.result_type(*tiles)
    padded = np.zeros((len(tiles), int(counts.max()), tiles[0].shape[1]), dtype)
    for row, t in zip(padded, tiles, strict=True):
        row[: len(t)] = t
    return torch.from_numpy(padded), torch.arange(padded.shape[1]) < counts
