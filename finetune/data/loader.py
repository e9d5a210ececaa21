"""Samples -> batches. Which samples stand in which batch is a pure function of (seed, epoch)."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np

from ..common.errors import UserError
from .batch import Batch, Collate, Sample
from .sampler import BatchOrder, split_for_rank
from .slides import Slide

_READ_TIMEOUT = 300  # seconds: a loader process that hangs (a dead network drive) ends the run, not stalls it
_AHEAD = 2  # batches read ahead by each worker
Reader = Callable[[Slide, int], np.ndarray]  # (slide, epoch) -> its tiles (N, D), or image tokens (n, D)


class BatchLoader:
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
                       for batch in split_for_rank(step, self._rank, self._world_size)]
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
