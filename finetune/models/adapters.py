"""Low-rank adapters (LoRA, https://arxiv.org/abs/2106.09685) inside a pretrained text decoder, by peft."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..common.errors import UserError


def inject_adapters(module: nn.Module, rank: int, names: Sequence[str], is_transposed: bool = False) -> None:
    """Put adapters beside matrices of `module`, which stay frozen themselves.

    Args:
        rank: `model.lora_rank`.
        names: Of the layers that get adapters, or how their names end.
        is_transposed: Whether their weights are (in, out), as of GPT-2's `Conv1D`.

    Raises:
        UserError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError("model.lora_rank", f"is {rank}, but peft is not installed", "pip install peft") from None
    settings = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(names), fan_in_fan_out=is_transposed)
    inject_adapter_in_model(settings, module)
