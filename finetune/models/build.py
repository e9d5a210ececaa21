"""The captioner of a run: a frozen Prism slide encoder in front of a CoCa, which may be Prism's own text side, and
what of it trains and is saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from coca_pytorch import CoCa
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
from .captioner import SlideCaptioner, _trained
from .prism_decoder import PrismCoCa, start_from_prism

_MOST_LAYERS = 4096  # of a Prism in a checkpoint; the published one has 8 x 6


def build_model(config: Config, tokenizer: Tokenizer,
                trained_prism: dict[str, Any] | None = None) -> SlideCaptioner:
    """Load Prism and make a fresh CoCa, seeded by `training.seed`. Raises UserError if the widths do not fit.

    trained_prism: architecture of a Prism whose weights are in the checkpoint, so that nothing else need be loaded.
    """
    whole = whole_prism(config) if config.model.decoder == "prism" else None
    if whole:
        prism = whole.slide_encoder()
    else:
        prism = PrismSlideEncoder(PerceiverConfig(**trained_prism)) if trained_prism else _load(load_prism, config)
    for key, wanted, has in (("data.image_dim", config.data.image_dim, prism.tile_dim),
                             ("model.image_dim", config.model.image_dim, prism.image_dim)):
        if wanted != has:
            raise UserError(key, f"{wanted}, but Prism {config.prism.weights!r} has {has}", f"set {key}={has}")
    if config.prism.freeze:
        prism.freeze()
    else:
        prism.unfreeze()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        coca = _make_coca(config, tokenizer, whole)
    return SlideCaptioner(prism, coca, config.prism.image_tokens)


def initialise(model: SlideCaptioner, config: Config, tokenizer: Tokenizer) -> None:
    """What `model.init` asks for, in a model that `build_model` made. Raises UserError."""
    if config.model.init == "prism" and isinstance(model.decoder, CoCa):
        start_from_prism(model.decoder, tokenizer, whole_prism(config))


def whole_prism(config: Config) -> Prism:
    """Prism with its text side and its tokenizer. Raises UserError."""
    prism = _load(Prism.from_pretrained, config)
    _require(prism.tokenizer, config)
    return prism


def prism_tokenizer(config: Config) -> Tokenizer:
    """The tokenizer of Prism's text side. Raises UserError if its files are not there."""
    return _require(_load(load_tokenizer, config), config)


def _require(tokenizer: Tokenizer | None, config: Config) -> Tokenizer:
    if tokenizer is None:
        raise UserError("prism.weights", f"{config.prism.weights} has no tokenizer beside it",
                        "put vocab.json and merges.txt of microsoft/biogpt into its folder")
    try:
        tokenizer.encode("")
    except ValueError as error:  # sacremoses is optional
        what, _, fix = str(error).partition("; ")
        raise UserError("prism.weights", what, fix) from None
    return tokenizer


def describe_prism(model: SlideCaptioner) -> dict[str, Any]:
    """What a checkpoint keeps of Prism's shape for `check_architecture`: encoder, and text side if used."""
    text = model.decoder
    return {"architecture": asdict(model.prism.config)} | ({
        "text_architecture": asdict(text.text_decoder.config) | {
            "dim_latents": text.img_to_latents.to_latents.out_features},
        "text_sha256": text.sha256} if isinstance(text, PrismCoCa) else {})


def check_architecture(config: Config, tokenizer: Tokenizer, about_prism: dict[str, Any],
                       state: dict[str, torch.Tensor], where: str) -> None:
    """Whether weights are those of the model that stands beside them in an unknown file. Raises UserError.

    Looked at on torch's meta device, before any memory is given: a config of 1 kB can declare a model of 1 TB.
    """
    try:
        encoder, text = about_prism["architecture"], dict(about_prism.get("text_architecture") or {})
        if encoder["perceiver_depth"] * encoder["transformer_depth"] + text.get("num_hidden_layers", 0) > _MOST_LAYERS:
            raise ValueError("too many layers")
        with torch.device("meta"):
            slide, whole = PerceiverConfig(**encoder), None
            if config.model.decoder == "prism":
                widths = {"biogpt_context_dim": slide.latent_dim, "dim_latents": text.pop("dim_latents")}
                whole = Prism(PrismConfig(slide, BioGptConfig(**text), **widths))
            parts = {"coca": _make_coca(config, tokenizer, whole)}
            if not config.prism.freeze:
                parts["prism"] = PrismSlideEncoder(slide)
        shapes = {f"{part}.{k}": v.shape for part, module in parts.items() for k, v in _trained(module).items()}
        fits = shapes == {k: v.shape for k, v in state.items()}
    except (TypeError, ValueError, KeyError, RuntimeError, AttributeError) as error:
        raise UserError(where, f"describes no model ({type(error).__name__})", "use another checkpoint") from None
    if not fits:
        raise UserError(where, "its weights are not of the model it describes", "use another checkpoint of the run")


def _make_coca(config: Config, tokenizer: Tokenizer, whole: Prism | None) -> CoCa | PrismCoCa:
    """whole: the Prism of which the text side is the decoder; None for a decoder of its own."""
    model = config.model
    if whole:
        positions = whole.prism_config.biogpt_config.max_position_embeddings
        if config.data.max_seq_len > positions:  # the end token is no input, the CLS is one
            raise UserError("data.max_seq_len", f"{config.data.max_seq_len}, Prism's decoder has {positions} positions",
                            f"set data.max_seq_len={positions} or less")
        if len(tokenizer) > (words := whole.prism_config.biogpt_config.vocab_size):  # a checkpoint may say anything
            raise UserError("tokenizer", f"has {len(tokenizer)} words, Prism's decoder {words}",
                            "use another checkpoint")
        coca = PrismCoCa(whole, model.caption_loss_weight, model.contrastive_loss_weight, model.contrastive,
                         config.training.label_smoothing)
        own = config.training.loss is not None  # it may look at all there is
        coca.train_upper_half(model.lora_rank, captions=own or model.caption_loss_weight > 0,
                              pairs=own or model.contrastive_loss_weight > 0)
        return coca
    return CoCa(dim=model.dim, num_tokens=len(tokenizer), unimodal_depth=model.unimodal_depth,
                multimodal_depth=model.multimodal_depth, dim_latents=model.dim_latents, image_dim=model.image_dim,
                num_img_queries=model.num_img_queries, dim_head=model.dim_head, heads=model.heads,
                ff_mult=model.ff_mult, caption_loss_weight=model.caption_loss_weight,
                contrastive_loss_weight=model.contrastive_loss_weight, pad_id=tokenizer.pad_id,
                contrastive=model.contrastive, label_smoothing=config.training.label_smoothing)


def _load(load: Callable[..., Any], config: Config) -> Any:
    try:
        return load(config.prism.weights, config.prism.revision)
    except PrismWeightsError as error:
        what, _, fix = str(error).partition("; ")
        raise UserError("prism.weights", what, fix or "give the published weights") from None
