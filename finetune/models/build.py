"""The model factory, from a config to a SlideCaptioner, and the check of what an untrusted file declares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from prism import (
    BioGptConfig,
    PerceiverConfig,
    Prism,
    PrismConfig,
    PrismSlideEncoder,
    PrismWeightsError,
    load_prism,
    load_tokenizer,
)

from ..common.errors import UserError
from ..config.schema import Config
from ..data.tokenizer import Tokenizer
from .captioner import SAVED_AS, CaptionDecoder, SlideCaptioner, trained_state
from .coca_decoder import build_coca, start_from_prism
from .language_model import LanguageModel, build_language_model, language_model_tokenizer
from .prism_decoder import PrismDecoder, build_prism_decoder
from .probe_tokens import ProbeTokens

# Value of `model.decoder`, up to a colon -> its build function, (config, tokenizer, pretrained) -> decoder. It may
# raise UserError. A new decoder: its module, a line here, a choice in config/schema.py. `pretrained` is what it is made
# of: for `prism` a whole Prism, for `hf` a language model, else None.
DECODERS: dict[str, Callable[[Config, Tokenizer, Any], CaptionDecoder]] = {
    "coca": build_coca,
    "prism": build_prism_decoder,
    "hf": build_language_model,
    "ms": build_language_model,
}
_FROM_WHOLE_PRISM = {"prism"}  # decoders that are Prism's text side: it is loaded for them, and its tokenizer is used
_MOST_LAYERS = 4096  # of a Prism in a checkpoint; the published one has 8 x 6


def build_model(config: Config, tokenizer: Tokenizer, trained_prism: dict[str, Any] | None = None,
                num_predicted: int = 0) -> SlideCaptioner:
    """Load Prism and make a new decoder, seeded by `training.seed`.

    Args:
        trained_prism: Architecture of a Prism whose weights are in the checkpoint, so that nothing else is loaded.
        num_predicted: How many text tokens the linear probe of `model.probe_tokens` predicts; 0 without one.

    Raises:
        UserError: The weights are not available; or they, the tokenizer or the decoder do not match the config.
    """
    whole = whole_prism(config) if config.model.decoder in _FROM_WHOLE_PRISM else None
    source = config.model.language_model
    language_model = None if source is None else LanguageModel.load(source)
    if whole:
        prism = whole.slide_encoder()
    elif trained_prism:
        prism = PrismSlideEncoder(PerceiverConfig(**trained_prism))
    else:
        prism = _load(load_prism, config)
    _check_width("data.image_dim", config.data.image_dim, prism.tile_dim, config)
    _check_width("model.image_dim", config.model.image_dim, prism.image_dim, config)
    if config.prism.freeze:
        prism.freeze()
    else:
        prism.unfreeze()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        decoder = _make_decoder(config, tokenizer, whole or language_model, num_predicted)
    _check_features(config, decoder)
    return SlideCaptioner(prism, decoder, config.prism.image_tokens)


def build_prism(config: Config) -> tuple[SlideCaptioner, Tokenizer]:
    """Prism with its own text decoder, all of it frozen, and its tokenizer. Raises UserError."""
    whole = whole_prism(config)
    return SlideCaptioner(whole.slide_encoder(), PrismDecoder(whole), "latents"), whole.tokenizer


def initialise(model: SlideCaptioner, config: Config, tokenizer: Tokenizer) -> None:
    """Apply `model.init`, which is for a coca decoder, to a model that `build_model` made. Raises UserError."""
    if config.model.init == "prism" and config.model.decoder == "coca":
        start_from_prism(model.decoder, tokenizer, whole_prism(config))


def decoder_tokenizer(config: Config) -> Tokenizer | None:
    """The tokenizer that the decoder brings along; None if it takes any. Raises UserError if its files are missing."""
    if config.model.language_model is not None:
        return language_model_tokenizer(config.model.language_model, config.data.normalize)
    if config.model.decoder not in _FROM_WHOLE_PRISM:
        return None
    return _usable(_load(load_tokenizer, config), config)


def whole_prism(config: Config) -> Prism:
    """Prism with its text side and its tokenizer. Raises UserError."""
    prism = _load(Prism.from_pretrained, config)
    _usable(prism.tokenizer, config)
    return prism


def describe_prism(model: SlideCaptioner) -> dict[str, Any]:
    """The architecture of Prism's encoder, and of its text side if used, for `check_architecture`."""
    return {"architecture": asdict(model.prism.config)} | model.decoder.describe()


def check_architecture(config: Config, tokenizer: Tokenizer, about_prism: dict[str, Any],
                       state: dict[str, torch.Tensor], where: str) -> None:
    """Compare the weights in an untrusted file with the model that the file describes.

    On torch's meta device, before any memory is allocated: a config of 1 kB can declare a model of 1 TB.

    Args:
        about_prism: What `describe_prism` gave, or anything else.
        state: The weights.
        where: The file, for messages.

    Raises:
        UserError: It describes no model, or the weights are of another one.
    """
    try:
        with torch.device("meta"):
            shapes = _declared_shapes(config, tokenizer, about_prism, num_predicted_in(state))
    except (TypeError, ValueError, KeyError, RuntimeError, AttributeError) as error:
        raise UserError(where, f"describes no model ({type(error).__name__})", "use another checkpoint") from None
    if shapes != {key: tensor.shape for key, tensor in state.items()}:
        raise UserError(where, "its weights are not of the model it describes", "use another checkpoint of the run")


def num_predicted_in(state: dict[str, torch.Tensor]) -> int:
    """How many text tokens the linear probe in the weights of a checkpoint predicts, 0 without one."""
    weight = state.get(f"{SAVED_AS['decoder']}.img_context.weight")
    return 0 if weight is None or weight.ndim != 2 else weight.shape[1]


def _declared_shapes(config: Config, tokenizer: Tokenizer, about_prism: dict[str, Any],
                     num_predicted: int) -> dict[str, torch.Size]:
    """Shape of every weight that a checkpoint should hold, by its name there."""
    encoder, text = about_prism["architecture"], dict(about_prism.get("text_architecture") or {})
    _check_depth(encoder, text)
    perceiver, pretrained = PerceiverConfig(**encoder), None
    if config.model.decoder in _FROM_WHOLE_PRISM:
        dim_latents = text.pop("dim_latents")
        pretrained = Prism(PrismConfig(perceiver, BioGptConfig(**text), perceiver.latent_dim, dim_latents))
    elif config.model.language_model is not None:
        pretrained = LanguageModel.empty(config.model.language_model)
    parts = {"decoder": _make_decoder(config, tokenizer, pretrained, num_predicted)}
    if not config.prism.freeze:
        parts["prism"] = PrismSlideEncoder(perceiver)
    shapes = {}
    for part, module in parts.items():
        for key, weight in trained_state(module).items():
            shapes[f"{SAVED_AS[part]}.{key}"] = weight.shape
    return shapes


def _check_depth(encoder: dict[str, Any], text: dict[str, Any]) -> None:
    """Even on the meta device each layer costs time. Raises ValueError."""
    layers = encoder["perceiver_depth"] * encoder["transformer_depth"] + text.get("num_hidden_layers", 0)
    if layers > _MOST_LAYERS:
        raise ValueError("too many layers")


def _make_decoder(config: Config, tokenizer: Tokenizer, pretrained: Prism | LanguageModel | None,
                  num_predicted: int) -> CaptionDecoder:
    decoder = DECODERS[config.model.decoder.partition(":")[0]](config, tokenizer, pretrained)
    if num_predicted:
        _require(decoder, "model.probe_tokens", "probe_tokens", config, "0")
        decoder.img_context = ProbeTokens(config.model.probe_tokens, config.model.dim, config.model.image_dim,
                                          num_predicted)
    limit = decoder.max_positions  # the end token is no input, the CLS is one
    if limit is not None and config.data.max_seq_len > limit:
        raise UserError("data.max_seq_len", f"{config.data.max_seq_len}, the decoder has {limit} positions",
                        f"set data.max_seq_len={limit} or less")
    return decoder


def _check_width(key: str, wanted: int, width: int, config: Config) -> None:
    if wanted != width:
        fix = f"set {key}={width}"
        if key == "data.image_dim":
            fix += ", and extract the features again with its tile encoder (Virchow) if they are of another width"
        raise UserError(key, f"{wanted}, but Prism {config.prism.weights!r} has {width}", fix)


def _check_features(config: Config, decoder: CaptionDecoder) -> None:
    for feature in ("compile", "grad_checkpointing"):
        if getattr(config.training, feature):
            _require(decoder, f"training.{feature}", feature, config, "false")


def _require(decoder: CaptionDecoder, key: str, feature: str, config: Config, off: str) -> None:
    """Raises UserError if `key` is set and the decoder lacks the feature."""
    if feature not in decoder.supports:
        raise UserError(key, f"is set, but model.decoder={config.model.decoder} has no support for it",
                        f"set {key}={off}")


def _load(load: Callable[..., Any], config: Config) -> Any:
    try:
        return load(config.prism.weights, config.prism.revision)
    except PrismWeightsError as error:
        what, _, fix = str(error).partition("; ")
        raise UserError("prism.weights", what, fix or "give the published weights") from None


def _usable(tokenizer: Tokenizer | None, config: Config) -> Tokenizer:
    """The tokenizer itself. Raises UserError if it is missing or cannot run."""
    if tokenizer is None:
        raise UserError("prism.weights", f"{config.prism.weights} has no tokenizer beside it",
                        "put vocab.json and merges.txt of microsoft/biogpt into its folder")
    try:
        tokenizer.encode("")
    except ValueError as error:  # sacremoses is optional
        what, _, fix = str(error).partition("; ")
        raise UserError("prism.weights", what, fix) from None
    return tokenizer
