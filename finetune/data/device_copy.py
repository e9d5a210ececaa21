"""Copies batches to a GPU beside the work on it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .batch import Batch


class CopyStream:
    """A stream of a GPU that copies batches from pinned memory while the training step runs on the current stream.

    https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-streams
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    def copy(self, batches: Sequence[Batch]) -> list[Batch]:
        """Begin to copy; the results must not be used before `wait`."""
        with torch.cuda.stream(self._stream):
            return [batch.to(self._device) for batch in batches]

    def wait(self, batches: Sequence[Batch]) -> None:
        """Let the work that is queued from here on begin when these batches, the last ones copied, are there.

        The device waits, not this process.
        """
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for batch in batches:
            batch.record_stream(current)  # they were allocated for the other stream
