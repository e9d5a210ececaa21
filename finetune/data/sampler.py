"""Which samples form which step of an epoch: a pure function of (seed, epoch)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_COUNTED = 1000  # epochs whose steps are counted
_POOL = 50  # batches among which an epoch is sorted by size: enough for little padding, few enough to stay shuffled


class BatchOrder:
    """Which samples form which step of an epoch, and which micro-batch of the step.

    An epoch is shuffled and cut into steps of `batch_size * micro_batches`, these into micro-batches of `batch_size`.

    With `max_tokens` it is instead sorted by rough size within pools of some batches and cut into micro-batches of as
    many samples (two at least) as fit into `max_tokens` padded text tokens; these are shuffled, and a step is
    `micro_batches` of them. That saves most of the padding. It is not done without `max_tokens`, and only by rough
    size, as texts of equal length are often identical: a batch of them has few true negatives (LOG.md).

    The same (seed, epoch) gives the same steps for any number of processes.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], batch_size: int, seed: int, *, shuffle: bool,
                 drop_single: bool = False, max_tokens: int | None = None, micro_batches: int = 1) -> None:
        """
        Args:
            sizes: (tiles to pad, or 0; text tokens) of each sample.
            batch_size: Samples of a micro-batch.
            seed: Of the shuffle.
            shuffle: False keeps the order of the samples.
            drop_single: Leave out a last step of one sample, which has no negative.
            max_tokens: Text tokens of a micro-batch, padding included; None cuts by `batch_size`.
            micro_batches: Of a step.
        """
        self.sizes, self.batch_size, self.seed = list(sizes), batch_size, seed
        self.shuffle, self.drop_single, self.max_tokens = shuffle, drop_single, max_tokens
        self.micro_batches = micro_batches

    def steps(self, epoch: int) -> list[list[list[int]]]:
        """For each step its micro-batches of sample indices."""
        groups = self._shuffled(epoch) if self.shuffle else self._cut(list(range(len(self.sizes))))
        if self.max_tokens is not None:
            return _chunks(groups, self.micro_batches)
        return [_chunks(step, self.batch_size) for step in groups]

    def epoch(self, epoch: int) -> list[list[int]]:
        """The micro-batches of all steps."""
        return [batch for step in self.steps(epoch) for batch in step]

    def count(self, epoch: int) -> int:
        """Number of steps of an epoch."""
        if self.max_tokens is not None:
            return len(self.steps(epoch))
        full, rest = divmod(len(self.sizes), self.batch_size * self.micro_batches)
        least = 2 if self.drop_single else 1  # samples of the last step
        return full + (rest >= least)

    def total(self, epochs: int) -> int:
        """Number of steps of so many epochs; where each has its own number, from the mean of the first 1000."""
        if self.max_tokens is None:
            return epochs * self.count(0)
        counted = min(epochs, _COUNTED)
        steps = sum(map(self.count, range(counted)))
        return steps if counted == epochs else round(steps / counted * epochs)

    def padding(self, epoch: int) -> float:
        """Share of an epoch's text tokens that are padding."""
        lengths = [[self.sizes[i][1] for i in batch] for batch in self.epoch(epoch)]
        padded = sum(max(batch) * len(batch) for batch in lengths)
        return 1 - sum(map(sum, lengths)) / max(padded, 1)

    def _shuffled(self, epoch: int) -> list[list[int]]:
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.sizes)).tolist()
        if self.max_tokens is not None:
            order = self._sort_in_pools(order)
        groups = self._cut(order)
        return [groups[i] for i in rng.permutation(len(groups))]

    def _sort_in_pools(self, order: list[int]) -> list[int]:
        total = sum(tokens for _, tokens in self.sizes)
        usual_batch = max(2, self.max_tokens * len(order) // total)  # samples
        pools = _chunks(order, _POOL * usual_batch)
        return [i for pool in pools for i in sorted(pool, key=self._rough_size)]

    def _rough_size(self, i: int) -> tuple[int, int]:
        tiles, tokens = self.sizes[i]
        return int(8 * math.log2(tiles + 1)), tokens // 4  # in steps of 9 % of the tiles, and of 4 tokens

    def _cut(self, order: list[int]) -> list[list[int]]:
        """Cut into steps or, with `max_tokens`, into micro-batches."""
        groups: list[list[int]] = []
        longest = 0  # text of the last group, in tokens
        for i in order:
            tokens = self.sizes[i][1]
            longest = max(longest, tokens)
            if not groups or self._is_full(groups[-1], longest):
                groups.append([])
                longest = tokens
            groups[-1].append(i)
        return [group for group in groups if len(group) > 1 or not self.drop_single]

    def _is_full(self, group: list[int], longest: int) -> bool:
        """Whether no other sample fits, if the longest text then has `longest` tokens."""
        if self.max_tokens is None:
            return len(group) == self.batch_size * self.micro_batches
        return len(group) >= 2 and (len(group) + 1) * longest > self.max_tokens


def split_for_rank(step: list[list[int]], rank: int, world_size: int) -> list[list[int]]:
    """The micro-batches of a step for one process; large ones are halved until every process has one."""
    while len(step) < world_size and any(len(batch) > 1 for batch in step):
        halves = []
        for batch in step:
            middle = len(batch) // 2
            halves += [batch[:middle], batch[middle:]]
        step = [half for half in halves if half]
    return step[rank::world_size]


def _chunks(items: list, size: int) -> list[list]:
    return [items[i:i + size] for i in range(0, len(items), size)]
