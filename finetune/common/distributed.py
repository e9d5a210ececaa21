"""The processes of a run and their collectives; the only module that uses `torch.distributed`.

torchrun starts the processes and numbers them (RANK, WORLD_SIZE, LOCAL_RANK). A plain run is a world of one process, in
which every collective is the identity and `torch.distributed` is not imported.
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

# Long waits are normal: rank 0 may index 100 000 slides meanwhile. A dead process is noticed at once by its closed
# connections, and torchrun ends the rest.
_TIMEOUT = datetime.timedelta(days=1)
_RENDEZVOUS_TIMEOUT = datetime.timedelta(minutes=5)
_BUCKET = 1 << 24  # gradient elements per all-reduce (64 MB): large enough for full speed, small beside the model
T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The rank of this process and the number of processes. All must call the collectives in the same order.

    Attributes:
        rank: Number of this process in the run.
        size: Number of processes.
        local_rank: Number of this process on its machine.
        store: key/value store of the rendezvous, None for a world of one.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    store: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes files, prints and holds the run lock."""
        return self.rank == 0

    def broadcast_object(self, make: Callable[[], T]) -> T:
        """Call `make` on rank 0 and return its result on all ranks. A UserError of rank 0 is raised on all."""
        if self.size == 1:
            return make()
        result_and_error: list[Any] = [None, None]
        if self.is_main:
            try:
                result_and_error[0] = make()
            except UserError as error:
                result_and_error[1] = error
        with _lost_connection():
            torch.distributed.broadcast_object_list(result_and_error, device=torch.device("cpu"))
        result, error = result_and_error
        if error is not None:
            raise error
        return result

    def gather(self, value: T) -> list[T]:
        """The picklable values of all ranks, in the order of the ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _lost_connection():
            torch.distributed.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is true on any rank."""
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
        if self.size == 1:
            return
        for tensor in tensors:
            with _lost_connection():
                torch.distributed.all_reduce(tensor)

    @torch.no_grad()
    def broadcast_parameters(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrite each tensor with its values on rank 0."""
        if self.size == 1:
            return
        for tensor in tensors:
            with _lost_connection():
                torch.distributed.broadcast(tensor, 0)

    def gather_rows(self, rows: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """Concatenate the rows of all ranks, without gradients.

        Args:
            rows: (counts[rank], ...)
            counts: Number of rows of each rank.

        Returns:
            (sum of counts, ...), the rows of rank 0 first.
        """
        if self.size == 1:
            return rows.detach()
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[:len(rows)] = rows.detach()
        parts = [torch.empty_like(padded) for _ in counts]
        with _lost_connection():
            torch.distributed.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Sum the gradients over the ranks.

        A gradient that some ranks lack (no samples) counts as zero there; one that all ranks lack (a loss of weight 0)
        stays None, so that weight decay leaves its parameter alone.

        DistributedDataParallel does this inside the backward pass, where a rank that runs out of memory, has no samples
        or takes another number of micro-batches would leave the other ranks waiting in a collective forever.
        """
        if self.size == 1:
            return
        num_ranks_with = self.sum([float(p.grad is not None) for p in parameters])
        shared = [p for p, num_ranks in zip(parameters, num_ranks_with, strict=True) if num_ranks > 0]
        for parameter in shared:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets([parameter.grad for parameter in shared]):
            self._sum_bucket(bucket)

    def _sum_bucket(self, gradients: list[torch.Tensor]) -> None:
        """Sum tensors of one type in place, in one collective."""
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        self.sum_(flat)
        parts = flat.split([gradient.numel() for gradient in gradients])
        for gradient, summed in zip(gradients, parts, strict=True):
            gradient.copy_(summed.view_as(gradient))


ALONE = World()


@contextlib.contextmanager
def join_world(device: torch.device) -> Iterator[World]:
    """The processes that torchrun has started, or a world of one.

    The backend is gloo for tensors on the CPU and NCCL for those on a GPU. If several ranks end with an error, only the
    first is reported: the others are consequences or duplicates.

    Raises:
        UserError: The processes cannot connect.
    """
    if _world_size() == 1:
        yield ALONE
        return
    import torch.distributed as dist

    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=_RENDEZVOUS_TIMEOUT))
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_TIMEOUT)
    except (RuntimeError, ValueError) as error:  # torch's errors of the network and of the environment
        raise UserError("torchrun", f"the processes cannot find each other ({str(error).splitlines()[0]})",
                        "check MASTER_ADDR, MASTER_PORT; with several network cards set GLOO_SOCKET_IFNAME") from None
    world = World(rank, size, int(os.environ.get("LOCAL_RANK", rank)), store)
    try:
        yield world
    except UserError as error:
        error.already_reported = not _is_first_error(store)
        raise
    dist.destroy_process_group()


def local_rank() -> int | None:
    """The number of this process on its machine, None in a plain run."""
    return int(os.environ.get("LOCAL_RANK", "0")) if _world_size() > 1 else None


def _world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _is_first_error(store: Any) -> bool:
    try:
        return store.add("prism_coca_errors", 1) == 1
    except RuntimeError:  # the store is gone, and with it the process that may have reported an error
        return True


@contextlib.contextmanager
def _lost_connection() -> Iterator[None]:
    """Turn a broken collective into a UserError: with gloo, torch raises a plain RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise UserError("torchrun", f"another process of this run is gone ({str(error).splitlines()[0][:120]})",
                        "killed, or out of memory? start again with --resume auto") from None


def _buckets(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Consecutive tensors of one type, at most `_BUCKET` elements together, or a single larger one."""
    bucket: list[torch.Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (size + tensor.numel() > _BUCKET or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket
