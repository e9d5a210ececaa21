"""The processes of a run and what they tell each other; the only module that touches `torch.distributed`.

torchrun starts the processes and says who is who (RANK, WORLD_SIZE, LOCAL_RANK). A plain run is a world of one, for
which every function here is the identity and `torch.distributed` is not imported.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from .errors import UserError

# Waiting is no fault: rank 0 may look through 100 000 slides while the others wait. A process that died is noticed at
# once by its closed connections, and torchrun ends the rest.
_TIMEOUT = datetime.timedelta(days=1)
_BUCKET = 1 << 24  # numbers of the gradient sent together (64 MB): large enough for full speed, small beside the model
T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """Who this process is among how many. All of them must call the methods below in the same order."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    store: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes, prints and holds the lock."""
        return self.rank == 0

    def broadcast_object(self, make: Callable[[], T]) -> T:
        """What `make` returns on rank 0, on all ranks. A UserError of rank 0 is raised on all."""
        if self.size == 1:
            return make()
        answer: list[Any] = [None, None]
        if self.is_main:
            try:
                answer[0] = make()
            except UserError as error:
                answer[1] = error
        with _lost_connection():
            torch.distributed.broadcast_object_list(answer, device=torch.device("cpu"))
        if answer[1] is not None:
            raise answer[1]
        return answer[0]

    def gather(self, value: T) -> list[T]:
        """The plain values of all ranks, in their order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _lost_connection():
            torch.distributed.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """Whether it is true on one rank at least."""
        return bool(self.sum([float(flag)])[0])

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums over the ranks, in float64; bit-equal on all of them."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        with _lost_connection():
            torch.distributed.all_reduce(total)
        return total.tolist()

    def sum_(self, *tensors: torch.Tensor) -> None:
        """Replace each tensor by its sum over the ranks."""
        for tensor in tensors if self.size > 1 else ():
            with _lost_connection():
                torch.distributed.all_reduce(tensor)

    @torch.no_grad()
    def broadcast_parameters(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give each tensor the values it has on rank 0."""
        for tensor in tensors if self.size > 1 else ():
            with _lost_connection():
                torch.distributed.broadcast(tensor, 0)

    def gather_rows(self, rows: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """(counts[rank], ...) of each rank -> (sum of counts, ...), the rows of rank 0 first. Without gradients."""
        if self.size == 1:
            return rows.detach()
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[:len(rows)] = rows.detach()
        parts = [torch.empty_like(padded) for _ in counts]
        with _lost_connection():
            torch.distributed.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Sum the gradients over the ranks. One that some ranks lack (no samples) is zero there; one that all lack (a
        loss of weight 0) stays None, so that weight decay leaves its parameter alone.

        What DistributedDataParallel does, but after the backward pass: inside it, a rank that runs out of memory, has
        no samples or takes another number of micro-batches would leave the others waiting in a collective for ever.
        """
        if self.size == 1:
            return
        present = self.sum([float(p.grad is not None) for p in parameters])
        trained = [p for p, ranks in zip(parameters, present, strict=True) if ranks]
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets([p.grad for p in trained]):
            flat = torch.cat([g.reshape(-1) for g in bucket])
            self.sum_(flat)
            for gradient, summed in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(summed.view_as(gradient))


ALONE = World()


@contextlib.contextmanager
def join_world(device: torch.device) -> Iterator[World]:
    """The world that torchrun has started this process in, or a world of one.

    gloo between CPUs; with CUDA NCCL for tensors on the device. Of the errors that end the ranks only the first is
    told: the others follow from it, or are the same.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    import torch.distributed as dist

    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=datetime.timedelta(minutes=5)))
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", store=store, rank=rank,
                                world_size=size, timeout=_TIMEOUT)
    except (RuntimeError, ValueError) as error:  # torch's errors of the network and of the environment
        raise UserError("torchrun", f"the processes cannot find each other ({str(error).splitlines()[0]})",
                        "check MASTER_ADDR, MASTER_PORT; with several network cards set GLOO_SOCKET_IFNAME") from None
    world = World(rank, size, int(os.environ.get("LOCAL_RANK", rank)), store)
    try:
        yield world
    except UserError as error:
        error.already_reported = not _is_first(store)
        raise
    dist.destroy_process_group()


def local_rank() -> int | None:
    """The number of this process on its machine, None in a plain run."""
    return int(os.environ.get("LOCAL_RANK", "0")) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None


def _is_first(store: Any) -> bool:
    try:
        return store.add("prism_coca_errors", 1) == 1
    except RuntimeError:  # the store has gone, and with it whoever might have told
        return True


@contextlib.contextmanager
def _lost_connection() -> Iterator[None]:
    """A broken collective as a UserError: torch has no exception of its own for it with gloo."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise UserError("torchrun", f"another process of this run is gone ({str(error).splitlines()[0][:120]})",
                        "killed, or out of memory? start again with --resume auto") from None


def _buckets(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Neighbours of one type, together `_BUCKET` numbers or one tensor."""
    bucket: list[torch.Tensor] = []
    for tensor in tensors:
        if bucket and (sum(t.numel() for t in bucket) + tensor.numel() > _BUCKET or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
