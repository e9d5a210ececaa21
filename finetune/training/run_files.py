"""Files of a run folder besides checkpoints and epoch logs, written when training starts."""

from __future__ import annotations

import shutil
from logging.handlers import MemoryHandler
from pathlib import Path

from ..checkpoints.format import BEST, LAST, Checkpoint, epoch_name
from ..common.errors import UserError
from ..common.files import expand, remove_leftovers, write_atomically
from ..common.log import log_to_file, logger
from ..common.run_folder import METRICS, read_records
from ..common.visible import json_text
from ..config.schema import Config
from ..config.yaml_file import dump_yaml
from ..data.prepare import Data
from ..models.captioner import SlideCaptioner
from .run_log import RunLog
from .saver import Saver
from .state import TrainState
from .summary import describe_for_report
from .trackers import open_trackers


def open_run_folder(config: Config, data: Data, saver: Saver, log: RunLog, buffered: MemoryHandler,
                    checkpoint: Checkpoint | None, state: TrainState) -> None:
    """Write config.yaml and tokenizer.json on rank 0, and start all logs. Called on all ranks, as saving is collective.

    Args:
        buffered: The log lines so far, which go to training.log.
        checkpoint: The one that the run resumes from.

    Raises:
        UserError: The disk has too little room, or a folder cannot be written.
    """
    earlier = []
    if saver.world.is_main:
        check_disk_space(saver.folder, saver.model)
        log.trackers = open_trackers(config.training.report_to, saver.folder, saver.description.config, state.epoch + 1)
        earlier = log_to_file(buffered, expand(config.training.log_dir))
        _write_settings(saver.folder, config, data)
    if checkpoint and checkpoint.path.name != LAST:
        is_best = state.best_epoch == state.epoch and not state.batches_done
        if saver.world.is_main:
            _warn_of_loss(saver.folder, checkpoint, state, is_best)
        saver.save(state, is_best)  # else a later `auto` would resume from the old last_model.pth
    if saver.world.is_main:
        log.truncate(state.metrics_bytes)
        log.start(earlier, describe_for_report(data, saver.model, saver.description))


def _warn_of_loss(folder: Path, checkpoint: Checkpoint, state: TrainState, is_best: bool) -> None:
    """Say what goes when a run is resumed from an earlier state than its last. is_best: of that state, its epoch."""
    epochs = [record["epoch"] for record in read_records(folder / METRICS) if isinstance(record.get("epoch"), int)]
    last = max(epochs, default=0)
    if last <= state.epoch:
        logger.warning("resuming from %s: %s is replaced by it", checkpoint.path.name, LAST)
        return
    best = f"and {BEST} by its weights" if is_best else f"{BEST} stays until an epoch is better"
    later = [name for epoch in range(state.epoch + 1, last + 1) if (folder / (name := epoch_name(epoch))).exists()]
    kept = f"; {', '.join(later)} stay until these epochs are trained again" if later else ""
    logger.warning("resuming from %s, after epoch %d of %d: later epochs go from metrics.jsonl and from the curves, %s "
                   "is replaced by it, %s%s", checkpoint.path.name, state.epoch, last, LAST, best, kept)


def _write_settings(folder: Path, config: Config, data: Data) -> None:
    remove_leftovers(folder)  # of a run that was killed while saving
    tokenizer = json_text(data.tokenizer.to_dict(), indent=1)
    write_atomically(folder / "config.yaml", dump_yaml(config))
    write_atomically(folder / "tokenizer.json", tokenizer)


def describe_sizes(folder: Path) -> str:
    """The sizes of the checkpoints, such as ": best_model.pth 12.1 MB, last_model.pth 36.4 MB"."""
    paths = [path for path in (folder / BEST, folder / LAST) if path.exists()]
    sizes = [f"{path.name} {path.stat().st_size / 1e6:.1f} MB" for path in paths]
    return f": {', '.join(sizes)}" if sizes else ""


def check_disk_space(folder: Path, model: SlideCaptioner) -> None:
    """Raises UserError if the disk has no room for the checkpoints: reported now rather than after the first epoch."""
    moments = 2 * sum(parameter.nbytes for parameter in model.trained_parameters())  # of AdamW
    weights = sum(tensor.nbytes for tensor in model.saved_state().values())
    needed = weights + 2 * (weights + moments)  # best_model.pth, last_model.pth and the one being written
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(folder, f"{free / 1e9:.2f} GB are free, its checkpoints need {needed / 1e9:.2f} GB",
                        "free some space or choose another --output_dir")
