"""Checkpoints: written so that a crash never harms a good file, read so that a bad file never runs code.

A `.pth` holds plain types and tensors only. One file is enough to go on training or to caption a slide. All files of
one save hold the same state; `last_model.pth` is replaced last and is the commit record.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..common.errors import UserError

FORMAT_VERSION = 2  # 1: batches_done counts micro-batches, which share no contrastive loss; goes on if accum_freq is 1
BEST, LAST = "best_model.pth", "last_model.pth"
_PLAIN = (type(None), bool, int, float, str)
_SECTIONS = ("config", "tokenizer", "prism", "data", "versions", "progress", "random_states", "model", "optimizer",
             "scaler")  # of a run's checkpoint; each a dict
_WORDS = _SECTIONS[:6]  # hold no tensor


class DamagedCheckpoint(UserError):
    """The file was cut, changed or is of another kind; an older one of the run may be good."""


def epoch_name(epoch: int) -> str:
    return f"checkpoint_epoch_{epoch}.pth"


def is_json_like(value: Any, depth: int = 4) -> bool:
    """Whether a value is numbers and text in dicts with text keys and in lists, not nested deeper than a run writes."""
    if isinstance(value, (dict, list, tuple)) and depth == 0:
        return False
    if isinstance(value, dict):
        return all(type(k) is str and is_json_like(v, depth - 1) for k, v in value.items())
    return all(is_json_like(v, depth - 1) for v in value) if isinstance(value, (list, tuple)) else type(value) in _PLAIN


def save_checkpoint(folder: Path, names: Sequence[str], content: dict[str, Any]) -> None:
    """Write `content` once and put it in `folder` under each of `names`, the last name last.

    Raises UserError if the disk is full or the folder cannot be written; the files that were there are then unharmed.
    """
    content = _plain(content)
    temporary = folder / (names[-1] + ".tmp")
    try:
        temporary.unlink(missing_ok=True)
        with open(temporary, "xb") as file:  # a new file: a link of this name in the folder is not followed
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
        damage = _damage(path)
        content = None if damage else torch.load(path, map_location="cpu", weights_only=True)
        if not damage and not _is_plain(content):
            damage = "it holds other things than plain values and whole tensors"
    except zipfile.BadZipFile:
        raise DamagedCheckpoint(path, f"truncated or no checkpoint ({path.stat().st_size} bytes)", fix) from None
    except Exception as error:  # the unpickler may fail in any way on a hostile file; none of its text is of use
        raise DamagedCheckpoint(path, f"not a checkpoint of this project ({type(error).__name__})", fix) from None
    if damage:
        raise DamagedCheckpoint(path, f"damaged ({damage})", fix)
    check_version(content, path)
    return content


def load_run(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint that holds all of a run. Raises UserError."""
    content = load_checkpoint(path)
    if wrong := [s for s in _SECTIONS if not isinstance(content.get(s), dict)]:
        raise UserError(path, f"has no {', '.join(wrong)}", "use a checkpoint that a training run has written")
    wrong = [s for s in _WORDS if not is_json_like(content[s])]
    if not all(type(k) is str and type(v) is torch.Tensor for k, v in content["model"].items()):
        wrong.append("model")
    if wrong:
        raise UserError(path, f"its {', '.join(wrong)} is not what a run writes", "use another checkpoint of the run")
    return content


def check_version(content: Any, path: Path) -> None:
    """Raises UserError unless `content` is of a format version that this code reads."""
    version = content.get("format_version") if isinstance(content, dict) else None
    if type(version) is int and 1 <= version <= FORMAT_VERSION:
        return
    fix = "use the version of this project that wrote it"
    if isinstance(version, int) and version > FORMAT_VERSION:
        fix = "it is of a newer version of this project: update (git pull)"
    elif version is None:
        fix = "it holds weights only, not a run: give the last_model.pth of a run"
    if not isinstance(version, (int, str, type(None))):
        version = type(version).__name__
    raise UserError(path, f"checkpoint format {version!r}, this version reads 1 to {FORMAT_VERSION}", fix)


def _damage(path: Path) -> str | None:
    """What is wrong with the archive, or None. torch itself checks no sums: a flipped bit would load silently."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(e.compress_type != zipfile.ZIP_STORED for e in entries) or \
                sum(e.file_size for e in entries) > path.stat().st_size:
            return "it declares more than it holds"
        name = archive.testzip()
    return f"{name} has a wrong checksum" if name else None


def _is_plain(value: Any, seen: set[int] | None = None) -> bool:
    """Whether a loaded value is what `_plain` lets through, each tensor within its storage: a file of 1 kB can declare
    a tensor of 10^9 numbers that lie on top of each other, and lists that hold themselves."""
    seen = set() if seen is None else seen
    if type(value) is torch.Tensor:
        return value.device.type == "cpu" and value.layout is torch.strided and \
            value.nbytes <= value.untyped_storage().nbytes()
    if type(value) not in (dict, OrderedDict, list, tuple):
        return type(value) in _PLAIN
    if id(value) in seen:
        return True
    seen.add(id(value))
    items = [*value, *value.values()] if isinstance(value, dict) else value
    return all(_is_plain(item, seen) for item in items)


def _plain(value: Any, where: str = "checkpoint") -> Any:
    """`value` as it is saved. Asserts that it will load with weights_only=True: numpy scalars, paths would not."""
    if type(value) in (dict, OrderedDict):
        return {_plain(key, where): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(item, where) for item in value)
    assert type(value) in (*_PLAIN, torch.Tensor), f"{where} holds a {type(value)}"
    if type(value) is torch.Tensor and value.untyped_storage().nbytes() != value.nbytes:
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
