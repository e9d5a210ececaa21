"""Which samples stand in which step of an epoch: a pure function of (seed, epoch)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

_POOL = 50  # batches among which an epoch sorts by size: enough for little padding, few enough to stay shuffled


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


def split_for_rank(step: list[list[int]], rank: int, world_size: int) -> list[list[int]]:
    """The micro-batches of a step that fall to `rank`; large ones are halved until all ranks have one."""
    while len(step) < world_size and any(len(batch) > 1 for batch in step):
        step = [half for b in step for half in (b[:len(b) // 2], b[len(b) // 2:]) if half]
    return step[rank::world_size]


def _chunks(items: list, size: int) -> list[list]:
    return [items[i:i + size] for i in range(0, len(items), size)]
