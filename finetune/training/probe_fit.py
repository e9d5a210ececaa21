"""Fits the linear probe whose predictions the decoder's probe tokens carry, before the first step of a run."""

from __future__ import annotations

import numpy as np
import torch

from ..common.distributed import World
from ..common.errors import UserError
from ..common.log import logger
from ..config.schema import Config
from ..data.batch import Sample
from ..data.prepare import Data
from ..data.slide_cache import SlideCache
from ..data.splits import groups_of
from ..models.captioner import SlideCaptioner
from ..models.linear_probe import CrossFit, fitted_slides, predictable_tokens
from ..models.probe_tokens import TrainingEvidence, latent_mean


def predictable_of(data: Data, config: Config) -> np.ndarray:
    """The text tokens (W,) that a probe fitted to the training slides predicts."""
    return predictable_tokens([sample.token_ids for sample in data.train], config.training.seed)


def require_probe_inputs(model: SlideCaptioner, cache: SlideCache | None) -> None:
    """Raises UserError if no probe can be fitted for a run that is to have probe tokens: the model has none then."""
    if cache is None:
        raise UserError("model.probe_tokens", "needs slides that are encoded once, but data.latents_cache, "
                        "data.max_tiles or prism.freeze has them encoded in every epoch", "set model.probe_tokens=0")
    if model.probe_tokens is None:
        raise UserError("model.probe_tokens", "a linear probe can predict nothing: it needs 8 training slides, and "
                        "tokens that stand in two of their texts but not in all", "set model.probe_tokens=0")


def fit_probe_tokens(config: Config, data: Data, model: SlideCaptioner, cache: SlideCache, world: World, *,
                     fresh: bool) -> None:
    """Fit the probe to the training slides in the cache, on rank 0, and give it to the model's probe tokens, if any.

    Args:
        fresh: No checkpoint was loaded; otherwise the model has its probe, and only lacks what training draws from.
    """
    tokens = model.probe_tokens
    if tokens is None:
        return
    samples = [data.train[i] for i in fitted_slides(len(data.train), config.training.seed)]
    fit = world.broadcast_object(lambda: _fit(config, samples, cache))
    tokens.evidence = TrainingEvidence(fit, [sample.slide.slide_id for sample in samples], model.decoder.device)
    if fresh:
        tokens.set_probe(fit.probe)
        logger.info("linear probe fitted to %d training slides: %d text tokens", len(samples), len(fit.probe.token_ids))


def _fit(config: Config, samples: list[Sample], cache: SlideCache) -> CrossFit | None:
    features = []
    for sample in samples:
        image_tokens = torch.from_numpy(cache.read(sample.slide)).float()
        features.append(latent_mean(image_tokens[None])[0].numpy())
    ids = [sample.slide.slide_id for sample in samples]
    groups = groups_of(ids, config.data.group_pattern)
    return CrossFit.fit(np.stack(features), [sample.token_ids for sample in samples], groups, config.training.seed)
