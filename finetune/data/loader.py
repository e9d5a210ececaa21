"""Samples -> batches, read ahead by worker processes or threads and, for a GPU, copied ahead."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from ..common.errors import UserError
from .batch import Batch, Collate, Sample, empty_tensor
from .cached_encoding import DamagedEncoding
from .device_copy import CopyStream
from .loader_process import end_pool, set_up_loader_process
from .sampler import BatchOrder, split_for_rank
from .slides import Slide

_READ_TIMEOUT = 300  # seconds; then a hanging loader process (a dead network drive) ends the run
_READ_AHEAD = 2  # micro-batches per worker
Reader = Callable[[Slide, int], np.ndarray]  # (slide, epoch) -> its tiles (N, D), or image tokens (n, D)
Result = Callable[[], Any]  # waits for a read


@runtime_checkable
class TokenReader(Protocol):
    """Reads image tokens, which are all of one shape, to where they belong in a batch."""

    shape: tuple[int, int]  # (n, D)
    dtype: str  # of numpy

    def into(self, row: np.ndarray, slide: Slide, epoch: int) -> None:
        """Read the tokens of a slide in an epoch into `row` (n, D)."""


class BatchLoader:
    """The batches of one split.

    Workers are processes for tiles. They are spawned rather than forked, as a fork of a process with threads may hang,
    and import no torch. `concurrent.futures` notices a worker that was killed; torch's DataLoader can wait for it
    forever. A `TokenReader` is called in threads: image tokens from the slide cache are one plain copy from disk, and
    each is read to its place in the batch. Tiles are put together in a thread of their own.
    """

    def __init__(self, samples: Sequence[Sample], order: BatchOrder, read: Reader | TokenReader, pad_id: int, *,
                 workers: int = 0, rank: int = 0, world_size: int = 1, device: torch.device | None = None) -> None:
        """
        Args:
            samples: Of the split.
            order: Of the samples.
            read: Reads a slide.
            pad_id: Padding of the texts.
            workers: Number of them; 0 reads when a batch is needed.
            rank, world_size: Of this process, which gets its part of each step's micro-batches.
            device: Where the batches are needed. To a GPU those of the next step are copied while a step runs; else
                they stay where they are.
        """
        uses_gpu = device is not None and device.type == "cuda"
        self.samples, self.order, self.collate = list(samples), order, Collate(pad_id, pin=uses_gpu)
        self._read, self._workers = read, workers
        self._rank, self._world_size = rank, world_size
        self._copies = CopyStream(device) if uses_gpu else None
        self._pool: Executor | None = None
        self._collator: ThreadPoolExecutor | None = None

    def epoch(self, epoch: int, start: int = 0) -> Iterator[list[Batch]]:
        """For each step from `start` on, this process's micro-batches (in a small last step perhaps none).

        Raises:
            UserError: A slide cannot be read, or a worker died or hangs.
        """
        steps = iter(self.order.steps(epoch)[start:])
        pending: deque[_Step] = deque()
        try:
            while self._request_ahead(pending, steps, epoch):
                batches = self._take(pending.popleft(), epoch)
                if pending and self._copies:
                    pending[0].copy_if_read(self._copies)
                yield batches
        except (BrokenProcessPool, TimeoutError) as error:
            raise self._failed(error) from None
        finally:
            for step in pending:
                step.cancel()

    def _take(self, step: _Step, epoch: int) -> list[Batch]:
        """The micro-batches of a step. What is damaged in the slide cache is repaired here, in the caller's thread."""
        while True:
            try:
                return step.take(self._copies)
            except DamagedEncoding as damage:
                damage.repair()
                step = self._request_step(step.indices, epoch)

    def count(self, epoch: int) -> int:
        """Number of steps of an epoch."""
        return self.order.count(epoch)

    def total(self, epochs: int) -> int:
        """Number of steps of so many epochs."""
        return self.order.total(epochs)

    def close(self) -> None:
        """End the workers; the next epoch starts new ones."""
        pool, self._pool = self._pool, None
        collator, self._collator = self._collator, None
        end_pool(pool)
        end_pool(collator)

    def _request_ahead(self, pending: deque[_Step], steps: Iterator[list[list[int]]], epoch: int) -> bool:
        """Start to read further steps, until enough micro-batches after the first step are being read.

        Returns whether there is a step.
        """
        while not pending or sum(map(len, pending)) - len(pending[0]) < _READ_AHEAD * self._workers:
            step = next(steps, None)
            if step is None:
                break
            pending.append(self._request_step(step, epoch))
        return bool(pending)

    def _request_step(self, step: list[list[int]], epoch: int) -> _Step:
        """Start to read this process's micro-batches of a step."""
        futures = []
        for indices in split_for_rank(step, self._rank, self._world_size):
            samples = [self.samples[i].at(epoch, self.order.seed) for i in indices]
            make = self._request_tokens if isinstance(self._read, TokenReader) else self._request_tiles
            futures.append(self._in_background(make(samples, epoch)))
        return _Step(step, futures)

    def _request_tiles(self, samples: list[Sample], epoch: int) -> Callable[[], Batch]:
        """Start to read; calling the result waits for it, and puts the tiles together."""
        results = [self._request(self._read, sample.slide, epoch) for sample in samples]
        return lambda: self.collate([(sample, result()) for sample, result in zip(samples, results, strict=True)])

    def _request_tokens(self, samples: list[Sample], epoch: int) -> Callable[[], Batch]:
        """Start to read into the rows of a batch; calling the result waits for it."""
        tokens = empty_tensor((len(samples), *self._read.shape), self._read.dtype, self.collate.pin)
        rows = tokens.numpy()
        results = [self._request(self._read.into, row, sample.slide, epoch)
                   for row, sample in zip(rows, samples, strict=True)]

        def finish() -> Batch:
            for result in results:
                result()
            return self.collate.encoded(samples, tokens)

        return finish

    def _request(self, read: Callable[..., Any], *args: Any) -> Result:
        """Start to read; calling the result waits for it."""
        if not self._workers:
            return lambda: read(*args)
        if self._pool is None:
            self._pool = self._start_pool()
        future = self._pool.submit(read, *args)
        return lambda: future.result(_READ_TIMEOUT)

    def _start_pool(self) -> Executor:
        if isinstance(self._read, TokenReader):
            return ThreadPoolExecutor(self._workers)
        return ProcessPoolExecutor(self._workers, multiprocessing.get_context("spawn"), set_up_loader_process)

    def _in_background(self, finish: Callable[[], Batch]) -> Future[Batch]:
        """The batch that `finish` gives, made in another thread; without workers when it is asked for."""
        if not self._workers:
            return _Lazy(finish)
        if self._collator is None:
            self._collator = ThreadPoolExecutor(1)
        return self._collator.submit(finish)

    def _failed(self, error: Exception) -> UserError:
        self.close()
        what = f"reading a slide took more than {_READ_TIMEOUT} s"
        if isinstance(error, BrokenProcessPool):
            what = "a loader process died"
        return UserError("training.workers", what,
                         "out of memory, or a dead network drive? lower training.workers or data.max_tiles")


class _Lazy(Future):
    """A result that is computed when it is asked for."""

    def __init__(self, compute: Callable[[], Batch]) -> None:
        super().__init__()
        self._compute = compute

    def result(self, timeout: float | None = None) -> Batch:
        return self._compute()


class _Step:
    """The micro-batches of one step while they are being read."""

    def __init__(self, indices: list[list[int]], futures: list[Future[Batch]]) -> None:
        """indices: Of the samples, on all ranks."""
        self.indices, self._futures = indices, futures
        self._copied: list[Batch] | None = None

    def __len__(self) -> int:
        return len(self._futures)

    def take(self, copies: CopyStream | None) -> list[Batch]:
        """The micro-batches, on the device of `copies` if that is given. Waits until they are read."""
        if copies is None:
            return [future.result() for future in self._futures]
        if self._copied is None:
            self._copied = copies.copy([future.result() for future in self._futures])
        copies.wait(self._copied)
        return self._copied

    def copy_if_read(self, copies: CopyStream) -> None:
        """Begin to copy to the device unless reading still takes time, for which the step before must not wait."""
        if all(future.done() and future.exception() is None for future in self._futures):
            self._copied = copies.copy([future.result() for future in self._futures])

    def cancel(self) -> None:
        """Forget what has not begun."""
        for future in self._futures:
            future.cancel()
