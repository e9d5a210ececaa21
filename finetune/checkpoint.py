"""Checkpoints: written so that a crash never harms a good file, read so that a bad file never runs code.

A `.pth` holds plain types and tensors only. One file is enough to go on training or to caption a slide. All files of
one save hold the same state; `last_model.pth` is replaced last and is the commit record.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .errors import UserError

if TYPE_CHECKING:
    from .loop import TrainState
    from .model import SlideCaptioner

FORMAT_VERSION = 1
BEST, LAST = "best_model.pth", "last_model.pth"
_PLAIN = (type(None), bool, int, float, str)


def epoch_name(epoch: int) -> str:
    return f"checkpoint_epoch_{epoch}.pth"


def save_checkpoint(folder: Path, names: Sequence[str], content: dict[str, Any]) -> None:
    """Write `content` once and put it in `folder` under each of `names`, the last name last.

    Raises UserError if the disk is full or the folder cannot be written; the files that were there are then unharmed.
    """
    content = _plain(content)
    temporary = folder / (names[-1] + ".tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        if zipfile.ZipFile(temporary).testzip() is not None:
            raise OSError("it does not read back as written")
        for name in names[:-1]:
            _same_file(temporary, folder / (name + ".tmp"))
            os.replace(folder / (name + ".tmp"), folder / name)
        os.replace(temporary, folder / names[-1])
        _sync_folder(folder)
    except (OSError, RuntimeError, zipfile.BadZipFile) as error:  # torch reports a full disk as RuntimeError
        for name in names:
            with contextlib.suppress(OSError):  # the folder may be gone, or be a file
                (folder / (name + ".tmp")).unlink()
        raise UserError(folder / names[-1], f"could not be saved ({getattr(error, 'strerror', None) or error})",
                        "free some space or choose another output_dir, then --resume auto") from None


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU. Raises UserError for anything but a whole file of a known version."""
    path = Path(path)
    fix = "use another checkpoint of the run"
    if not path.is_file():
        raise UserError(path, "is a folder" if path.is_dir() else "not found", "give the path of a .pth file")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch itself does not check the sums: a flipped bit would load silently
        content = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except zipfile.BadZipFile:
        raise UserError(path, f"truncated or no checkpoint ({path.stat().st_size} bytes)", fix) from None
    except Exception as error:  # the unpickler may fail in any way on a hostile file; none of its text is of use
        raise UserError(path, f"not a checkpoint of this project ({type(error).__name__})", fix) from None
    if damaged:
        raise UserError(path, f"damaged ({damaged} has a wrong checksum)", fix)
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(path, f"checkpoint format {version!r}, this version reads {FORMAT_VERSION}",
                        "use the version of this project that wrote it")
    return content


def find_resume(resume: str | None, folder: Path) -> Path | None:
    """The checkpoint to go on from: a path, or for `auto` the folder's last_model.pth if there is one.

    Raises UserError if the folder holds a run and nothing was said of resuming it, or the path is in another folder.
    """
    if resume == "auto":
        return folder / LAST if (folder / LAST).exists() else None
    if resume is not None:
        path = Path(resume).expanduser().absolute()
        if path.is_file() and path.parent.resolve() != folder.resolve():
            raise UserError(path, f"is not in the run folder {folder}", f"add --output_dir {path.parent}")
        return path
    if folder.is_dir() and (any(folder.glob("*.pth")) or (folder / "metrics.jsonl").exists()):
        raise UserError(folder, "holds another run", "go on with --resume auto, or choose another --output_dir")
    return None


def random_states() -> dict[str, Any]:
    """The states of all global random generators, as plain types and tensors."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(internal), gauss],
        "numpy": [name, [int(k) for k in keys], int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_states(states: dict[str, Any]) -> None:
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])


def _plain(value: Any, where: str = "checkpoint") -> Any:
    """`value` as it is saved. Asserts that it will load with weights_only=True: numpy scalars, paths would not."""
    if type(value) in (dict, OrderedDict):
        return {_plain(key, where): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(item, where) for item in value)
    assert type(value) in (*_PLAIN, torch.Tensor), f"{where} holds a {type(value)}"
    if type(value) is torch.Tensor and value.untyped_storage().nbytes() > value.nbytes:
        return value.clone()  # torch.save would write the whole storage behind a view
    return value


def _same_file(source: Path, target: Path) -> None:
    """A second name for a finished file: a hard link, or a copy where the file system has none."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # elsewhere a folder cannot be opened, nor needs it
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class Saver:
    """Saves and restores one run: everything that decides how it goes on, in one dict of plain types and tensors."""

    def __init__(self, folder: Path, save_every: int, model: SlideCaptioner, optimizer: torch.optim.Optimizer,
                 scaler: torch.amp.GradScaler, about: dict[str, Any]) -> None:
        """about: what does not change during the run: config, tokenizer, prism, data, versions."""
        self.folder, self.save_every, self.about = folder, save_every, about
        self.model, self.optimizer, self.scaler = model, optimizer, scaler

    def save(self, state: TrainState, is_best: bool) -> None:
        """Write last_model.pth, and before it best_model.pth and checkpoint_epoch_N.pth when they are due."""
        at_epoch_end = state.batches_done == 0
        periodic = at_epoch_end and self.save_every and state.epoch % self.save_every == 0
        names = [BEST] * is_best + [epoch_name(state.epoch)] * bool(periodic) + [LAST]
        save_checkpoint(self.folder, names, {
            "format_version": FORMAT_VERSION, **self.about, "progress": asdict(state), "random_states": random_states(),
            "model": self.model.saved_state(), "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict()})

    def restore(self, content: dict[str, Any], where: Path) -> dict[str, Any]:
        """Put a checkpoint's tensors and random states back; returns its progress. Raises UserError if unfit."""
        self.model.load_saved_state(content["model"], str(where))
        if bool(content["scaler"]) != self.scaler.is_enabled():
            raise UserError(where, "the precision changed from or to fp16", "resume with the same precision")
        self.scaler.load_state_dict(content["scaler"])
        self.optimizer.load_state_dict(content["optimizer"])
        set_random_states(content["random_states"])
        return content["progress"]
