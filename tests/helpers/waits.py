"""Counts the places where the host would wait for a GPU, while everything runs on a CPU."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Results whose values or shapes the host has to know
_OPS = {"_local_scalar_dense", "item", "nonzero", "_unique2", "unique_consecutive", "unique_dim", "masked_select", "equal",
        "is_nonzero", "_assert_async", "bincount", "repeat_interleave"}
_METHODS = ("tolist", "numpy", "cpu")  # on a CPU no operation of torch shows them


class _Counter(TorchDispatchMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put_", "_index_put_impl_") and any(
            t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1])
        if name in _OPS or masks:
            self._found.append(f"{name} at {_where()}")
        return func(*args, **(kwargs or {}))


def _where() -> str:
    """The line of our code that is being run."""
    ours = [f for f in traceback.extract_stack() if "finetune" in f.filename or "coca_pytorch" in f.filename or "prism" in f.filename]
    return f"{ours[-1].filename.rsplit('/', 1)[-1]}:{ours[-1].name}" if ours else "?"


@contextlib.contextmanager
def host_waits() -> Iterator[list[str]]:
    """The waits while the block runs, each as `operation at file:function`."""
    found: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in _METHODS:
            original = getattr(torch.Tensor, name)

            def method(self, *args, _name=name, _original=original, **kwargs):
                found.append(f"{_name} at {_where()}")
                return _original(self, *args, **kwargs)

            patch.setattr(torch.Tensor, name, method)
        with _Counter(found):
            yield found
