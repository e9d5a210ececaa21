"""Settings that are `auto` or null until the number of training slides is known, and what they then become.

The numbers were measured at 72 to 694 training slides (LOG.md); what is said of more slides is a guess.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from .schema import Config

SIZE_KEYS = ("dim", "unimodal_depth", "multimodal_depth", "dim_latents", "num_img_queries", "heads", "dim_head")
SIZES = {  # of a coca decoder, in the order of SIZE_KEYS; large was the default until there were sizes
    "small": (128, 2, 2, 128, 32, 4, 32),
    "base": (256, 4, 4, 256, 64, 8, 32),
    "large": (512, 6, 6, 512, 256, 8, 64),
}
_SMALL_BELOW = 2000  # training slides: small was the best of what was tried up to 991, so the border is a guess
_SLIDES_SEEN = 13_000  # in all epochs together
_EPOCHS = (10, 50)
_MOST_EPOCHS_OF_LANGUAGE_MODEL = 20  # as measured (LOG.md): it has its language already
_ENCODINGS = 1200  # of all training slides, so that views pay where slides are few and cost little where they are many
_MOST_VIEWS = 8
_PROBE_TOKENS = 4
_MIN_PREDICTABLE = 20  # tokens: probe tokens paid with 32 and more, and made it worse with 5, of texts of a template
# Prism's own decoder has no sizes, and none of this was tried with it: its run stays as it was.
_PRISM_DECODER = {"model.size": "large", "training.epochs": 50, "training.learning_rate": 1e-4, "data.views": 1}
# Of a language model only the prefix has sizes, and they need not grow with the number of slides.
_LANGUAGE_MODEL = {"model.size": "large", "model.num_img_queries": 32, "training.learning_rate": 1e-3}

# null in a size key means: as in model.size
SIZE_SETTINGS = ("model.size", *(f"model.{name}" for name in SIZE_KEYS))
AUTO_KEYS = (*SIZE_SETTINGS, "training.epochs", "training.learning_rate", "data.views", "model.probe_tokens")


def value_of(config: Config, key: str) -> Any:
    """The value of `section.key`."""
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


def is_open(config: Config, key: str) -> bool:
    """Whether a key of AUTO_KEYS still waits for its number."""
    return value_of(config, key) in (None, "auto")


def fill_open(config: Config, values: Mapping[str, Any]) -> None:
    """Give those of the keys in `values` that are still open in `config` their value."""
    for key, value in values.items():
        if is_open(config, key):
            section, name = key.split(".")
            setattr(getattr(config, section), name, value)


def resolve(config: Config, num_training_slides: int, num_predictable: int = 0) -> Config:
    """A copy of `config` with a number for everything that is `auto` or null in AUTO_KEYS; what has one keeps it.

    Args:
        num_predictable: Tokens of the texts that a linear probe can predict.
    """
    resolved = copy.deepcopy(config)
    if config.model.decoder == "prism":
        fill_open(resolved, _PRISM_DECODER)
    elif config.model.language_model is not None:
        fill_open(resolved, _LANGUAGE_MODEL)
    fill_open(resolved, {"model.size": _size(num_training_slides, config.model.dim)})
    sizes = SIZES[resolved.model.size]
    fill_open(resolved, {f"model.{name}": value for name, value in zip(SIZE_KEYS, sizes, strict=True)})
    fill_open(resolved, {
        "training.epochs": _epochs(config, num_training_slides),
        "training.learning_rate": _learning_rate(resolved.model.dim),
        "data.views": _views(config, num_training_slides),
        "model.probe_tokens": _probe_tokens(config, num_predictable),
    })
    return resolved


def _size(num_training_slides: int, dim: int | None) -> str:
    """By the number of slides; where `dim` is given, the first size that is as wide, so that the rest goes with it."""
    if dim is None:
        return "small" if num_training_slides < _SMALL_BELOW else "base"
    wide_enough = [size for size, values in SIZES.items() if dim <= values[0]]
    return wide_enough[0] if wide_enough else "large"


def _epochs(config: Config, num_training_slides: int) -> int:
    fewest, most = _EPOCHS
    if config.model.language_model is not None:
        most = _MOST_EPOCHS_OF_LANGUAGE_MODEL
    return max(fewest, min(most, round(_SLIDES_SEEN / num_training_slides)))


def _learning_rate(dim: int) -> float:
    for size, rate in (("small", 1e-3), ("base", 5e-4)):
        if dim <= SIZES[size][0]:
            return rate
    return 1e-4


def _views(config: Config, num_training_slides: int) -> int:
    """1 where there is no cache to keep views in; nor with `max_tiles`, which varies the tiles without them."""
    if not _encodes_once(config):
        return 1
    return max(1, min(_MOST_VIEWS, _ENCODINGS // num_training_slides))


def _probe_tokens(config: Config, num_predictable: int) -> int:
    is_useful = num_predictable >= _MIN_PREDICTABLE and config.trains_captions
    return _PROBE_TOKENS if is_useful and config.model.decoder == "coca" and _encodes_once(config) else 0


def _encodes_once(config: Config) -> bool:
    has_cache = config.data.latents_cache is not None and config.prism.freeze
    return has_cache and config.data.max_tiles is None


def describe(before: Config, after: Config, num_training_slides: int) -> str | None:
    """One line that says what `resolve` made of `before`; None if nothing was open."""
    chosen = []
    if after.model.decoder != "prism" and any(is_open(before, key) for key in SIZE_SETTINGS):
        chosen.append(_describe_size(before, after))
    for key in AUTO_KEYS:
        if key not in SIZE_SETTINGS and is_open(before, key):
            chosen.append(f"{key} auto: {value_of(after, key):g}")
    if not chosen:
        return None
    return f"{', '.join(chosen)} for {num_training_slides} training slides"


def _describe_size(before: Config, after: Config) -> str:
    model = after.model
    if model.language_model is not None:
        return (f"a prefix of {model.num_img_queries} vectors pooled by {model.heads} heads of {model.dim_head} (dim "
                f"{model.dim}, dim_latents {model.dim_latents})")
    is_auto = " auto:" if before.model.size == "auto" else ""
    return (f"model.size{is_auto} {model.size} (dim {model.dim}, {model.unimodal_depth} + {model.multimodal_depth} "
            f"layers, {model.heads} heads of {model.dim_head}, {model.num_img_queries} queries, dim_latents "
            f"{model.dim_latents})")
