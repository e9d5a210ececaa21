"""Prism's weights, the tokenizer and the language model of a config. Imports torch: only where it can be imported."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from prism import PrismWeightsError, load_prism
from prism.files import WEIGHT_FILES
from prism.hub import ask_hub, explain, find_cached
from prism.modelscope_hub import PREFIX, find_in_modelscope_cache
from prism.weights import RANDOM, is_hub_id

from ..common.errors import UserError
from ..common.files import expand
from ..config.schema import Config
from ..data.tokenizer import build_tokenizer
from ..models.build import decoder_tokenizer
from ..models.language_model_folder import WEIGHTS, find_language_model
from .findings import ERROR, NOTE, OK, WARNING, Finding

_TOKEN_FIX = "; the token is HF_TOKEN or what `hf auth login` has saved"


def check_prism(config: Config, is_wanted: bool) -> Finding:
    """Whether the slide encoder can be had; nothing large is downloaded.

    Args:
        is_wanted: Whether the user named a config: without one, weights that are missing are a warning.
    """
    source = config.prism.weights
    if source in RANDOM:
        return Finding("Prism weights", WARNING, f"{source}: random, good for trying the program only",
                       "give the real ones with prism.weights (--prism)")
    try:
        return _check_prism(source, config.prism.revision)
    except PrismWeightsError as error:
        what, _, fix = str(error).partition("; ")
        return Finding("Prism weights", ERROR if is_wanted else WARNING, what, fix + _token_hint(what))


def _check_prism(source: str, revision: str | None) -> Finding:
    place = _place("Prism weights", source, revision, WEIGHT_FILES)
    if isinstance(place, Finding):
        return place
    encoder = load_prism(place)
    return Finding("Prism weights", OK, f"{place}, sha256 {encoder.sha256[:12]}")


def _place(subject: str, source: str, revision: str | None, weights: Sequence[str]) -> Path | Finding:
    """Where a model is on this machine; a finding if it must be downloaded first. Raises PrismWeightsError."""
    path = expand(source)
    name, _, named = source.partition("@")
    if path.exists():
        return path
    if source.startswith(PREFIX):
        later = Finding(subject, NOTE, f"{source}: not on this machine yet; the first run downloads it")
        return find_in_modelscope_cache(source, revision, weights) or later
    if is_hub_id(name):
        return find_cached(name, named or revision, weights) or _ask_hub(subject, name, named or revision)
    raise PrismWeightsError(f"{source}: no such file or folder ({path}); give a local folder or a hub id owner/name")


def _ask_hub(subject: str, name: str, revision: str | None) -> Finding:
    """Raises PrismWeightsError if the hub does not serve it."""
    failure = ask_hub(name, revision)
    if failure is not None:
        raise explain(name, revision, failure)
    return Finding(subject, OK, f"{name}: not on this machine yet; the hub lets you in, the first run downloads it")


def _token_hint(what: str) -> str:
    return _TOKEN_FIX if "refused" in what and not os.environ.get("HF_TOKEN") else ""


def check_tokenizer(config: Config) -> Finding:
    """Whether the tokenizer can be had. Raises UserError."""
    kind = config.data.tokenizer
    if config.model.language_model is not None:
        return Finding("tokenizer", OK, "that of the language model")
    if config.model.decoder == "prism":
        return _check_prisms_tokenizer(config)
    if kind.partition(":")[0] in ("vocab", "bpe"):
        return Finding("tokenizer", OK, f"{kind}: made of the training texts")
    tokenizer = build_tokenizer(kind, [], config.data.normalize)
    return Finding("tokenizer", OK, f"{kind}: {len(tokenizer)} tokens")


def _check_prisms_tokenizer(config: Config) -> Finding:
    source = config.prism.weights
    try:
        is_here = source in RANDOM or isinstance(_place("tokenizer", source, config.prism.revision, WEIGHT_FILES), Path)
    except PrismWeightsError:
        return Finding("tokenizer", NOTE, "that of Prism, whose weights are not there")
    if is_here:  # else it comes with the weights
        decoder_tokenizer(config)
    return Finding("tokenizer", OK, "that of Prism")


def check_language_model(source: str) -> Finding:
    """Whether it can be had; nothing large is downloaded. Raises UserError."""
    try:
        place = _place("language model", source, None, WEIGHTS)
    except PrismWeightsError as error:
        what, _, fix = str(error).partition("; ")
        raise UserError("model.decoder", what, fix) from None
    if isinstance(place, Finding):
        return place
    folder = find_language_model(source)
    return Finding("language model", OK, f"{folder.path}, licence {folder.licence() or 'unknown'}")
