"""Builds the parts of a run from its config: data, model, slide cache, batches, validation."""

from __future__ import annotations

import itertools
import os
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from ..checkpoints.format import Checkpoint
from ..common.device import Precision, resolve_device
from ..common.distributed import ALONE, World, local_rank
from ..common.errors import UserError
from ..common.files import expand
from ..common.log import logger
from ..common.run_folder import SLIDE_CACHE
from ..config.auto import describe, resolve
from ..config.schema import Config
from ..data.batch import Batch, Sample
from ..data.header_cache import write_headers
from ..data.loader import BatchLoader, Reader
from ..data.prepare import Data, prepare_data
from ..data.sampler import BatchOrder
from ..data.slide_cache import SlideCache, ViewReader
from ..data.tile_reader import TileReader
from ..data.tokenizer import Tokenizer, tokenizer_from_dict
from ..data.views import View
from ..models.build import build_model, decoder_tokenizer, initialise
from ..models.captioner import SlideCaptioner
from .batch_size_finder import largest_batch
from .caption_validation import CaptionScores, choose_samples
from .collapse_check import CollapseCheck
from .init_from import StartingPoint, take_weights
from .objective import Objective
from .probe_fit import fit_probe_tokens, predictable_of, require_probe_inputs
from .resume import keep_settings
from .signals import StopSignals
from .state import TrainState
from .validation import Observer, Validator


def select_device(config: Config) -> torch.device:
    """The device of this process, which is CUDA's current one from here on. Raises UserError."""
    device = resolve_device(config.training.device, local_rank())
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


def load_data(config: Config, checkpoint: Checkpoint | None, start: StartingPoint | None, world: World,
              ) -> tuple[Config, Data]:
    """The config with numbers for what depends on the data, and the samples, read on rank 0.

    A resumed run keeps its numbers and its tokenizer; one that starts from a model takes the sizes and the vocabulary.
    Raises UserError.
    """
    if checkpoint:
        tokenizer = tokenizer_from_dict(checkpoint.tokenizer, str(checkpoint.path))
    else:
        tokenizer = decoder_tokenizer(config)  # None: one is made of the training texts
    header_cache = header_cache_path(config)
    data = world.broadcast_object(partial(read_data, config, tokenizer, start, header_cache))
    return resolve_settings(config, data, checkpoint, start), data


def read_data(config: Config, tokenizer: Tokenizer | None, start: StartingPoint | None,
              header_cache: Path | None = None) -> Data:
    """The samples. tokenizer: Of a resumed run or of the decoder, None otherwise. Raises UserError."""
    extend = tokenizer is None and start is not None
    if extend:
        tokenizer = start.tokenizer(config.data.tokenizer)
    return prepare_data(config.data, config.training.seed, tokenizer, header_cache, extend=extend)


def resolve_settings(config: Config, data: Data, checkpoint: Checkpoint | None, start: StartingPoint | None) -> Config:
    """The config with numbers for all that is `auto`, logged; a resumed run keeps those it has, one that starts from a
    model has its sizes. Raises UserError."""
    if checkpoint:
        config = keep_settings(config, checkpoint)
    elif start:
        config = start.adopt_sizes(config)
    resolved = resolve(config, len(data.train), len(predictable_of(data, config)))
    chosen = describe(config, resolved, len(data.train))
    if chosen:
        logger.info("%s", chosen)
    return resolved


def make_model(config: Config, data: Data, precision: Precision, world: World, *, fresh: bool,
               start: StartingPoint | None = None) -> SlideCaptioner:
    """The model on its device. Raises UserError.

    Args:
        fresh: No checkpoint will be loaded, so initialise it.
        start: The model whose weights it starts from.
    """
    predicted = predictable_of(data, config) if config.model.probe_tokens else ()
    model = build_model(config, data.tokenizer, num_predicted=len(predicted))
    if model.probe_tokens:
        model.probe_tokens.token_ids.copy_(torch.from_numpy(predicted))
    if start:
        take_weights(model, start, len(tokenizer_from_dict(start.checkpoint.tokenizer, start.where)),
                     len(data.tokenizer))
    elif fresh:
        initialise(model, config, data.tokenizer)
    model.decoder.cast_frozen(precision.dtype)
    model = model.to(precision.device)
    world.broadcast_parameters(model.trained_parameters())  # equal on all ranks, even where their generators differ
    if config.training.grad_checkpointing:
        model.decoder.grad_checkpointing = True
    if config.training.compile:
        _require_compiler()
        model.decoder.compile()
    return model


def _require_compiler() -> None:
    compilers = (os.environ.get("CXX", "g++"), "clang++", "cl")
    if not any(shutil.which(compiler) for compiler in compilers):
        raise UserError("training.compile", "torch.compile needs a C++ compiler, and there is none",
                        "install g++, or set training.compile=false")


# --- caches ----------------------------------------------------------------------------------------------------------

def open_slide_cache(config: Config, data: Data, model: SlideCaptioner, precision: Precision) -> SlideCache | None:
    """The cache of this run; None if it is disabled or the encoder's output changes between epochs.

    Raises:
        UserError: The run needs it, or what is in it, for probe tokens that it cannot have.
    """
    cache = _slide_cache(config, data, model, precision)
    if config.model.probe_tokens:
        require_probe_inputs(model, cache)
    return cache


def _slide_cache(config: Config, data: Data, model: SlideCaptioner, precision: Precision) -> SlideCache | None:
    if config.data.latents_cache is None or not config.prism.freeze:
        return None
    max_tiles = config.data.max_tiles
    if max_tiles is not None and any(slide.num_tiles > max_tiles for slide in data.slides):
        return None  # each epoch samples other tiles
    return SlideCache.of(_cache_folder(config), model.prism.sha256, precision.name, *model.image_tokens_shape)


def fill_caches(config: Config, data: Data, model: SlideCaptioner, precision: Precision, cache: SlideCache | None,
                world: World, *, fresh: bool) -> None:
    """Write the headers of all slides for the next run, encode what the slide cache lacks, and fit the linear probe of
    the probe tokens to what is in it.

    Args:
        fresh: No checkpoint was loaded.

    Raises:
        UserError: A slide cannot be encoded, or the disk is full.
    """
    headers = header_cache_path(config)
    if headers and world.is_main:
        write_headers(headers, config.data.h5_key, config.data.image_dim,
                      config.data.wanted_encoder, data.slides)
    if cache:
        _fill_slide_cache(config, data, model, precision, cache, world)
        fit_probe_tokens(config, data, model, cache, world, fresh=fresh)
    elif config.data.views > 1:
        logger.warning("data.views is %d, but slides are encoded anew in every epoch: there are no views",
                       config.data.views)


def _fill_slide_cache(config: Config, data: Data, model: SlideCaptioner, precision: Precision, cache: SlideCache,
                      world: World) -> None:
    views = [View(number, config.training.seed) for number in range(1, config.data.views)]
    training_ids = {sample.slide.slide_id for sample in data.train}
    cache.fill(data.slides, partial(encode, model, precision), config.training.workers, world, views=views,
               with_views=training_ids)


@torch.no_grad()
def encode(model: SlideCaptioner, precision: Precision, tiles: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Image tokens (B, n, D) of tiles (B, N, C) and mask (B, N), as training computes them."""
    with precision.autocast():
        return model.image_tokens(tiles.to(precision.device), mask)  # the mask stays: it is read on the host


def _cache_folder(config: Config) -> Path:
    setting = config.data.latents_cache
    if setting is None or setting == "auto":
        return expand(config.training.output_dir).parent / SLIDE_CACHE
    return expand(setting)


def header_cache_path(config: Config) -> Path | None:
    """One file per folder of embeddings: several may share a slide cache. None without one."""
    if config.data.latents_cache is None:
        return None
    name = str(expand(config.data.embeddings_dir))
    return _cache_folder(config) / f"index_{zlib.crc32(name.encode()):08x}.json"


# --- batches ---------------------------------------------------------------------------------------------------------

def set_batch_size(state: TrainState, config: Config, objective: Objective, data: Data,
                   cache: SlideCache | None, checkpoint: Checkpoint | None) -> None:
    """Give a new run its batch size; a resumed one keeps its own, even with another number of processes."""
    if not state.batch_size:
        state.batch_size = _micro_batch_size(config, objective, data, cache)
    if state.micro_batches:
        return
    state.micro_batches = config.training.accum_freq * objective.world.size
    if checkpoint:  # of format 1, whose steps were one micro-batch of one process
        state.micro_batches = 1


def _micro_batch_size(config: Config, objective: Objective, data: Data, cache: SlideCache | None) -> int:
    if config.training.max_batch_tokens is not None:
        return 1  # not used
    if config.training.batch_size == "auto":
        return largest_batch(objective, data.train, config.data.max_tiles, cache is not None)
    return int(config.training.batch_size)


class LoaderFactory:
    """Makes the batch loaders of a run."""

    def __init__(self, config: Config, data: Data, cache: SlideCache | None, world: World, state: TrainState,
                 device: torch.device) -> None:
        self.config, self.data, self.cache, self.world, self.state = config, data, cache, world, state
        self.device = device

    def training(self) -> BatchLoader:
        """Shuffled. Raises UserError if an epoch would have no step."""
        samples = self.data.train
        contrastive = self.config.model.contrastive_loss_weight > 0
        read = self._read
        if self.cache and self.config.data.views > 1:
            read = ViewReader(self.cache, self.config.data.views, self.config.training.seed)
        loader = self._make(samples, read, shuffle=True, drop_single=contrastive)
        if not loader.count(0):
            raise UserError("training.batch_size", f"0 steps per epoch with {len(samples)} training slides",
                            "the contrastive loss needs 2 slides in a batch; add slides or lower data.val_split")
        left_out = len(samples) - sum(len(batch) for batch in loader.order.epoch(0))
        if left_out:
            logger.warning("the last batch of an epoch would have %d slide, hence no contrastive loss: it is dropped",
                           left_out)
        return loader

    def validation(self) -> BatchLoader | None:
        """In their order, on all ranks; None if there is no validation slide."""
        return self._make(self.data.validation, self._read, shuffle=False) if self.data.validation else None

    def in_order(self, samples: list[Sample]) -> Iterator[Batch]:
        """The batches of `samples` in their order, all on this process: for what is done once after training."""
        alone = LoaderFactory(self.config, self.data, self.cache, ALONE, replace(self.state, micro_batches=1),
                              self.device)
        return itertools.chain.from_iterable(alone._make(samples, self._read, shuffle=False).epoch(0))

    @property
    def _read(self) -> Reader:
        """Reads all tiles of a slide, or those of an epoch with `data.max_tiles`."""
        return self.cache or TileReader(self.config.data.max_tiles, self.config.training.seed)

    def _make(self, samples: list[Sample], read: Reader, *, shuffle: bool, drop_single: bool = False) -> BatchLoader:
        training = self.config.training
        sizes = [(self._tiles_read(sample), sample.most_tokens) for sample in samples]
        order = BatchOrder(sizes, self.state.batch_size, training.seed, shuffle=shuffle, drop_single=drop_single,
                           max_tokens=training.max_batch_tokens, micro_batches=self.state.micro_batches)
        return BatchLoader(samples, order, read, self.data.tokenizer.pad_id, workers=training.workers,
                           rank=self.world.rank, world_size=self.world.size, device=self.device)

    def _tiles_read(self, sample: Sample) -> int:
        if self.cache:
            return 0
        tiles = sample.slide.num_tiles
        return min(tiles, self.config.data.max_tiles or tiles)


def make_validator(config: Config, data: Data, objective: Objective, loaders: LoaderFactory, folder: Path,
                   signals: StopSignals) -> Validator | None:
    """The validation pass: losses, a check for collapse and, with `training.eval_captions`, captions and their scores.

    None if there is no validation slide.
    """
    batches = loaders.validation()
    if batches is None:
        return None
    training, max_length = config.training, None
    observers: list[Observer] = []
    if config.trains_captions:
        observers.append(CollapseCheck(training.epochs))
    if training.eval_captions:
        max_length = config.data.max_seq_len
        chosen = choose_samples(data.validation, training.eval_captions, training.seed)
        observers.append(CaptionScores(chosen, data.tokenizer, max_length, folder))
    return Validator(objective, batches, data.tokenizer, observers, max_length, signals)
