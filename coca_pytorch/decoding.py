"""The key/value cache of CoCa's decoder. Shapes: b sequences, t tokens, j keys, d dimension of a head."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_FIRST_CAPACITY = 64  # tokens; doubled when full, so that a caption costs a handful of copies
_PACK = "_reorder_linear_weight"


class DecoderCache:
    """Keys and values of all layers: of the tokens so far (self-attention) and of the image (cross-attention).

    Made by `CoCa.start_decoding`, filled by `CoCa.decode_step`; multi-query attention keeps it small (full size: 0.8 MB
    per slide, 6 KB per token).

    Attributes:
        length: Number of cached tokens.
        packed: Context in which tokens are computed, a hook for faster products (`PackedLinears`).
    """

    def __init__(self, cross: list[tuple[Tensor, Tensor]], batch: int, depth: int) -> None:
        """cross: per multimodal layer keys and values, each (b, j, d). depth: number of self-attention layers."""
        self.cross, self.batch, self.length = cross, batch, 0
        self.packed: AbstractContextManager = nullcontext()
        self._past: list[Tensor | None] = [None] * depth  # per layer (2, b, capacity, d)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """k, v (b, t, d) of the tokens after `length` -> keys and values of all tokens, each (b, length + t, d).

        `length` itself moves in `advance`, once every layer has seen the tokens.
        """
        end, past = self.length + k.shape[1], self._past[layer]
        if past is None or end > past.shape[2]:
            grown = v.new_empty(2, len(k), max(_FIRST_CAPACITY, 2 * end), k.shape[-1])
            if past is not None:
                grown[:, :, :self.length] = past[:, :, :self.length]
            past = self._past[layer] = grown
        past[0, :, self.length:end], past[1, :, self.length:end] = k, v
        return past[0, :, :end], past[1, :, :end]

    def advance(self, tokens: int) -> None:
        """Count tokens that all layers have appended."""
        self.length += tokens

    def reorder(self, indices: Tensor) -> None:
        """indices (b',): sequence n continues the current sequence indices[n], as beam search selects."""
        self.batch = len(indices)
        self.cross = [(k.index_select(0, indices), v.index_select(0, indices)) for k, v in self.cross]
        self._past = [None if past is None else past.index_select(1, indices) for past in self._past]

    def select(self, indices: Tensor) -> DecoderCache:
        """A new cache whose sequence n continues sequence indices[n]; this one stays as it is."""
        selected = copy(self)
        selected.reorder(indices)
        return selected

    def repeat(self, n: int) -> None:
        """Expand each sequence to n neighbours: a b c -> a a b b c c for n = 2."""
        device = self.cross[0][0].device if self.cross else None
        self.reorder(torch.arange(self.batch, device=device).repeat_interleave(n))


class PackedLinears(TorchFunctionMode):
    """While active (in this thread), `F.linear` takes some weights from copies in bfloat16, laid out for oneDNN.

    A product with few rows is bound by reading its weights. Plain `F.linear` reads a bfloat16 matrix at 15 GB/s on
    two CPU cores, from this layout 32 GB/s (the memory gives 55). Packing all weights costs about as much as a few
    tokens. The operators are those that torch.compile emits.
    """

    def __init__(self, modules: Iterable[nn.Module], rows: int) -> None:
        """
        Args:
            modules: Their linear layers are packed.
            rows: Number of rows in each product.
        """
        super().__init__()
        linears = [part for module in modules for part in module.modules() if isinstance(part, nn.Linear)]
        self._packed = {id(linear.weight): torch.ops.mkldnn._reorder_linear_weight(linear.weight.bfloat16(), rows)
                        for linear in linears}

    @staticmethod
    def suit(device: torch.device) -> bool:
        """Whether the products run on a CPU in bfloat16, and this build of torch has the operators."""
        return (device.type == "cpu" and torch.is_autocast_enabled("cpu") and hasattr(torch.ops.mkldnn, _PACK)
                and torch.get_autocast_dtype("cpu") == torch.bfloat16 and torch.backends.mkldnn.is_available())

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        packed = self._packed.get(id(args[1])) if func is F.linear else None
        if packed is None:
            return func(*args, **(kwargs or {}))
        bias = args[2] if len(args) > 2 else None
        bias = None if bias is None else bias.bfloat16()
        return torch.ops.mkldnn._linear_pointwise(args[0].bfloat16(), packed, bias, "none", [], "")
