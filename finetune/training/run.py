"""Puts a training run together from its config: data, model, optimizer, log, checkpoints; then calls the loop."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import zlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checkpoints.format import LAST
from ..common.device import Precision, keep_freed_memory, resolve_device, resolve_precision
from ..common.distributed import World, join_world, local_rank
from ..common.errors import UserError
from ..common.files import expand
from ..common.log import log_to_console, log_to_file, logger
from ..common.run_lock import RunLock
from ..config.schema import Config
from ..config.yaml_file import dump_yaml
from ..data.batch import Batch, Sample
from ..data.header_cache import write_manifest
from ..data.loader import BatchLoader
from ..data.prepare import Data, prepare_data, scan_contents, scans_contents
from ..data.sampler import BatchOrder
from ..data.slide_cache import SlideCache
from ..data.tile_reader import TileReader
from ..data.tokenizer import tokenizer_from_dict
from ..models.build import build_model, initialise, prism_tokenizer
from ..models.captioner import SlideCaptioner
from .batch_size_finder import largest_batch
from .calibration import finish, is_finished
from .caption_validation import CaptionEvaluation, check_monitor, choose, not_in_log_line
from .collapse_check import CollapseCheck
from .custom_loss import load_loss
from .loop import Parts, fit
from .objective import Objective
from .optim import build_optimizer
from .resume import _check_same_run, _open_everywhere
from .run_log import RunLog
from .saver import Saver
from .signals import StopSignals
from .state import TrainState
from .summary import _about, _announce, _announce_data, _for_the_report
from .trackers import open_trackers

_CHECKPOINTS_FREE = 3  # the disk must have room for so many: best, last and the one being written


def train(config: Config, resume: str | None = None) -> int:
    """Train as `config` says, from the beginning or from a checkpoint; returns the exit code (0, or 128 + signal).

    resume: path of a checkpoint, or "auto". Raises UserError before anything is written if an input cannot be used.
    """
    folder = expand(config.check("config").training.output_dir)
    check_monitor(config)
    device = resolve_device(config.training.device, local_rank())
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    with join_world(device) as world:
        memory = log_to_console(quiet=not world.is_main)
        with RunLock(folder) if world.is_main else contextlib.nullcontext():
            return _train(config, resume, folder, memory, device, world)


def _train(config: Config, resume: str | None, folder: Path, memory: MemoryHandler, device: torch.device,
           world: World) -> int:
    user_loss = load_loss(config.training.loss) if config.training.loss else None
    checkpoint, content = _open_everywhere(resume, folder, world)
    tokenizer = tokenizer_from_dict(content["tokenizer"], str(checkpoint)) if content else None
    if tokenizer is None and config.model.decoder == "prism":
        tokenizer = prism_tokenizer(config)
    manifest = _manifest(config) if config.data.latents_cache else None
    data = world.broadcast_object(lambda: prepare_data(config.data, config.training.seed, tokenizer, manifest))
    _seed(config.training.seed + world.rank)
    keep_freed_memory(device)
    precision = resolve_precision(config.training.precision, device)
    precision.use_tf32()
    model = build_model(config, data.tokenizer)
    if not content:
        initialise(model, config, data.tokenizer)
    model = model.to(device)
    # alike on all ranks, whatever random generator has drawn them
    world.broadcast_parameters(model.trained_parameters())
    about = _about(config, data, model, precision, world)
    state = TrainState()
    if content:
        _check_same_run(content, about, str(checkpoint))
        state = TrainState.of(content["progress"], str(checkpoint))
    cache = _slide_cache(config, data, model, precision)
    if config.training.grad_checkpointing:
        model.decoder.grad_checkpointing = True
    if config.training.compile:
        _compile(model)
    objective = Objective(model, precision, world, user_loss)
    state.batch_size = state.batch_size or _batch_size(config, objective, data, cache)
    of_format_1 = bool(content) and not state.micro_batches  # its steps were one micro-batch of one process
    state.micro_batches = state.micro_batches or (1 if of_format_1 else config.training.accum_freq * world.size)
    parts, saver = _assemble(config, data, objective, about, folder, cache, state)
    if content:
        state = replace(TrainState.of(saver.restore(content, checkpoint), str(checkpoint)),
                        batch_size=state.batch_size, micro_batches=state.micro_batches)
    if state.epoch >= config.training.epochs and world.broadcast_object(lambda: is_finished(folder)):
        logger.info("%s is of a finished run: nothing to do", checkpoint.name)
        return 0
    _open_folder(config, data, parts, saver, folder, memory, checkpoint, state)
    _announce(config, data, parts, state, checkpoint)
    slides = data.slides
    if manifest and world.is_main:
        write_manifest(manifest, config.data.h5_key, config.data.image_dim, config.data.wanted_encoder, slides)
    if cache:
        cache.fill(slides, partial(encode, model, precision), config.training.workers, world)
    with StopSignals(world) as signals:
        parts.stop = lambda: world.any(signals.received is not None)
        try:
            state = fit(parts, state)
        except UserError as error:
            parts.log.finish(f"error: {error.line()}")
            raise
    parts.log.finish("finished" if state.epoch >= parts.epochs else "stopped")
    if state.epoch < parts.epochs:
        number = signals.received or signal.SIGTERM  # another process's
        logger.warning("stopped by %s after step %d; go on with --resume auto", signal.Signals(number).name, state.step)
        return 128 + number
    if world.is_main:
        finish(folder, model, precision, data.train, partial(_one_by_one, config, data, cache, state),
               config.trains_captions)
    logger.info("finished: best epoch %d, files in %s", state.best_epoch, config.training.output_dir)
    return 0


def _one_by_one(config: Config, data: Data, cache: SlideCache | None, state: TrainState, side: str) -> Iterator[Batch]:
    """All batches of a side, in its order and on this process: for what is done once after training."""
    batches = _batches(config, data.tokenizer.pad_id, cache, World(), replace(state, micro_batches=1),
                       getattr(data, side), shuffle=False)
    return itertools.chain.from_iterable(batches.epoch(0))


def _compile(model: SlideCaptioner) -> None:
    if not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++", "cl"))):
        raise UserError("training.compile", "torch.compile needs a C++ compiler, and there is none",
                        "install g++, or set training.compile=false")
    model.decoder.compile()


def _batch_size(config: Config, objective: Objective, data: Data, cache: SlideCache | None) -> int:
    if config.training.max_batch_tokens is not None:
        return 1  # not used
    if config.training.batch_size == "auto":
        return largest_batch(objective, data.train, config.data.max_tiles, cache is not None)
    return int(config.training.batch_size)


def _open_folder(config: Config, data: Data, parts: Parts, saver: Saver, folder: Path, memory: MemoryHandler,
                 checkpoint: Path | None, state: TrainState) -> None:
    """On rank 0 write what a run folder holds besides what training writes, once it is clear that there is something to
    do. Called on all ranks, as saving gathers from them."""
    earlier = []
    if saver.world.is_main:
        _check_space(folder, parts.model)
        for stale in folder.glob("*.tmp"):  # left by a run that was killed while saving
            stale.unlink()
        parts.log.trackers = open_trackers(config.training.report_to, folder, saver.about["config"])
        earlier = log_to_file(memory, expand(config.training.log_dir))
        (folder / "config.yaml").write_text(dump_yaml(config), encoding="utf-8")
        (folder / "tokenizer.json").write_text(json.dumps(data.tokenizer.to_dict(), ensure_ascii=False, indent=1),
                                                 encoding="utf-8")
    if checkpoint and checkpoint.name != LAST:  # else a later `auto` would go on from what is left behind here
        saver.save(state, state.best_epoch == state.epoch and not state.batches_done)
    if saver.world.is_main:
        parts.log.truncate(state.metrics_bytes)
        parts.log.start(earlier, _for_the_report(data, parts.model, saver.about))


def check(config: Config) -> int:
    """Look at all labels, headers and tiles, train nothing, write nothing. Raises UserError with the list of faults."""
    check_monitor(config.check("config"))
    if config.training.loss:
        load_loss(config.training.loss)
    with join_world(torch.device("cpu")) as world:  # rank 0 looks and speaks, the others of a torchrun wait
        log_to_console(quiet=not world.is_main)
        return world.broadcast_object(partial(_check, config))


def _check(config: Config) -> int:
    data = prepare_data(config.data, config.training.seed)
    if not scans_contents(config.data):  # else it is done
        scan_contents(data)
    _announce_data(data)
    if config.data.on_bad == "skip":
        logger.info("%d slides are good; what else there is would be skipped", len(data.train) + len(data.validation))
    else:
        logger.info("all files are good")
    return 0


def _seed(seed: int) -> None:
    """Seed the global generators. Order, split and tile sampling have their own; this is for what a layer may draw."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _assemble(config: Config, data: Data, objective: Objective, about: dict[str, Any], folder: Path,
              cache: SlideCache | None, state: TrainState) -> tuple[Parts, Saver]:
    training, world = config.training, objective.world
    make = partial(_batches, config, data.tokenizer.pad_id, cache, world, state)
    contrastive = config.model.contrastive_loss_weight > 0
    batches = make(data.train, shuffle=True, drop_single=contrastive)
    if not batches.count(0):
        raise UserError("training.batch_size", f"0 steps per epoch with {len(data.train)} training slides",
                        "the contrastive loss needs 2 slides in a batch; add slides or lower data.val_split")
    if left_out := len(data.train) - sum(map(len, batches.order.epoch(0))):
        logger.warning("the last batch of an epoch would have %d slide, hence no contrastive loss: it is left out",
                       left_out)
    validation = make(data.validation, shuffle=False) if data.validation else None
    optimizer = build_optimizer(objective.model.named_trained_parameters(), training.learning_rate,
                                training.weight_decay)
    scaler = objective.precision.scaler()
    saver = Saver(folder, training.save_every, objective.model, optimizer, scaler, about, world)
    evaluation = None
    if training.eval_captions and data.validation:
        chosen = choose(data.validation, training.eval_captions, training.seed)
        evaluation = CaptionEvaluation(chosen, data.tokenizer, config.data.max_seq_len, folder)
    log = RunLog(folder if world.is_main else None, quiet=not_in_log_line(training.monitor))
    parts = Parts(objective, optimizer, scaler, batches, validation, log,
                  saver.save, lambda: False, epochs=training.epochs, peak_lr=training.learning_rate,
                  warmup=training.warmup, grad_clip_norm=training.grad_clip_norm,
                  save_every_steps=training.save_every_steps,
                  watch=CollapseCheck(data.tokenizer.bos_id, data.tokenizer.eos_id, data.tokenizer.pad_id, evaluation)
                  if config.trains_captions else None, monitor=training.monitor)
    return parts, saver


def _batches(config: Config, pad_id: int, cache: SlideCache | None, world: World, state: TrainState,
             samples: list[Sample], *, shuffle: bool, drop_single: bool = False) -> BatchLoader:
    data, training = config.data, config.training
    sizes = [(0 if cache else min(s.slide.num_tiles, data.max_tiles or s.slide.num_tiles), s.most_tokens)
             for s in samples]
    order = BatchOrder(sizes, state.batch_size, training.seed, shuffle=shuffle, drop_single=drop_single,
                       max_tokens=training.max_batch_tokens, micro_batches=state.micro_batches)
    return BatchLoader(samples, order, cache or TileReader(data.max_tiles, training.seed), pad_id,
                   workers=training.workers, encoded=cache is not None, rank=world.rank, world_size=world.size)


def _cache_folder(config: Config) -> Path:
    where = config.data.latents_cache or "auto"
    return expand(config.training.output_dir).parent / "prism_latents" if where == "auto" else expand(where)


def _manifest(config: Config) -> Path:
    """One per folder of embeddings: several may share a slide cache."""
    return _cache_folder(config) / f"index_{zlib.crc32(str(expand(config.data.embeddings_dir)).encode()):08x}.json"


def _slide_cache(config: Config, data: Data, model: SlideCaptioner, precision: Precision) -> SlideCache | None:
    """The cache of this run, or None where the encoder's output changes from epoch to epoch, or none is wanted."""
    most = config.data.max_tiles
    if config.data.latents_cache is None or not config.prism.freeze:
        return None
    if most is not None and any(s.num_tiles > most for s in data.slides):
        return None
    return SlideCache.of(_cache_folder(config), model.prism.sha256, precision.name, *model.image_tokens_shape)


@torch.no_grad()
def encode(model: SlideCaptioner, precision: Precision, tiles: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Image tokens (B, n, D) of tiles (B, N, C) and mask (B, N), as training computes them."""
    with precision.autocast():
        return model.image_tokens(tiles.to(precision.device), mask.to(precision.device))


def _check_space(folder: Path, model: SlideCaptioner) -> None:
    """Raises UserError if the disk has no room for the checkpoints: better now than after the first epoch."""
    moments = 2 * sum(p.nbytes for p in model.trained_parameters())  # of AdamW
    size = moments + sum(t.nbytes for t in model.saved_state().values())
    free = shutil.disk_usage(folder).free
    if free < _CHECKPOINTS_FREE * size:
        raise UserError(folder, f"{free / 1e9:.2f} GB are free, {_CHECKPOINTS_FREE} checkpoints need "
                        f"{_CHECKPOINTS_FREE * size / 1e9:.2f} GB", "free some space or choose another --output_dir")
