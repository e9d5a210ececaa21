"""Files of a run folder besides checkpoints and epoch logs, written when training starts."""

from __future__ import annotations

import json
import shutil
from logging.handlers import MemoryHandler
from pathlib import Path

from ..checkpoints.format import LAST, Checkpoint
from ..common.errors import UserError
from ..common.files import expand, write_atomically
from ..common.log import log_to_file
from ..config.schema import Config
from ..config.yaml_file import dump_yaml
from ..data.prepare import Data
from ..models.captioner import SlideCaptioner
from .run_log import RunLog
from .saver import Saver
from .state import TrainState
from .summary import describe_for_report
from .trackers import open_trackers

_CHECKPOINTS_FREE = 3  # the disk must have room for this many: best, last and the one being written


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
        log.trackers = open_trackers(config.training.report_to, saver.folder, saver.description.config)
        earlier = log_to_file(buffered, expand(config.training.log_dir))
        _write_settings(saver.folder, config, data)
    if checkpoint and checkpoint.path.name != LAST:  # else a later `auto` would resume from the old last_model.pth
        saver.save(state, is_best=state.best_epoch == state.epoch and not state.batches_done)
    if saver.world.is_main:
        log.truncate(state.metrics_bytes)
        log.start(earlier, describe_for_report(data, saver.model, saver.description))


def _write_settings(folder: Path, config: Config, data: Data) -> None:
    for stale in folder.glob("*.tmp"):  # left by a run that was killed while saving
        stale.unlink()
    tokenizer = json.dumps(data.tokenizer.to_dict(), ensure_ascii=False, indent=1)
    write_atomically(folder / "config.yaml", dump_yaml(config))
    write_atomically(folder / "tokenizer.json", tokenizer)


def check_disk_space(folder: Path, model: SlideCaptioner) -> None:
    """Raises UserError if the disk has no room for the checkpoints: reported now rather than after the first epoch."""
    moments = 2 * sum(parameter.nbytes for parameter in model.trained_parameters())  # of AdamW
    size = moments + sum(tensor.nbytes for tensor in model.saved_state().values())
    needed, free = _CHECKPOINTS_FREE * size, shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(folder, f"{free / 1e9:.2f} GB are free, {_CHECKPOINTS_FREE} checkpoints need "
                        f"{needed / 1e9:.2f} GB", "free some space or choose another --output_dir")
