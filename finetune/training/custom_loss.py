"""A loss of the user's own (`training.loss: package.module:function`), added to those of the model."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from ..common.errors import UserError
from ..common.score_table import RECORD_FIELDS, find_score

# Names in the report of a step and in metrics.jsonl that are no scores.
_RESERVED = (*RECORD_FIELDS, "negatives", "words", "slides", "grad_norm")


@dataclass(frozen=True)
class LossInputs:
    """What a loss function gets: one micro-batch of b slides with texts of up to t tokens, all in float32.

    logits: (b, t, v), of the word after each token. labels: (b, t), that word. text_mask: (b, t), true = a real label.
    text_latents, image_latents: (b, d), L2-normalised; pair i belongs together. logit_scale: scalar, learned.
    """

    logits: Tensor
    labels: Tensor
    text_mask: Tensor
    text_latents: Tensor
    image_latents: Tensor
    logit_scale: Tensor


# Its named parts, scalars, are means over the slides; they are added up, and to the weighted losses of the model.
LossFunction = Callable[[LossInputs], Mapping[str, Tensor]]


def load_loss(name: str) -> LossFunction:
    """The function `package.module:function`. Raises UserError if there is none, or importing it fails."""
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever the user's module raises
        raise UserError("training.loss", f"{name} cannot be imported ({type(error).__name__}: {error})",
                        "give package.module:function, importable from here (see PYTHONPATH)") from None
    if not callable(found):
        raise UserError("training.loss", f"{name} is no function", "give package.module:function")
    return found


def parts_of(function: LossFunction, inputs: LossInputs) -> dict[str, Tensor]:
    """The named parts, checked. Raises UserError for what is no mapping of names to scalars, or a reserved name."""
    parts = function(inputs)
    if not isinstance(parts, Mapping) or not parts:
        raise UserError("training.loss", f"returned {type(parts).__name__}", "return a dict of named scalar tensors")
    for name, part in parts.items():
        if not isinstance(name, str):
            raise UserError("training.loss", f"the name of part {name!r} is no text", "return a dict {name: scalar}")
        if not isinstance(part, Tensor) or part.ndim:
            raise UserError("training.loss", f"part {name!r} is no scalar tensor", "return means over the slides")
        if name in _RESERVED or find_score(name):
            raise UserError("training.loss", f"part {name!r} has a name of the log's own", "call it otherwise")
    return dict(parts)
