"""Samples, and the padded batches made from them.

Shapes: B slides, N tiles, n image tokens, T text tokens, D dimension.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from .slides import Slide
from .tokenizer import Tokenizer


@dataclass(frozen=True)
class Sample:
    """A slide, or the joined slides of a case, with its text.

    Attributes:
        token_ids: [bos, ..., eos] of its text.
        references: All its texts, as in the labels.
        choices: Token ids of each text, if training uses them in turn.
        draw: A random number of this sample in this epoch, below 2**32: the seed of what training draws for it.
    """

    slide: Slide
    token_ids: list[int]
    references: tuple[str, ...] = ()
    choices: tuple[list[int], ...] = ()
    draw: int = 0

    def at(self, epoch: int, seed: int) -> Sample:
        """This sample in an epoch: its texts take turns; which is first depends on the seed and the id."""
        slide_id = self.slide.slide_id
        draw = zlib.crc32(f"{seed} {epoch} {slide_id}".encode())
        if len(self.choices) < 2:
            return replace(self, draw=draw)
        turn = zlib.crc32(f"{seed} {slide_id}".encode()) + epoch
        return replace(self, draw=draw, token_ids=self.choices[turn % len(self.choices)])

    @property
    def most_tokens(self) -> int:
        """Number of input tokens of its longest text: one less than its ids, as the last one is only a label."""
        return max(map(len, self.choices or (self.token_ids,))) - 1


@dataclass
class Batch:
    """B slides, padded to N tiles and T text tokens.

    It holds either tiles with their mask or, from the slide cache, image tokens.

    Attributes:
        ids: Slide ids.
        tile_embeddings: (B, N, D) float16 or float32.
        tile_mask: (B, N), true for a tile; on the CPU, as the encoder cuts the slides by it.
        text: (B, T), [bos, ..., last token].
        labels: (B, T), [first token, ..., eos].
        text_mask: (B, T), true for a token.
        image_tokens: (B, n, D).
        draws: Of the samples.
        lengths: Tokens of each text, known without asking the device; None if nobody has counted them.
    """

    ids: list[str]
    tile_embeddings: torch.Tensor | None
    tile_mask: torch.Tensor | None
    text: torch.Tensor
    labels: torch.Tensor
    text_mask: torch.Tensor
    image_tokens: torch.Tensor | None = None
    draws: list[int] | None = None
    lengths: list[int] | None = None

    @property
    def num_tokens(self) -> int:
        """Number of text tokens."""
        return int(self.text_mask.sum()) if self.lengths is None else sum(self.lengths)

    def split(self, size: int) -> list[Batch]:
        """The same slides in batches of at most `size`; itself if it is small enough."""
        if len(self.ids) <= size:
            return [self]
        return [Batch(*(None if v is None else v[i:i + size] for v in vars(self).values()))
                for i in range(0, len(self.ids), size)]

    def to(self, device: torch.device) -> Batch:
        """The batch on a device. A copy from pinned memory to a GPU does not wait: it runs on the current stream."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """The batch in pinned memory, from which a GPU copies while it computes. Needs CUDA."""
        return self._with_tensors(lambda tensor: tensor if tensor.is_pinned() else tensor.pin_memory())

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keep the memory of the tensors until the work on `stream` is done that uses them now."""
        self._with_tensors(lambda tensor: tensor.record_stream(stream))

    def _with_tensors(self, change: Callable[[torch.Tensor], Any]) -> Batch:
        """The batch with each tensor changed but the tile mask, for whose values the device would be waited for."""
        return Batch(**{name: change(value) if isinstance(value, torch.Tensor) and name != "tile_mask" else value
                        for name, value in vars(self).items()})


def encode_text(tokenizer: Tokenizer, text: str, max_seq_len: int) -> tuple[list[int], bool]:
    """([bos, ..., eos], whether it was cut): at most `max_seq_len` ids, the end token always among them."""
    ids = tokenizer.encode(text)
    return [tokenizer.bos_id, *ids[: max_seq_len - 2], tokenizer.eos_id], len(ids) > max_seq_len - 2


class Collate:
    """Pads samples and the arrays read for their slides to one Batch."""

    def __init__(self, pad_id: int, *, pin: bool = False) -> None:
        """
        Args:
            pad_id: Padding of the texts.
            pin: Put the batch into pinned memory.
        """
        self.pad_id, self.pin = pad_id, pin

    def __call__(self, items: list[tuple[Sample, np.ndarray]]) -> Batch:
        """A batch of tiles (N_i, D)."""
        samples, arrays = zip(*items, strict=True)
        return self._batch(samples, *pad_tiles(arrays, pin=self.pin))

    def encoded(self, samples: Sequence[Sample], image_tokens: torch.Tensor) -> Batch:
        """A batch of image tokens (B, n, D) of the slide cache."""
        return self._batch(samples, None, None, image_tokens)

    def _batch(self, samples: Sequence[Sample], tiles: torch.Tensor | None, tile_mask: torch.Tensor | None,
               image_tokens: torch.Tensor | None = None) -> Batch:
        counts = [len(s.token_ids) - 1 for s in samples]  # input tokens
        longest = max(counts)
        ids = torch.tensor([s.token_ids + [self.pad_id] * (longest + 1 - len(s.token_ids)) for s in samples])
        text_mask = torch.arange(longest) < torch.tensor(counts).unsqueeze(1)  # (B, T)
        # the end token is a label but never an input, so that a text's embedding is the same in every batch
        text = ids[:, :-1].masked_fill(~text_mask, self.pad_id)
        slide_ids, draws = [s.slide.slide_id for s in samples], [s.draw for s in samples]
        batch = Batch(slide_ids, tiles, tile_mask, text, ids[:, 1:], text_mask, image_tokens, draws, counts)
        return batch.pinned() if self.pin else batch


def empty_tensor(shape: Sequence[int], dtype: str | np.dtype, pin: bool) -> torch.Tensor:
    """A tensor of a numpy type without values, in pinned memory if wanted (needs CUDA)."""
    torch_type = torch.from_numpy(np.empty(0, dtype)).dtype
    return torch.empty(*shape, dtype=torch_type, pin_memory=pin)


def pad_tiles(tiles: Sequence[np.ndarray], *, pin: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack slides of different numbers of tiles.

    Args:
        tiles: B arrays (N_i, D).
        pin: In pinned memory.

    Returns:
        (B, N, D), zero-padded, in the widest of their types; the mask (B, N), true for a tile.
    """
    counts = torch.tensor([[len(t)] for t in tiles])  # (B, 1)
    padded = empty_tensor((len(tiles), int(counts.max()), tiles[0].shape[1]), np.result_type(*tiles), pin)
    for row, t in zip(padded.numpy(), tiles, strict=True):
        row[: len(t)] = t
        row[len(t):] = 0
    return padded, torch.arange(padded.shape[1]) < counts
