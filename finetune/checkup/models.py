"""Prism's weights, the tokenizer and the language model of a config. Imports torch: only where it can be imported."""

from __future__ import annotations

import os
from pathlib import Path

from prism import PrismWeightsError, load_prism
from prism.hub import ask_hub, explain, find_cached
from prism.weights import RANDOM, is_hub_id

from ..common.errors import UserError
from ..common.files import expand
from ..config.schema import Config
from ..data.tokenizer import build_tokenizer
from ..models.build import decoder_tokenizer
from ..models.language_model_folder import WEIGHTS, find_language_model
from .findings import ERROR, OK, WARNING, Finding

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
    path = Path(source).expanduser()
    if not path.exists() and is_hub_id(source):
        cached = find_cached(source, revision)
        if cached is None:
            return _ask_hub("Prism weights", source, revision)
        path = cached
    encoder = load_prism(path if path.exists() else source, revision)
    return Finding("Prism weights", OK, f"{path}, sha256 {encoder.sha256[:12]}")


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
    kind, weights = config.data.tokenizer, config.prism.weights
    if config.model.language_model is not None:
        return Finding("tokenizer", OK, "that of the language model")
    if config.model.decoder == "prism":
        if Path(weights).expanduser().exists() or find_cached(weights, config.prism.revision):
            decoder_tokenizer(config)
        return Finding("tokenizer", OK, "that of Prism")
    if kind.partition(":")[0] in ("vocab", "bpe"):
        return Finding("tokenizer", OK, f"{kind}: made of the training texts")
    tokenizer = build_tokenizer(kind, [], config.data.normalize)
    return Finding("tokenizer", OK, f"{kind}: {len(tokenizer)} tokens")


def check_language_model(source: str) -> Finding:
    """Whether it can be had; nothing large is downloaded. Raises UserError."""
    name, _, revision = source.partition("@")
    is_on_hub = not expand(source).is_dir() and is_hub_id(name)
    if is_on_hub and find_cached(name, revision or None, WEIGHTS) is None:
        try:
            return _ask_hub("language model", name, revision or None)
        except PrismWeightsError as error:
            what, _, fix = str(error).partition("; ")
            raise UserError("model.decoder", what, fix) from None
    folder = find_language_model(source)
    return Finding("language model", OK, f"{folder.path}, licence {folder.licence() or 'unknown'}")
