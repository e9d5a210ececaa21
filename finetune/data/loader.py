"""Samples -> batches, read ahead by worker processes or threads."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np

from ..common.errors import UserError
from .batch import Batch, Collate, Sample
from .loader_process import set_up_loader_process
from .sampler import BatchOrder, split_for_rank
from .slides import Slide

_READ_TIMEOUT = 300  # seconds; then a hanging loader process (a dead network drive) ends the run
_READ_AHEAD = 2  # micro-batches per worker
Reader = Callable[[Slide, int], np.ndarray]  # (slide, epoch) -> its tiles (N, D), or image tokens (n, D)
Result = Callable[[], np.ndarray]  # waits for a read


class BatchLoader:
    """The batches of one split.

    Workers are processes for tiles. They are spawned rather than forked, as a fork of a process with threads may hang,
    and import no torch. `concurrent.futures` notices a worker that was killed; torch's DataLoader can wait for it
    forever. For `encoded` slides they are threads: image tokens from the slide cache are one plain copy from disk.
    """

    def __init__(self, samples: Sequence[Sample], order: BatchOrder, read: Reader, pad_id: int, *, workers: int = 0,
                 encoded: bool = False, rank: int = 0, world_size: int = 1) -> None:
        """
        Args:
            samples: Of the split.
            order: Of the samples.
            read: Reads a slide.
            pad_id: Padding of the texts.
            workers: Number of them; 0 reads when a batch is needed.
            encoded: `read` gives image tokens of the slide cache.
            rank, world_size: Of this process, which gets its part of each step's micro-batches.
        """
        self.samples, self.order, self.collate = list(samples), order, Collate(pad_id, encoded=encoded)
        self._read, self._workers = read, workers
        self._rank, self._world_size = rank, world_size
        self._pool: Executor | None = None

    def epoch(self, epoch: int, start: int = 0) -> Iterator[list[Batch]]:
        """For each step from `start` on, this process's micro-batches (in a small last step perhaps none).

        Raises:
            UserError: A slide cannot be read, or a worker died or hangs.
        """
        ahead = _READ_AHEAD * self._workers
        pending: deque[list[tuple[list[Sample], list[Result]]]] = deque()
        for step in self.order.steps(epoch)[start:]:
            # wait for the oldest step only once enough others are being read
            pending.append(self._request_step(step, epoch))
            while pending and sum(map(len, pending)) - len(pending[0]) >= ahead:
                yield [self._finish(*batch) for batch in pending.popleft()]
        while pending:
            yield [self._finish(*batch) for batch in pending.popleft()]

    def count(self, epoch: int) -> int:
        """Number of steps of an epoch."""
        return self.order.count(epoch)

    def close(self) -> None:
        """End the workers; the next epoch starts new ones."""
        if self._pool is None:
            return
        processes = getattr(self._pool, "_processes", None) or {}  # before Python 3.14 there is no public way
        for process in processes.values():
            process.kill()  # the interpreter would wait at exit for one that hangs
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool = None

    def _request_step(self, step: list[list[int]], epoch: int) -> list[tuple[list[Sample], list[Result]]]:
        """Start to read this process's micro-batches of a step."""
        batches = []
        for indices in split_for_rank(step, self._rank, self._world_size):
            samples = [self.samples[i].at(epoch, self.order.seed) for i in indices]
            batches.append((samples, [self._request(s.slide, epoch) for s in samples]))
        return batches

    def _request(self, slide: Slide, epoch: int) -> Result:
        """Start to read; calling the result waits for it."""
        if not self._workers:
            return lambda: self._read(slide, epoch)
        if self._pool is None:
            self._pool = self._start_pool()
        try:
            future = self._pool.submit(self._read, slide, epoch)
        except BrokenProcessPool as error:
            raise self._failed(error) from None
        return lambda: future.result(_READ_TIMEOUT)

    def _start_pool(self) -> Executor:
        if self.collate.encoded:
            return ThreadPoolExecutor(self._workers)
        return ProcessPoolExecutor(self._workers, multiprocessing.get_context("spawn"), set_up_loader_process)

    def _finish(self, samples: list[Sample], results: list[Result]) -> Batch:
        try:
            return self.collate([(sample, result()) for sample, result in zip(samples, results, strict=True)])
        except (BrokenProcessPool, TimeoutError) as error:
            raise self._failed(error) from None

    def _failed(self, error: Exception) -> UserError:
        self.close()
        what = f"reading a slide took more than {_READ_TIMEOUT} s"
        if isinstance(error, BrokenProcessPool):
            what = "a loader process died"
        return UserError("training.workers", what,
                         "out of memory, or a dead network drive? lower training.workers or data.max_tiles")
