"""A custom loss (`training.loss: package.module:function`), added to the losses of the model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..common.errors import UserError
from ..common.score_table import RECORD_FIELDS, find_score
from ..common.user_function import import_function

# Names in the report of a step and in metrics.jsonl that are not scores.
_RESERVED = (*RECORD_FIELDS, "negatives", "num_tokens", "num_slides", "words", "slides", "grad_norm")


@dataclass(frozen=True)
class LossInputs:
    """The argument of a custom loss: one micro-batch, all in float32.

    Shapes: B slides, texts of up to T tokens, V tokens in the vocabulary, D dimensions of the contrastive space.

    Attributes:
        logits: (B, T, V), of the token after each position.
        labels: (B, T), that token's id.
        text_mask: (B, T), true = a real label.
        text_latents, image_latents: (B, D), L2-normalised; pair i belongs together.
        logit_scale: Scalar, learned.
    """

    logits: Tensor
    labels: Tensor
    text_mask: Tensor
    text_latents: Tensor
    image_latents: Tensor
    logit_scale: Tensor


# Its named parts, scalars, are means over the slides; they are added up, and to the weighted losses of the model.
LossFunction = Callable[[LossInputs], Mapping[str, Tensor]]


def load_loss(name: str | None) -> LossFunction | None:
    """The function `package.module:function`, None for None.

    Raises:
        UserError: There is none, importing it fails, or it does not take one `LossInputs` alone.
    """
    if name is None:
        return None
    function = import_function(name, "training.loss")
    _check_signature(function, name)
    return function


def _check_signature(function: Callable, name: str) -> None:
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions written in C have none; `try_loss` calls them
        return
    try:
        signature.bind(None)
    except TypeError:
        raise UserError("training.loss", f"{name} takes {signature}, but is called with one LossInputs",
                        f"write def {name.partition(':')[2]}(inputs: LossInputs) -> dict[str, Tensor]") from None


def try_loss(function: LossFunction, vocabulary: int, dim_latents: int, device: torch.device) -> None:
    """Call a loss on two random slides, so that its errors show before hours of other work.

    Args:
        vocabulary: Number of tokens, V.
        dim_latents: Dimensions of the contrastive space, D.

    Raises:
        UserError: The function fails, or returns anything but named scalars.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        logits = torch.randn(2, 8, vocabulary, device=device)
        labels = torch.randint(vocabulary, (2, 8), device=device)
        latents = [normalize(torch.randn(2, dim_latents, device=device), dim=-1) for _ in range(2)]
        text_mask = torch.arange(8, device=device) < torch.tensor([[8], [5]], device=device)
        differentiable = [tensor.requires_grad_() for tensor in (*latents, torch.ones((), device=device))]
        inputs = LossInputs(logits.requires_grad_(), labels, text_mask, *differentiable)
        try:
            parts_of(function, inputs)
        except UserError:
            raise
        except Exception as error:  # whatever the user's function raises
            message = " ".join(str(error).split())[:200]
            raise UserError("training.loss", f"failed on random inputs ({type(error).__name__}: {message})",
                            "fix the function; --debug shows where") from error


def parts_of(function: LossFunction, inputs: LossInputs) -> dict[str, Tensor]:
    """The named parts, checked. Raises UserError for anything but a mapping of names to scalars, or a reserved name."""
    parts = function(inputs)
    if not isinstance(parts, Mapping) or not parts:
        raise UserError("training.loss", f"returned {type(parts).__name__}", "return a dict of named scalar tensors")
    for name, part in parts.items():
        _check_part(name, part)
    return dict(parts)


def _check_part(name: object, part: object) -> None:
    if not isinstance(name, str):
        raise UserError("training.loss", f"the name of part {name!r} is not a string", "return a dict {name: scalar}")
    if not isinstance(part, Tensor) or part.ndim:
        raise UserError("training.loss", f"part {name!r} is not a scalar tensor", "return means over the slides")
    if name in _RESERVED or find_score(name):
        raise UserError("training.loss", f"part {name!r} uses a reserved name", "choose another name")
