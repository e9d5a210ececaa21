"""A training run, and the data check before one, as a sequence of steps implemented in the modules beside it."""

from __future__ import annotations

import contextlib
import signal
from functools import partial
from logging.handlers import MemoryHandler
from pathlib import Path

import torch

from ..common.device import keep_freed_memory, resolve_precision
from ..common.distributed import ALONE, World, join_world
from ..common.errors import UserError
from ..common.files import expand
from ..common.log import log_to_console, logger, notice
from ..common.run_lock import RunLock
from ..config.schema import Config
from ..data.prepare import Data, contents_are_checked, scan_contents
from ..models.build import decoder_tokenizer
from ..pages.run_report import write_report
from .announcements import announce_end, announce_start, report_path
from .calibration import calibrate_and_index, is_calibrated_and_indexed
from .caption_validation import check_monitor, not_in_log_line
from .custom_loss import LossFunction, load_loss, try_loss
from .found_template import template_of
from .init_from import init_from_of, open_starting_point
from .loop import Parts, fit
from .objective import Objective
from .optim import configured_optimizer, learning_rate_schedule
from .random_states import seed_all
from .resume import check_same_run, open_checkpoint, restore, saved_state
from .run_files import open_run_folder
from .run_log import RunLog
from .saver import Saver
from .setup import (
    LoaderFactory,
    fill_caches,
    load_data,
    make_model,
    make_validator,
    open_slide_cache,
    read_data,
    resolve_settings,
    select_device,
    set_batch_size,
)
from .signals import StopRequested, StopSignals
from .state import TrainState
from .summary import describe_run, log_data, log_run


def train(config: Config, resume: str | None = None) -> int:
    """Train as configured, from scratch or from a checkpoint.

    Args:
        resume: Path of a checkpoint, or "auto".

    Returns:
        The exit code: 0, or 128 + the number of the signal that stopped the run.

    Raises:
        UserError: An input cannot be used; nothing has been written.
    """
    folder = expand(config.check("config").training.output_dir)
    check_monitor(config)
    device = select_device(config)
    with join_world(device) as world:
        buffered = log_to_console(quiet=not world.is_main)
        with RunLock(folder) if world.is_main else contextlib.nullcontext():
            return _train(config, resume, folder, buffered, device, world)


def _train(config: Config, resume: str | None, folder: Path, buffered: MemoryHandler, device: torch.device,
           world: World) -> int:
    user_loss = load_loss(config.training.loss)
    checkpoint = open_checkpoint(resume, folder, world)
    start = open_starting_point(config, checkpoint, world)
    config, data = load_data(config, checkpoint, start, world)
    training = config.training
    if user_loss:
        try_loss(user_loss, len(data.tokenizer), config.model.dim_latents, device)

    seed_all(training.seed + world.rank)
    keep_freed_memory(device)
    precision = resolve_precision(training.precision, device, wide_range=config.model.language_model is not None)
    precision.use_tf32()
    model = make_model(config, data, precision, world, fresh=checkpoint is None, start=start)
    description = describe_run(config, data, model, precision, world, init_from_of(checkpoint, start),
                               template_of(config, data, checkpoint, world))
    del start  # its weights are in the model now
    state = TrainState()
    if checkpoint:
        check_same_run(checkpoint, description, data.tile_sums)
        state = saved_state(checkpoint)

    objective = Objective(model, precision, world, user_loss)
    cache = open_slide_cache(config, data, model, precision)
    set_batch_size(state, config, objective, data, cache, checkpoint)
    loaders = LoaderFactory(config, data, cache, world, state, device)
    batches = loaders.training()
    optimizer = configured_optimizer(config, model.named_trained_parameters())
    scaler = precision.scaler()
    learning_rate = learning_rate_schedule(training, batches.total(training.epochs))
    signals = StopSignals(world)
    validator = make_validator(config, data, objective, loaders, folder, signals)
    if checkpoint:
        restore(checkpoint, model, optimizer, scaler, world)
    if state.epoch >= training.epochs and world.broadcast_object(lambda: is_calibrated_and_indexed(folder)):
        notice("%s belongs to a finished run: nothing to do; its report is %s", checkpoint.path.name,
               report_path(config))
        return 0

    log = RunLog(folder if world.is_main else None, quiet=not_in_log_line(training.monitor), write_report=write_report,
                 monitor=training.monitor)
    saver = Saver(folder, training.save_every, model, optimizer, scaler, description, world)
    open_run_folder(config, data, saver, log, buffered, checkpoint, state)
    log_run(config, data, objective, batches, state)
    announce_start(config, data, objective, batches, state, checkpoint)
    parts = Parts(objective, optimizer, scaler, batches, learning_rate, validator, log, saver.save,
                  signals.any_received, epochs=training.epochs, grad_clip_norm=training.grad_clip_norm,
                  save_every_steps=training.save_every_steps, monitor=training.monitor, is_late=saver.is_late)
    try:
        with signals:
            with signals.interruptible():
                fill_caches(config, data, model, precision, cache, world, fresh=checkpoint is None)
            return _fit_and_finish(parts, state, config, data, folder, loaders, signals)
    except StopRequested:
        return _stopped(log, state, signals)
    except UserError as error:
        log.finish(f"error: {error.line()}")
        raise


def _stopped(log: RunLog, state: TrainState, signals: StopSignals) -> int:
    """Say that a signal has ended the run. Returns the exit code."""
    log.finish("stopped")
    number = signals.received or signal.SIGTERM  # of another process
    logger.warning("stopped by %s after step %d; rerun with --resume auto", signal.Signals(number).name, state.step)
    return 128 + number


def _fit_and_finish(parts: Parts, state: TrainState, config: Config, data: Data, folder: Path, loaders: LoaderFactory,
                    signals: StopSignals) -> int:
    """Train, and do what follows the last epoch. Returns the exit code, 0. Raises StopRequested on a signal."""
    fit(parts, state)
    if state.epoch < parts.epochs:
        raise StopRequested
    if parts.objective.world.is_main:
        with signals.interruptible():
            calibrate_and_index(folder, parts.model, parts.objective.precision, data, config, loaders.in_order)
    parts.log.finish("finished")
    if parts.objective.world.is_main:
        announce_end(config, folder, state, data)
    return 0


def check(config: Config) -> int:
    """Read all labels, headers and tiles without training or writing. Raises UserError with the list of faults."""
    check_monitor(config.check("config"))
    user_loss = load_loss(config.training.loss)
    with join_world(torch.device("cpu")) as world:  # only rank 0 reads and logs
        log_to_console(quiet=not world.is_main, details=True)
        return world.broadcast_object(partial(_check, config, user_loss))


def _check(config: Config, user_loss: LossFunction | None) -> int:
    start = open_starting_point(config, None, ALONE)
    # a language model's own tokens are counted, and its folder is looked at; Prism's text side is not needed for this
    tokenizer = decoder_tokenizer(config) if config.model.language_model is not None else None
    data = read_data(config, tokenizer, start)
    config = resolve_settings(config, data, None, start)
    if user_loss:
        try_loss(user_loss, len(data.tokenizer), config.model.dim_latents, torch.device("cpu"))
    if not contents_are_checked(config.data):  # else `prepare_data` has done it
        scan_contents(data)
    log_data(data)
    if config.data.on_bad == "skip":
        usable = len(data.train) + len(data.validation)
        logger.info("%d slides are usable; the others would be skipped", usable)
    else:
        logger.info("all files are good")
    return 0
