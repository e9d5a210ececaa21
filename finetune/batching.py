"""Samples -> batches. Which samples stand in which batch is a pure function of (seed, epoch)."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace

import numpy as np
import torch

from .errors import UserError
from .tiles import Slide
from .tokenizer import Tokenizer

_READ_TIMEOUT = 300  # seconds: a loader process that hangs (a dead network drive) ends the run, not stalls it
_AHEAD = 2  # batches read ahead by each worker
_POOL = 50  # batches among which an epoch sorts by size: enough for little padding, few enough to stay shuffled

Reader = Callable[[Slide, int], np.ndarray]  # (slide, epoch) -> its tiles (N, D), or image tokens (n, D)


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


class BatchOrder:
    """Which samples stand in which step of an epoch, and in which micro-batch of it.

    An epoch is shuffled and cut into steps of `batch_size * micro_batches`, these into micro-batches of `batch_size`.
    With `max_tokens` it is sorted by rough size within pools of some batches, cut into micro-batches of as many samples
    as fit in so many padded text tokens (two at least), and these are shuffled; a step is `micro_batches` of them. So
    little is padding. Only then, and only roughly, as texts of one length tend to say the same, and a batch of them has
    few true negatives (LOG.md). The same (seed, epoch) gives the same steps, on however many processes they are taken.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], batch_size: int, seed: int, *, shuffle: bool,
                 drop_single: bool = False, max_tokens: int | None = None, micro_batches: int = 1) -> None:
        """sizes: (tiles to pad, or 0; text tokens) of each sample."""
        self.sizes, self.batch_size, self.seed = list(sizes), batch_size, seed
        self.shuffle, self.drop_single, self.max_tokens = shuffle, drop_single, max_tokens
        self.micro_batches = micro_batches

    def steps(self, epoch: int) -> list[list[list[int]]]:
        """For each step its micro-batches of sample indices."""
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.sizes)).tolist() if self.shuffle else list(range(len(self.sizes)))
        if self.max_tokens is not None and self.shuffle:
            usual = max(2, self.max_tokens * len(order) // sum(tokens for _, tokens in self.sizes))
            pool = _POOL * usual
            order = [i for p in range(0, len(order), pool) for i in sorted(order[p:p + pool], key=self._rough_size)]
        cut = self._cut(order)
        if self.shuffle:
            cut = [cut[b] for b in rng.permutation(len(cut))]
        if self.max_tokens is not None:
            return _chunks(cut, self.micro_batches)
        return [_chunks(step, self.batch_size) for step in cut]

    def epoch(self, epoch: int) -> list[list[int]]:
        """The micro-batches of all steps."""
        return [batch for step in self.steps(epoch) for batch in step]

    def count(self, epoch: int) -> int:
        """Number of steps of an epoch."""
        if self.max_tokens is not None:
            return len(self.steps(epoch))
        full, rest = divmod(len(self.sizes), self.batch_size * self.micro_batches)
        return full + (rest > (1 if self.drop_single else 0))

    def padding(self, epoch: int) -> float:
        """Share of an epoch's text tokens that are padding."""
        lengths = [[self.sizes[i][-1] for i in batch] for batch in self.epoch(epoch)]
        padded = sum(max(batch) * len(batch) for batch in lengths)
        return 1 - sum(map(sum, lengths)) / max(padded, 1)

    def _rough_size(self, i: int) -> tuple[int, int]:
        tiles, tokens = self.sizes[i]
        return int(8 * math.log2(tiles + 1)), tokens // 4  # steps of 9 % of the tiles, of 4 tokens

    def _cut(self, order: Iterable[int]) -> list[list[int]]:
        """Cut into steps or, with a budget of tokens, into micro-batches."""
        batches: list[list[int]] = []
        longest = 0
        for i in order:
            longest = max(longest, self.sizes[i][-1])
            if not batches or self._full(len(batches[-1]), longest):
                batches.append([])
                longest = self.sizes[i][-1]
            batches[-1].append(i)
        return [b for b in batches if len(b) > 1 or not self.drop_single]

    def _full(self, count: int, longest: int) -> bool:
        if self.max_tokens is None:
            return count == self.batch_size * self.micro_batches
        return count >= 2 and (count + 1) * longest > self.max_tokens


class Batches:
    """The batches of one split, read ahead by `workers`: processes for tiles, threads for `encoded` slides.

    Image tokens from the slide cache are one plain copy from disk, which threads do as well.

    Processes are started anew rather than forked (a fork of a process with threads may hang) and import no torch.
    `concurrent.futures` notices a worker that was killed; torch's DataLoader can wait for it for ever.
    """

    def __init__(self, samples: Sequence[Sample], order: BatchOrder, read: Reader, pad_id: int, *, workers: int = 0,
                 encoded: bool = False, rank: int = 0, world_size: int = 1) -> None:
        """rank, world_size: of this process, which gets its part of each step's micro-batches."""
        self.samples, self.order, self.collate = list(samples), order, Collate(pad_id, encoded=encoded)
        self._read, self._workers = read, workers
        self._rank, self._world_size = rank, world_size
        self._pool: Executor | None = None

    def epoch(self, epoch: int, start: int = 0) -> Iterator[list[Batch]]:
        """For each step from `start` on, this process's micro-batches (in a small last step perhaps none).

        Raises UserError for a slide that cannot be read or a worker that died.
        """
        ahead = _AHEAD * self._workers
        waiting: deque[list[tuple[list[Sample], list[Callable[[], np.ndarray]]]]] = deque()
        for step in self.order.steps(epoch)[start:]:
            batches = [[self.samples[i].at(epoch, self.order.seed) for i in batch]
                       for batch in dealt(step, self._rank, self._world_size)]
            waiting.append([(samples, [self._request(s.slide, epoch) for s in samples]) for samples in batches])
            while waiting and sum(map(len, waiting)) - len(waiting[0]) >= ahead:
                yield [self._finish(*batch) for batch in waiting.popleft()]
        while waiting:
            yield [self._finish(*batch) for batch in waiting.popleft()]

    def count(self, epoch: int) -> int:
        """Number of steps of an epoch."""
        return self.order.count(epoch)

    def close(self) -> None:
        """End the workers; the next epoch starts new ones."""
        if self._pool is not None:
            for process in (getattr(self._pool, "_processes", None) or {}).values():
                process.kill()  # one that hangs would be waited for at exit; before Python 3.14 there is no public way
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    def _request(self, slide: Slide, epoch: int) -> Callable[[], np.ndarray]:
        """Begin to read; calling the result waits for it."""
        if not self._workers:
            return lambda: self._read(slide, epoch)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._workers) if self.collate.encoded else ProcessPoolExecutor(
                self._workers, multiprocessing.get_context("spawn"), _start_worker)
        try:
            future = self._pool.submit(self._read, slide, epoch)
        except BrokenProcessPool as error:
            raise self._lost(error) from None
        return lambda: future.result(_READ_TIMEOUT)

    def _finish(self, samples: list[Sample], results: list[Callable[[], np.ndarray]]) -> Batch:
        try:
            return self.collate([(s, result()) for s, result in zip(samples, results, strict=True)])
        except (BrokenProcessPool, TimeoutError) as error:
            raise self._lost(error) from None

    def _lost(self, error: Exception) -> UserError:
        self.close()
        what = "a loader process died" if isinstance(error, BrokenProcessPool) else \
            f"reading a slide took more than {_READ_TIMEOUT} s"
        return UserError("training.workers", what,
                         "out of memory, or a dead network drive? lower training.workers or data.max_tiles")


def dealt(step: list[list[int]], rank: int, world_size: int) -> list[list[int]]:
    """The micro-batches of a step that fall to `rank`; large ones are halved until all ranks have one."""
    while len(step) < world_size and any(len(batch) > 1 for batch in step):
        step = [half for b in step for half in (b[:len(b) // 2], b[len(b) // 2:]) if half]
    return step[rank::world_size]


def _chunks(items: list, size: int) -> list[list]:
    return [items[i:i + size] for i in range(0, len(items), size)]


def _start_worker() -> None:
    """In a loader process: a signal to the whole group (Ctrl+C, a scheduler's SIGTERM) is the trainer's to handle, and
    when that is gone, however it died, so is this."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # SIGTERM itself must go on working: the pool ends its processes with it
    parent = multiprocessing.parent_process()

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


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
