"""Puts a training run together from its config: data, model, optimizer, log, checkpoints; then calls the loop."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import platform
import random
import re
import shutil
import signal
import threading
import zlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .batching import Batch, Batches, BatchOrder, Sample
from .checkpoint import LAST, Saver, load_run
from .config import Config, dump_yaml, expand, from_dict
from .data import Data, prepare_data, scan_contents, scans_contents
from .distributed import World, join_world, local_rank
from .errors import UserError
from .evaluation import EVALUATED, SHORT, CaptionEvaluation, check_monitor, choose
from .finish import finish, is_finished
from .latents import SlideCache
from .loop import Parts, TrainState, fit
from .manifest import write_manifest
from .memory import keep_freed_memory
from .model import SlideCaptioner, build_model, describe_prism, initialise, prism_tokenizer
from .objective import Objective
from .optim import Precision, build_optimizer, resolve_device, resolve_precision
from .probe import largest_batch
from .resume import open_checkpoint
from .runlock import RunLock
from .runlog import RunLog, log_to_console, log_to_file, logger
from .tiles import TileReader
from .tokenizer import tokenizer_from_dict
from .trackers import open_trackers
from .user_loss import load_loss
from .watch import CaptionWatch

# What may differ when a run is resumed. `epochs` stretches the learning-rate schedule from there on.
_MAY_CHANGE = {"data.embeddings_dir", "data.labels_file", "data.split_file", "data.sha256_file", "data.on_bad",
               "data.max_bad_fraction", "data.latents_cache", "data.tile_encoder", "prism.weights", "prism.revision",
               "training.epochs", "training.save_every", "training.save_every_steps", "training.eval_captions",
               "training.output_dir", "training.log_dir", "training.device", "training.workers", "training.compile",
               "training.grad_checkpointing", "training.report_to"}
# Where things lie on this disk is of no use in a checkpoint, which others may see.
_PATHS = ("data.embeddings_dir", "data.labels_file", "data.split_file", "data.sha256_file", "data.latents_cache",
          "training.output_dir", "training.log_dir")
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
    data = world.share(lambda: prepare_data(config.data, config.training.seed, tokenizer, manifest))
    _seed(config.training.seed + world.rank)
    keep_freed_memory(device)
    precision = resolve_precision(config.training.precision, device)
    precision.use_tf32()
    model = build_model(config, data.tokenizer)
    if not content:
        initialise(model, config, data.tokenizer)
    model = model.to(device)
    world.copy_from_main(model.trained_parameters())  # alike on all ranks, whatever random generator has drawn them
    about = _about(config, data, model, precision, world)
    state = TrainState()
    if content:
        _check_same_run(content, about, str(checkpoint))
        state = TrainState.of(content["progress"], str(checkpoint))
    cache = _slide_cache(config, data, model, precision)
    if config.training.grad_checkpointing:
        model.coca.grad_checkpointing = True
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
    if state.epoch >= config.training.epochs and world.share(lambda: is_finished(folder)):
        logger.info("%s is of a finished run: nothing to do", checkpoint.name)
        return 0
    _open_folder(config, data, parts, saver, folder, memory, checkpoint, state)
    _announce(config, data, parts, state, checkpoint)
    slides = data.slides
    if manifest and world.is_main:
        write_manifest(manifest, config.data.h5_key, config.data.image_dim, config.data.wanted_encoder, slides)
    if cache:
        cache.fill(slides, partial(encode, model, precision), config.training.workers, world)
    with _Signals(world) as signals:
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
    model.coca.compile()


def _batch_size(config: Config, objective: Objective, data: Data, cache: SlideCache | None) -> int:
    if config.training.max_batch_tokens is not None:
        return 1  # not used
    if config.training.batch_size == "auto":
        return largest_batch(objective, data.train, config.data.max_tiles, cache is not None)
    return int(config.training.batch_size)


def _open_everywhere(resume: str | None, folder: Path, world: World) -> tuple[Path | None, dict[str, Any] | None]:
    """The checkpoint that rank 0 has chosen, read by each rank for itself: sent around it would need its size twice."""
    opened: list[Any] = [None, None]

    def choose() -> Path | None:
        opened[:] = open_checkpoint(resume, folder)
        return opened[0]

    path = world.share(choose)
    if path and not world.is_main:
        if not path.exists():
            raise UserError(path, "is not on this machine", "put training.output_dir on a disk that all machines share")
        opened = [path, load_run(path)]
    return opened[0], opened[1]


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
        return world.share(partial(_check, config))


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
    optimizer = build_optimizer(objective.model, training.learning_rate, training.weight_decay)
    scaler = objective.precision.scaler()
    saver = Saver(folder, training.save_every, objective.model, optimizer, scaler, about, world)
    evaluation = None
    if training.eval_captions and data.validation:
        chosen = choose(data.validation, training.eval_captions, training.seed)
        evaluation = CaptionEvaluation(chosen, data.tokenizer, config.data.max_seq_len, folder)
    log = RunLog(folder if world.is_main else None, quiet=set(EVALUATED) - {*SHORT, training.monitor})
    parts = Parts(objective, optimizer, scaler, batches, validation, log,
                  saver.save, lambda: False, epochs=training.epochs, peak_lr=training.learning_rate,
                  warmup=training.warmup, grad_clip_norm=training.grad_clip_norm,
                  save_every_steps=training.save_every_steps,
                  watch=CaptionWatch(data.tokenizer.bos_id, data.tokenizer.eos_id, data.tokenizer.pad_id, evaluation)
                  if config.trains_captions else None, monitor=training.monitor)
    return parts, saver


def _batches(config: Config, pad_id: int, cache: SlideCache | None, world: World, state: TrainState,
             samples: list[Sample], *, shuffle: bool, drop_single: bool = False) -> Batches:
    data, training = config.data, config.training
    sizes = [(0 if cache else min(s.slide.num_tiles, data.max_tiles or s.slide.num_tiles), s.most_tokens)
             for s in samples]
    order = BatchOrder(sizes, state.batch_size, training.seed, shuffle=shuffle, drop_single=drop_single,
                       max_tokens=training.max_batch_tokens, micro_batches=state.micro_batches)
    return Batches(samples, order, cache or TileReader(data.max_tiles, training.seed), pad_id,
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


def _about(config: Config, data: Data, model: SlideCaptioner, precision: Precision, world: World) -> dict[str, Any]:
    """What every checkpoint says about its run: nothing of the user's disk."""
    prism = model.prism
    public = config.to_dict()
    for key in _PATHS:
        section, name = key.split(".")
        public[section][name] = ""
    if not re.fullmatch(r"hf:[\w-][\w.-]*(/[\w.-]+)?|[^h].*", public["data"]["tokenizer"]):  # a folder, not a hub name
        public["data"]["tokenizer"] = "hf:" + re.split(r"[/\\]", public["data"]["tokenizer"].rstrip("/\\"))[-1]
    return {
        "config": public,
        "tokenizer": data.tokenizer.to_dict(),
        "prism": {"source": prism.source, "revision": prism.revision, "sha256": prism.sha256} | describe_prism(model),
        "data": {"fingerprint": data.fingerprint, "test_ids": data.test_ids,
                 "validation_ids": [s.slide.slide_id for s in data.validation],
                 "slides": {"training": len(data.train), "validation": len(data.validation)}},
        "versions": {"torch": str(torch.__version__), "python": platform.python_version(),
                     "threads": torch.get_num_threads(), "precision": precision.name,
                     "device": _device_name(precision.device), "processes": world.size},
    }


def _for_the_report(data: Data, model: SlideCaptioner, about: dict[str, Any]) -> dict[str, str]:
    """What report.html says was trained on what."""
    tiles = [s.slide.num_tiles for s in data.train + data.validation]
    prism, versions = about["prism"], about["versions"]
    trained = sum(p.numel() for p in model.trained_parameters())
    return {
        "slides": f"{len(data.train)} training, {len(data.validation)} validation",
        "tiles per slide": f"{min(tiles)} - {max(tiles)}, {sum(tiles)} in all",
        "vocabulary": str(len(data.tokenizer)), "data fingerprint": str(about["data"]["fingerprint"]),
        "Prism": Path(str(prism["source"])).name if Path(str(prism["source"])).exists() else str(prism["source"]),
        "Prism revision": str(prism["revision"]), "Prism SHA-256": str(prism["sha256"]),
        "trained parameters": f"{trained / 1e6:.1f} M", **{name: str(value) for name, value in versions.items()},
    }


def _check_same_run(content: dict[str, Any], about: dict[str, Any], where: str) -> None:
    """Raises UserError if the checkpoint belongs to other settings, data or Prism weights than this run."""
    before, now = from_dict(content["config"], where).to_dict(), about["config"]
    for section, keys in now.items():
        for key, value in keys.items():
            if before[section][key] != value and f"{section}.{key}" not in _MAY_CHANGE:
                raise UserError(where, f"was trained with {section}.{key}={before[section][key]}, this run has {value}",
                                "use the same value, or start anew in another --output_dir")
    if content["data"].get("fingerprint") != about["data"]["fingerprint"]:
        raise UserError(where, "was trained on other data (slides, texts, tile counts or split changed)",
                        "put the data back, or start anew in another --output_dir")
    if any(content["prism"].get(key) != about["prism"].get(key) for key in ("sha256", "text_sha256")):
        raise UserError(where, f"was trained with other Prism weights ({content['prism'].get('source')})",
                        "give the same weights with prism.weights")
    if now["training"]["accum_freq"] > 1 and content["format_version"] == 1:
        raise UserError(where, "is of an older version, where accum_freq did not enlarge the contrastive batch",
                        "start anew in another --output_dir, or go on with that version")
    for name, value in content["versions"].items():
        if about["versions"].get(name) != value:
            logger.warning("%s was %s, now %s: the resumed run may differ in the last bits", name, value,
                           about["versions"].get(name))


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


def _check_space(folder: Path, model: SlideCaptioner) -> None:
    """Raises UserError if the disk has no room for the checkpoints: better now than after the first epoch."""
    moments = 2 * sum(p.nbytes for p in model.trained_parameters())  # of AdamW
    size = moments + sum(t.nbytes for t in model.saved_state().values())
    free = shutil.disk_usage(folder).free
    if free < _CHECKPOINTS_FREE * size:
        raise UserError(folder, f"{free / 1e9:.2f} GB are free, {_CHECKPOINTS_FREE} checkpoints need "
                        f"{_CHECKPOINTS_FREE * size / 1e9:.2f} GB", "free some space or choose another --output_dir")


def _announce(config: Config, data: Data, parts: Parts, state: TrainState, checkpoint: Path | None) -> None:
    _announce_data(data)
    model, precision, world = parts.model, parts.objective.precision, parts.objective.world
    trained = sum(p.numel() for p in model.trained_parameters())
    logger.info("Prism %s (%s), sha256 %s; %.1f M parameters train", config.prism.weights,
                "frozen" if config.prism.freeze else "trained", model.prism.sha256[:12], trained / 1e6)
    order, training = parts.batches.order, config.training
    size = str(state.batch_size * state.micro_batches)
    if training.max_batch_tokens is not None:
        size = f"up to {training.max_batch_tokens * state.micro_batches} tokens"
    logger.info("device %s, precision %s (%s), %d steps an epoch of %d x %s slides, %.1f %% of the text is padding",
                precision.device, precision.name, precision.reason, order.count(0), state.micro_batches,
                state.batch_size if training.max_batch_tokens is None else "some", 100 * order.padding(0))
    logger.info("effective batch %s: every pair is compared with all others of it; %d processes", size, world.size)
    if state.micro_batches != training.accum_freq * world.size:
        logger.info("the run began with %d processes: its effective batch stays",
                    state.micro_batches // training.accum_freq)
    if config.training.precision not in ("auto", precision.name):
        logger.warning("training.precision is %s, used is %s: %s", config.training.precision, precision.name,
                       precision.reason)
    if checkpoint:
        logger.info("resumed from %s", checkpoint.name)


def _announce_data(data: Data) -> None:
    tiles = [s.num_tiles for s in data.slides]
    logger.info("%d training and %d validation slides, %d to %d tiles each; vocabulary of %d", len(data.train),
                len(data.validation), min(tiles), max(tiles), len(data.tokenizer))


class _Signals:
    """SIGINT and SIGTERM ask for a stop after the running step; the second one ends the process at once (under torchrun
    it does not: there the same signal may come from the terminal and from torchrun, which kills after 30 s anyway)."""

    def __init__(self, world: World) -> None:
        self.world = world

    def __enter__(self) -> _Signals:
        self.received: int | None = None
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():  # elsewhere Python does not allow handlers
            self._before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        if self.received is not None and self.world.size == 1:
            os._exit(128 + number)
        self.received = number
        logger.warning("%s: finishing the step, then saving to %s", signal.Signals(number).name, LAST)
