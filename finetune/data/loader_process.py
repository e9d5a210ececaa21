"""Processes that read or clean for the main one. A module without torch, as each of them imports what it imports."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from ..common.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


def set_up_loader_process() -> None:
    """Ignore signals meant for the trainer, and exit when the trainer has exited for any reason.

    A terminal (Ctrl+C) and some schedulers (SIGTERM) signal the whole process group.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # SIGTERM cannot be ignored instead: the pool ends its processes with it
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def map_in_processes(function: Callable[[Item], Result], items: Iterable[Item], processes: int, chunksize: int,
                     set_up: Callable[..., None] | None = None, set_up_args: tuple = ()) -> Iterator[Result]:
    """Results in order, from processes that end with this one, however it ends.

    They are spawned, as forking with threads may hang.

    Args:
        set_up: Called in each process first, with `set_up_args`.

    Raises:
        UserError: A process was killed.
    """
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _set_up, (set_up, set_up_args))
    try:
        yield from pool.map(function, items, chunksize=chunksize)
    except BrokenProcessPool:
        raise UserError("this machine", "a process that reads the files was killed",
                        "out of memory? free some, then give the same command again") from None
    finally:
        end_pool(pool)  # after an error or Ctrl+C its processes would go on to the end of their part


def end_pool(pool: Executor | None) -> None:
    """End a pool and its processes now; the interpreter would wait at exit for one that hangs."""
    if pool is None:
        return
    for process in list((getattr(pool, "_processes", None) or {}).values()):  # no public way before Python 3.14
        process.kill()
    pool.shutdown(wait=False, cancel_futures=True)


def _set_up(set_up: Callable[..., None] | None, args: tuple) -> None:
    set_up_loader_process()
    if set_up is not None:
        set_up(*args)
