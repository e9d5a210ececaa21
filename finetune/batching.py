"""Samples -> batches. The order is a pure function of (seed, epoch, step); so is the choice of tiles."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from .errors import UserError
from .tiles import SlideFile, read_tiles
from .tokenizer import VocabTokenizer

_READ_TIMEOUT = 300  # seconds: a loader process that hangs (a dead network drive) ends the run, not stalls it


@dataclass(frozen=True)
class Sample:
    """One slide and the ids of its text: [bos, ..., eos]."""

    slide: SlideFile
    token_ids: list[int]


@dataclass
class Batch:
    """B slides, padded to N tiles and T tokens.

    tile_embeddings (B, N, D) float16 or float32; tile_mask (B, N) true = a tile; text (B, T) = [bos .. last word];
    labels (B, T) = [first word .. eos]; text_mask (B, T) true = a token.
    """

    ids: list[str]
    tile_embeddings: torch.Tensor
    tile_mask: torch.Tensor
    text: torch.Tensor
    labels: torch.Tensor
    text_mask: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        moved = {k: v.to(device, non_blocking=True) for k, v in vars(self).items() if k != "ids"}
        return Batch(ids=self.ids, **moved)

    def pin_memory(self) -> Batch:  # called by the DataLoader
        return Batch(self.ids, *(v.pin_memory() for k, v in vars(self).items() if k != "ids"))


def encode_text(tokenizer: VocabTokenizer, text: str, max_seq_len: int) -> tuple[list[int], bool]:
    """([bos, ..., eos], was it cut?): at most `max_seq_len` ids, the end token always among them."""
    ids = tokenizer.encode(text)
    return [tokenizer.bos_id, *ids[: max_seq_len - 2], tokenizer.eos_id], len(ids) > max_seq_len - 2


def choose_tiles(slide: SlideFile, max_tiles: int | None, seed: int, epoch: int) -> np.ndarray | None:
    """Sorted indices of the tiles to use, or None for all: the same ones for the same (seed, epoch, slide id)."""
    if max_tiles is None or slide.num_tiles <= max_tiles:
        return None
    rng = np.random.default_rng([seed, epoch, zlib.crc32(slide.slide_id.encode())])
    return np.sort(rng.choice(slide.num_tiles, max_tiles, replace=False))


class SlideDataset(Dataset):
    """Samples by (epoch, index). An unreadable slide comes back as the UserError itself: see `iterate`."""

    def __init__(self, samples: Sequence[Sample], max_tiles: int | None, seed: int) -> None:
        self.samples, self.max_tiles, self.seed = list(samples), max_tiles, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Sample, np.ndarray] | UserError:
        epoch, index = key
        sample = self.samples[index]
        try:
            return sample, read_tiles(sample.slide, choose_tiles(sample.slide, self.max_tiles, self.seed, epoch))
        except UserError as error:  # raised in a loader process it would arrive as text with a traceback in it
            return error


class BatchOrder(Sampler):
    """Batches of (epoch, index). Shuffled by (seed, epoch); `start` skips the batches that a resumed epoch has seen."""

    def __init__(self, size: int, batch_size: int, seed: int, *, shuffle: bool, drop_single: bool) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.shuffle, self.drop_single = shuffle, drop_single
        self.epoch = self.start = 0

    def __len__(self) -> int:
        full, rest = divmod(self.size, self.batch_size)
        return full + (rest > (1 if self.drop_single else 0))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = list(range(self.size))
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(self.size, generator=generator).tolist()
        for b in range(self.start, len(self)):
            yield [(self.epoch, i) for i in order[b * self.batch_size: (b + 1) * self.batch_size]]


class Batches:
    """The batches of one split, read by `workers` processes.

    drop_single: leave out a last batch of one slide, which has no contrastive loss.
    """

    def __init__(self, samples: Sequence[Sample], batch_size: int, pad_id: int, *, max_tiles: int | None, seed: int,
                 workers: int, shuffle: bool, drop_single: bool = False, pin_memory: bool = False) -> None:
        self.samples = list(samples)
        self.order = BatchOrder(len(samples), batch_size, seed, shuffle=shuffle, drop_single=drop_single)
        self.loader = DataLoader(
            SlideDataset(samples, max_tiles, seed), batch_sampler=self.order, collate_fn=Collate(pad_id),
            num_workers=workers, persistent_workers=workers > 0, pin_memory=pin_memory,
            timeout=_READ_TIMEOUT if workers else 0,
            generator=torch.Generator())  # its own: else each epoch would draw from the global random state

    def __len__(self) -> int:
        return len(self.order)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches `start`.. of an epoch. Raises UserError for a slide that cannot be read or a loader that died."""
        self.order.epoch, self.order.start = epoch, start
        try:
            for batch in self.loader:
                if isinstance(batch, UserError):
                    raise batch
                yield batch
        except RuntimeError as error:
            if "DataLoader" not in str(error) or str(error).startswith("Caught "):  # a bug in a loader process
                raise
            raise UserError("training.workers", f"a loader process died or hung ({str(error).splitlines()[0]})",
                            "out of memory? lower training.workers, training.batch_size or data.max_tiles") from None


class Collate:
    """Pads samples to one Batch; hands a UserError among them on."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, items: list[tuple[Sample, np.ndarray] | UserError]) -> Batch | UserError:
        for item in items:
            if isinstance(item, UserError):
                return item
        samples, tiles = zip(*items, strict=True)
        tile_embeddings, tile_mask = pad_tiles(tiles)
        length = max(len(s.token_ids) for s in samples) - 1
        ids = torch.tensor([s.token_ids + [self.pad_id] * (length + 1 - len(s.token_ids)) for s in samples])
        text_mask = torch.arange(length) < torch.tensor([[len(s.token_ids) - 1] for s in samples])
        # the end token is a label but never an input, so that a text's embedding is the same in every batch
        text = ids[:, :-1].masked_fill(~text_mask, self.pad_id)
        return Batch([s.slide.slide_id for s in samples], tile_embeddings, tile_mask, text, ids[:, 1:], text_mask)


def pad_tiles(tiles: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Slides of (N_i, D) -> (B, max N, D) zero-padded in the widest of their types, and the mask (B, max N)."""
    counts = torch.tensor([[len(t)] for t in tiles])
    dtype = np.result_type(*tiles)
    padded = np.zeros((len(tiles), int(counts.max()), tiles[0].shape[1]), dtype)
    for row, t in zip(padded, tiles, strict=True):
        row[: len(t)] = t
    return torch.from_numpy(padded), torch.arange(padded.shape[1]) < counts
