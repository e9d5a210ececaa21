"""Resuming a run: choosing the checkpoint, checking that it belongs to this run, and restoring its state."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.format import BEST, LAST, Checkpoint, DamagedCheckpoint, RunDescription
from ..common.distributed import ALONE, World
from ..common.errors import UserError
from ..common.log import logger
from ..common.run_folder import METRICS
from ..config.auto import AUTO_KEYS, fill_open, value_of
from ..config.schema import Config, from_dict, same_decoder
from ..data.tile_sum import NOT_SUMMED
from ..models.captioner import SlideCaptioner
from .random_states import set_random_states
from .state import TrainState

# What may differ when a run is resumed. `epochs` stretches the learning-rate schedule from there on.
_MAY_CHANGE = {"data.embeddings_dir", "data.labels_file", "data.id_column", "data.text_column", "data.slide_column",
               "data.split_column", "data.encoding", "data.case_pattern", "data.split_file", "data.sha256_file",
               "data.on_bad", "data.max_bad_fraction", "data.latents_cache", "data.tile_encoder", "prism.weights",
               "prism.revision", "training.epochs", "training.save_every", "training.save_every_steps",
               "training.eval_captions", "training.output_dir", "training.log_dir", "training.device",
               "training.workers", "training.compile", "training.grad_checkpointing", "training.report_to",
               "training.init_from"}

# What the default was before there was model.size: a run of then goes on with the command that began it.
_FORMER_DEFAULTS = {"training.batch_size": 4, "training.monitor": "val_loss"}


def open_checkpoint(resume: str | None, folder: Path, world: World) -> Checkpoint | None:
    """The checkpoint that `choose_checkpoint` finds on rank 0, on all ranks: each rank reads the file itself, as
    broadcasting it would take twice its size. Raises UserError."""
    checkpoint = None

    def choose() -> Path | None:
        nonlocal checkpoint
        checkpoint = choose_checkpoint(resume, folder)
        return checkpoint.path if checkpoint else None

    path = world.broadcast_object(choose)
    if path is None or world.is_main:
        return checkpoint
    if not path.exists():
        raise UserError(path, "is not on this machine", "put training.output_dir on a disk that all machines share")
    return Checkpoint.load(path)


def choose_checkpoint(resume: str | None, folder: Path) -> Checkpoint | None:
    """The checkpoint that `--resume` means, None for a new run.

    `auto` falls back to the newest intact checkpoint if last_model.pth is damaged or missing: the work since then is
    repeated, with the same result.

    Raises:
        UserError: There is no such checkpoint, a file given by name is damaged or holds weights only, or the folder
            holds another run.
    """
    path = find_path(resume, folder)
    if path is None and (resume is None or not any(folder.glob("*.pth"))):
        return None
    try:
        if path is None:
            raise DamagedCheckpoint(folder / LAST, "not found, but the folder holds checkpoints of a run",
                                    "choose another --output_dir")
        checkpoint = Checkpoint.load(path)
    except DamagedCheckpoint as error:
        return _fall_back(error, resume, folder)
    if not checkpoint.is_resumable:
        raise UserError(path, "holds weights only, which no run can be resumed from",
                        f"use --resume auto ({LAST}), or train on from them in another --output_dir with "
                        f"training.init_from={_short(path)}")
    return checkpoint


def _short(path: Path) -> str:
    """The path from the current folder if it is below it: an error line has little room."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _fall_back(damage: DamagedCheckpoint, resume: str | None, folder: Path) -> Checkpoint:
    """The newest intact checkpoint in place of a damaged one, for `auto` only. Raises UserError."""
    newest = newest_good(folder)
    if newest is None:
        if (folder / BEST).is_file():
            damage.fix = ("no other file of the run can be resumed; train on from its weights in another --output_dir "
                          f"with training.init_from={_short(folder / BEST)}")
        raise damage
    if resume != "auto":
        raise UserError(damage.where, damage.what, f"the newest intact checkpoint is {newest.path.name}")
    logger.warning("%s: %s; resuming from %s instead", damage.where, damage.what, newest.path.name)
    return newest


def find_path(resume: str | None, folder: Path) -> Path | None:
    """The file to resume from: the given path, or for `auto` the folder's last_model.pth if it exists.

    Raises:
        UserError: The folder holds a run and `resume` is None, or the path is in another folder.
    """
    if resume == "auto":
        return folder / LAST if (folder / LAST).exists() else None
    if resume is None:
        if any(folder.glob("*.pth")) or (folder / METRICS).exists():
            raise UserError(folder, "holds another run", "resume it with --resume auto, or choose another --output_dir")
        return None
    path = Path(resume).expanduser().absolute()
    if path.is_file() and path.parent.resolve() != folder.resolve():
        raise UserError(path, f"is not in the run folder {folder}", f"add --output_dir {path.parent}")
    return path


def newest_good(folder: Path) -> Checkpoint | None:
    """The checkpoint in `folder` that is furthest in training among those that can be loaded and resumed."""
    newest: Checkpoint | None = None
    for path in sorted(folder.glob("*.pth")):
        try:
            checkpoint = Checkpoint.load(path)
        except UserError:
            continue
        if checkpoint.is_resumable and (newest is None or _position(checkpoint) > _position(newest)):
            newest = checkpoint
    return newest


def _position(checkpoint: Checkpoint) -> tuple[int, int]:
    progress = checkpoint.progress
    return int(progress.get("epoch") or 0), int(progress.get("batches_done") or 0)


def keep_settings(config: Config, checkpoint: Checkpoint) -> Config:
    """A copy of `config` where what is still `auto` or null has the value that the run of the checkpoint has.

    Raises:
        UserError: The checkpoint's config is unusable.
    """
    config, saved = copy.deepcopy(config), from_dict(checkpoint.config, str(checkpoint.path))
    fill_open(config, {key: value_of(saved, key) for key in AUTO_KEYS})
    if "size" not in checkpoint.config["model"]:
        default = Config()
        for key, former in _FORMER_DEFAULTS.items():
            is_default = value_of(config, key) == value_of(default, key)
            if is_default and value_of(saved, key) == former:
                config.set(key, str(former), str(checkpoint.path))
    return config


def check_same_run(checkpoint: Checkpoint, run: RunDescription, slide_ids: Iterable[str] = ()) -> None:
    """Raises UserError if the checkpoint belongs to other settings, data or Prism weights than this run.

    Args:
        slide_ids: Of training and validation, sorted, for an error.
    """
    where = str(checkpoint.path)
    _check_same_settings(from_dict(checkpoint.config, where).to_dict(), run.config, where)
    if checkpoint.data.get("fingerprint") != run.data["fingerprint"]:
        raise UserError(where, "was trained on other data (slides, texts, tile counts or split changed)",
                        "restore the data, or go on from its weights with training.init_from="
                        f"{_short(checkpoint.path)} in another --output_dir")
    _check_same_tiles(checkpoint, run, slide_ids)
    for key in ("sha256", "text_sha256"):
        if checkpoint.prism.get(key) != run.prism.get(key):
            raise _other_weights(checkpoint, key)
    if checkpoint.format_version == 1 and run.config["training"]["accum_freq"] > 1:
        raise UserError(where, "is of an older version, where accum_freq did not enlarge the contrastive batch",
                        "start over in another --output_dir, or resume with that version")
    _warn_of_other_versions(checkpoint.versions, run.versions)


def _check_same_tiles(checkpoint: Checkpoint, run: RunDescription, slide_ids: Iterable[str]) -> None:
    """Raises UserError if files have been replaced by others with as many tiles. Checkpoints of before tiles were
    summed are accepted."""
    before, now = (_tile_sums(description.data) for description in (checkpoint, run))
    changed = [slide_id for slide_id, was, is_now in zip(slide_ids, before, now, strict=False)
               if was != is_now and NOT_SUMMED not in (was, is_now)]
    if changed:
        raise UserError(str(checkpoint.path), f"was trained on other tiles of {len(changed)} of {len(now)} slides, "
                        f"such as {changed[0]}", "restore these files, or go on from its weights with "
                        f"training.init_from={_short(checkpoint.path)} in another --output_dir")


def _tile_sums(data: dict[str, Any]) -> list[int]:
    """Of the slides by their ids; empty where a checkpoint has none that can be read."""
    sums = data.get("tile_sums")
    if not isinstance(sums, str) or not re.fullmatch("[0-9a-f]*", sums):
        return []
    return [int(sums[start:start + 8], 16) for start in range(0, len(sums), 8)]


def _other_weights(checkpoint: Checkpoint, key: str) -> UserError:
    """The error for a run whose weights differ from those that a checkpoint was trained with."""
    if key == "text_sha256" and "text_source" in checkpoint.prism:
        return UserError(str(checkpoint.path), f"was trained with another language model "
                         f"({checkpoint.prism['text_source']})", "give the same one with model.decoder")
    return UserError(str(checkpoint.path), f"was trained with other Prism weights ({checkpoint.prism.get('source')})",
                     "give the same weights with prism.weights")


def _check_same_settings(before: dict[str, Any], now: dict[str, Any], where: str) -> None:
    for section, settings in now.items():
        for key, value in settings.items():
            if not _may_differ(f"{section}.{key}", before[section][key], value):
                raise UserError(where, f"was trained with {section}.{key}={before[section][key]}, this run has {value}",
                                "use the same value, or start over in another --output_dir (training.init_from takes "
                                "the weights along)")


def _may_differ(key: str, before: Any, now: Any) -> bool:
    """Whether a run may be resumed with `now` in place of `before`."""
    if before == now or key in _MAY_CHANGE:
        return True
    return key == "model.decoder" and same_decoder(before, now)


def _warn_of_other_versions(before: dict[str, Any], now: dict[str, Any]) -> None:
    for name, version in before.items():
        if version != now.get(name):
            logger.warning("%s was %s, now %s: the resumed run may differ in the last bits", name, version,
                           now.get(name))

# Names in the running sums of checkpoints of earlier versions.
_RENAMED_SUMS = {"words": "num_tokens", "slides": "num_slides"}


def saved_state(checkpoint: Checkpoint) -> TrainState:
    """The TrainState of a checkpoint. Raises UserError for unknown fields or wrong types."""
    known = asdict(TrainState())
    for name, value in checkpoint.progress.items():
        if name not in known or type(value) is not type(known[name]):
            raise UserError(str(checkpoint.path), f"its progress has an unusable {name}",
                            "use another checkpoint of the run")
    state = TrainState(**checkpoint.progress)
    state.sums = {_RENAMED_SUMS.get(name, name): value for name, value in state.sums.items()}
    return state


def restore(checkpoint: Checkpoint, model: SlideCaptioner, optimizer: torch.optim.Optimizer,
            scaler: torch.amp.GradScaler, world: World = ALONE) -> None:
    """Restore weights, optimizer, loss scaler and random states from a checkpoint.

    Raises:
        UserError: They are not those of this model and optimizer, or of another precision.
    """
    where = str(checkpoint.path)
    model.load_saved_state(checkpoint.model, where)
    if bool(checkpoint.scaler) != scaler.is_enabled():
        before, now = ("fp16", "another") if checkpoint.scaler else ("another", "fp16")
        raise UserError(where, f"the precision changed from or to fp16 (was {before}, now {now})",
                        "resume with the same precision")
    try:
        difference = _other_parameters(checkpoint.optimizer, optimizer)
        if difference:
            raise UserError(where, f"its optimizer was for other parameters ({difference})",
                            "use the config the checkpoint was trained with")
        scaler.load_state_dict(checkpoint.scaler)
        optimizer.load_state_dict(checkpoint.optimizer)
        of_ranks = [checkpoint.random_states, *checkpoint.random_states.get("other_ranks", [])]
        if world.rank < len(of_ranks):  # else there are more ranks than before: this one keeps its seed
            set_random_states(of_ranks[world.rank])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError, OverflowError) as error:
        raise UserError(where, f"its training state is not usable ({type(error).__name__})",
                        "use another checkpoint of the run") from None


def _other_parameters(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> str | None:
    """How the parameters of a saved optimizer state differ from those of `optimizer`, or None.

    torch itself compares their number only and fails at the first step, or trains with another parameter's moments.
    """
    now = optimizer.state_dict()["param_groups"]
    for before, group in zip(saved["param_groups"], now, strict=True):
        if before.get("param_names") != group.get("param_names") or before["params"] != group["params"]:
            return f"{len(before['params'])} in a group, here {len(group['params'])}"
    return _other_shapes(saved["state"], optimizer)


def _other_shapes(saved: dict[int, dict[str, torch.Tensor]], optimizer: torch.optim.Optimizer) -> str | None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, moments in saved.items():
        shape = tuple(parameters[index].shape)
        for name, value in moments.items():
            if value.ndim and tuple(value.shape) != shape:  # `step` has no dimension
                return f"{name} of number {index} is {tuple(value.shape)}, here {shape}"
    return None
