"""Weights that a checkpoint only names, Prism's and a language model's: where they are now, and whether they are the
same as in training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..common.errors import UserError
from ..config.schema import Config
from ..models.captioner import SlideCaptioner


class _Weights(NamedTuple):
    """Their name in a message, where they were in training and are now, and the flag that says where they are."""

    name: str
    before: str | None
    now: str
    flag: str


def move_language_model(config: Config, source: str | None) -> None:
    """Put the language model of a config where it is now. Raises UserError if the config has none."""
    if source is None:
        return
    if config.model.language_model is None:
        raise UserError("--language_model", f"the checkpoint has model.decoder={config.model.decoder}", "leave it out")
    config.model.decoder = source if source.startswith("ms:") else f"hf:{source}"


def check_same_weights(model: SlideCaptioner, config: Config, trained_with: Mapping[str, Any], checkpoint: str) -> None:
    """Raise UserError if a frozen part of Prism, or the language model, has other weights than in training.

    Args:
        model: With the weights as they are now.
        trained_with: What the checkpoint says about them.
        checkpoint: Where that is.
    """
    prism = _Weights("other Prism weights", trained_with.get("source"), config.prism.weights, "--prism")
    text = prism
    if config.model.language_model is not None:
        text = _Weights("another language model", trained_with.get("text_source"), config.model.language_model,
                        "--language_model")
    loaded = [("text_sha256", model.decoder.describe().get("text_sha256"), text)]
    if config.prism.freeze:
        loaded.append(("sha256", model.prism.sha256, prism))
    for key, digest, weights in loaded:
        expected = trained_with.get(key)
        if expected != digest:
            raise UserError(checkpoint, f"was trained with {weights.name} ({weights.before}, {key} "
                            f"{str(expected)[:12]}; {weights.now} has {str(digest)[:12]})",
                            f"give the same weights with {weights.flag}")
