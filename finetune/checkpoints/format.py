"""Checkpoints: written so that a crash never harms a good file, read so that a bad file never runs code.

A `.pth` holds plain types and tensors only. One file is enough to caption a slide and, with the state of the optimizer,
which best_model.pth lacks, to resume training. All files of one save are of the same state; `last_model.pth` is
replaced last and is the commit record.
"""

from __future__ import annotations

import math
import os
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..common.errors import UserError
from ..common.files import put_in_place, replacing, temporary_file, temporary_name

# Format 1: batches_done counts micro-batches, each with its own contrastive loss; resumable if accum_freq is 1.
FORMAT_VERSION = 2
BEST, LAST = "best_model.pth", "last_model.pth"
_FIX = "use another checkpoint of the run"
_SCALARS = (type(None), bool, int, float, str)
_JSON_SECTIONS = ("config", "tokenizer", "prism", "data", "versions", "progress")  # without tensors
_SECTIONS = (*_JSON_SECTIONS, "random_states", "model", "optimizer", "scaler")  # of a file, in this order; each a dict


class DamagedCheckpoint(UserError):
    """The file is truncated, modified or of another kind; an older one of the run may be intact."""


@dataclass(kw_only=True)
class RunDescription:
    """What does not change during a run. It contains no local paths.

    Attributes:
        config: All settings, `Config.to_dict()`.
        tokenizer: `Tokenizer.to_dict()`.
        prism: Source, revision, SHA-256 and architecture of the slide encoder.
        data: Fingerprint, ids of the validation and test slides, numbers of slides.
        versions: Of torch and Python; device, precision, threads and processes.
        init_from: Source, SHA-256 and epoch of the model whose weights the run started from (`training.init_from`).
        template: That the training texts follow, `Template.to_dict()`; None if they follow none.
    """

    config: dict[str, dict[str, Any]]
    tokenizer: dict[str, Any]
    prism: dict[str, Any]
    data: dict[str, Any]
    versions: dict[str, Any]
    init_from: dict[str, Any] | None = None
    template: dict[str, Any] | None = None


@dataclass(kw_only=True)
class Checkpoint(RunDescription):
    """A run after some step: enough to caption slides and, unless it holds weights only, to resume training.

    Attributes:
        progress: The fields of `TrainState`.
        random_states: Of the global generators of rank 0, and `other_ranks`. Empty in best_model.pth and in an exported
            model, as are `optimizer` and `scaler`.
        model: {name: weight} of all trained weights, without Prism's frozen ones.
        optimizer: Its state dict.
        scaler: State dict of the fp16 loss scaler, empty where there is none.
        calibration: Temperature of the confidence, None until calibrated.
        path: The file it was read from.
    """

    progress: dict[str, Any]
    model: dict[str, torch.Tensor]
    random_states: dict[str, Any]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    calibration: dict[str, Any] | None = None
    format_version: int = FORMAT_VERSION
    path: Path | None = None

    @classmethod
    def load(cls, path: str | Path) -> Checkpoint:
        """Read a checkpoint onto the CPU.

        Raises:
            DamagedCheckpoint: The file is truncated, modified or of another kind.
            UserError: It does not exist, has an unknown version, or lacks parts of a run.
        """
        content = read_pth(path)
        _check_sections(content, path)
        sections = {name: content[name] for name in _SECTIONS}
        return cls(**sections, calibration=content.get("calibration"), format_version=content["format_version"],
                   init_from=content.get("init_from"), template=content.get("template"), path=Path(path))

    @property
    def is_resumable(self) -> bool:
        """Whether it holds the state of the training, not only its weights."""
        return bool(self.optimizer)

    def weights_only(self) -> Checkpoint:
        """The same without the state of the training: a third of the size, as AdamW keeps two numbers per weight."""
        return replace(self, random_states={}, optimizer={}, scaler={})

    def save(self, folder: Path, names: Sequence[str]) -> None:
        """Write it into `folder` under each of `names`, see `write_pth`. Raises UserError."""
        content = {name: getattr(self, name) for name in ("format_version", *_SECTIONS)}
        for name in ("calibration", "init_from", "template"):
            if getattr(self, name) is not None:
                content[name] = getattr(self, name)
        write_pth(folder, names, content)


def epoch_name(epoch: int) -> str:
    """Name of the checkpoint that `training.save_every` keeps of an epoch."""
    return f"checkpoint_epoch_{epoch}.pth"


def is_json_like(value: Any, depth: int = 4) -> bool:
    """Whether a value is numbers and text in dicts with text keys and in lists, not nested deeper than a run writes."""
    if not isinstance(value, (dict, list, tuple)):
        return type(value) in _SCALARS
    if depth == 0:
        return False
    if isinstance(value, dict):
        return all(type(key) is str and is_json_like(item, depth - 1) for key, item in value.items())
    return all(is_json_like(item, depth - 1) for item in value)


def wrong_sections(content: dict[str, Any], names: Iterable[str]) -> list[str]:
    """Which sections of a model without tensors are not of the types that a run writes: of `names`, dicts, and of the
    optional ones."""
    wrong = []
    for name in names:
        section = content.get(name)
        if not isinstance(section, dict) or not is_json_like(section):
            wrong.append(name)
    for name, is_right in (("init_from", _is_init_from), ("calibration", _is_calibration), ("template", _is_template)):
        if not is_right(content.get(name)):
            wrong.append(name)
    return wrong


def _is_init_from(value: Any) -> bool:
    """Whether it is what `training.init_from` leaves in a checkpoint, or None."""
    return value is None or (isinstance(value, dict) and is_json_like(value, 1))


def _is_template(value: Any) -> bool:
    """Whether it has the types of `Template.to_dict()`, or is None; what it says is checked by who reads it."""
    if value is None:
        return True
    if not isinstance(value, dict) or value.keys() != {"text", "slots"}:
        return False
    is_named = isinstance(value["text"], str) and isinstance(value["slots"], dict)
    return is_named and all(type(name) is str and _is_slot(slot) for name, slot in value["slots"].items())


def _is_slot(value: Any) -> bool:
    """Whether it is a list of texts, or these as `values`, with lists of texts as `only_if` and a bool `optional`."""
    if not isinstance(value, dict):
        return _are_texts(value)
    only_if = value.get("only_if", {})
    return (value.keys() <= {"values", "only_if", "optional"} and _are_texts(value.get("values"))
            and isinstance(only_if, dict) and type(value.get("optional", False)) is bool
            and all(type(name) is str and _are_texts(values) for name, values in only_if.items()))


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(type(text) is str for text in value)


def _is_calibration(value: Any) -> bool:
    """Whether it is what `training.calibration` leaves in a checkpoint, finite numbers by their names, or None."""
    if value is None:
        return True
    return isinstance(value, dict) and all(type(key) is str and _is_finite_number(item) for key, item in value.items())


def _is_finite_number(value: Any) -> bool:
    return type(value) in (bool, int, float) and math.isfinite(value)


def write_pth(folder: Path, names: Sequence[str], content: dict[str, Any]) -> None:
    """Write `content` once and put it in `folder` under each of `names`, the last name last.

    Raises:
        UserError: The disk is full or the folder cannot be written. Existing files are then intact.
    """
    content = _plain(content)
    try:
        with temporary_file(folder / names[-1]) as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
            if zipfile.ZipFile(file.name).testzip() is not None:
                raise OSError("it does not read back as written")
            for name in names[:-1]:
                _give_name(file.name, folder / name)
            put_in_place(file, folder / names[-1])
        _sync_folder(folder)
    except (OSError, RuntimeError, zipfile.BadZipFile) as error:  # torch reports a full disk as RuntimeError
        raise UserError(folder / names[-1], f"could not be saved ({getattr(error, 'strerror', None) or error})",
                        "free some space or choose another output_dir, then --resume auto") from None


def read_pth(path: str | Path) -> dict[str, Any]:
    """Load what `write_pth` wrote, onto the CPU.

    Raises:
        DamagedCheckpoint: The file is truncated, modified or of another kind.
        UserError: It does not exist, or has an unknown version.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(path, "is a folder" if path.is_dir() else "not found", "give the path of a .pth file")
    try:
        content, damage = _load_plain(path)
    except zipfile.BadZipFile:
        raise DamagedCheckpoint(path, f"truncated or no checkpoint ({path.stat().st_size} bytes)", _FIX) from None
    except Exception as error:  # the unpickler may fail in any way on a hostile file; its text is of no use
        raise DamagedCheckpoint(path, f"not a checkpoint of this project ({type(error).__name__})", _FIX) from None
    if damage:
        raise DamagedCheckpoint(path, f"damaged ({damage})", _FIX)
    check_version(content, path)
    return content


def _load_plain(path: Path) -> tuple[Any, str | None]:
    """(content, None), or (None, what is wrong with the archive or with what it holds)."""
    damage = _damage(path)
    if damage:
        return None, damage
    content = torch.load(path, map_location="cpu", weights_only=True)
    if not _is_plain(content):
        return None, "it holds objects other than plain values and whole tensors"
    return content, None


def check_version(content: Any, path: Path) -> None:
    """Raises UserError unless `content` is of a format version that this code reads."""
    version = None
    if isinstance(content, dict):
        version = content.get("format_version")
    if type(version) is int and version in range(1, FORMAT_VERSION + 1):
        return
    fix = _fix_of_version(version)
    if not isinstance(version, (int, str, type(None))):
        version = type(version).__name__  # not its value: it may be of any size
    raise UserError(path, f"checkpoint format {version!r}, this version reads 1 to {FORMAT_VERSION}", fix)


def _fix_of_version(version: Any) -> str:
    if version is None:
        return "it holds weights only, not a run: give the last_model.pth of a run"
    if isinstance(version, int) and version > FORMAT_VERSION:
        return "it is of a newer version of this project: update (git pull)"
    return "use the version of this project that wrote it"


def _check_sections(content: dict[str, Any], path: str | Path) -> None:
    """Raises UserError unless `content` has all that a run writes, and of its types as far as they are known here."""
    missing = [name for name in _SECTIONS if not isinstance(content.get(name), dict)]
    if missing:
        raise UserError(path, f"has no {', '.join(missing)}", "use a checkpoint that a training run has written")
    wrong = wrong_sections(content, _JSON_SECTIONS)
    if not _are_weights(content["model"]):
        wrong.append("model")
    if wrong:
        raise UserError(path, f"its {', '.join(wrong)} is not what a run writes", _FIX)


def _are_weights(model: dict[Any, Any]) -> bool:
    """Whether these are tensors by their names."""
    return all(type(name) is str and type(weight) is torch.Tensor for name, weight in model.items())


def _damage(path: Path) -> str | None:
    """What is wrong with the archive, or None. torch itself checks no sums: a flipped bit would load silently."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        declared = sum(entry.file_size for entry in entries)
        compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if compressed or declared > path.stat().st_size:
            return "it declares more than it holds"
        name = archive.testzip()
    return f"{name} has a wrong checksum" if name else None


def _is_plain(value: Any, seen: set[int] | None = None) -> bool:
    """Whether a loaded value is what `_plain` lets through, each tensor within its storage: a file of 1 kB can declare
    a tensor of 10^9 overlapping numbers, or lists that contain themselves."""
    if type(value) is torch.Tensor:
        return _is_whole(value)
    if type(value) in (dict, OrderedDict):
        items = [*value, *value.values()]
    elif type(value) in (list, tuple):
        items = value
    else:
        return type(value) in _SCALARS
    seen = set() if seen is None else seen
    if id(value) in seen:
        return True
    seen.add(id(value))
    return all(_is_plain(item, seen) for item in items)


def _is_whole(tensor: torch.Tensor) -> bool:
    if tensor.device.type != "cpu" or tensor.layout is not torch.strided:
        return False
    return tensor.nbytes <= tensor.untyped_storage().nbytes()


def _plain(value: Any, where: str = "checkpoint") -> Any:
    """`value` as it is saved. Asserts that it will load with weights_only=True, unlike numpy scalars or paths."""
    if type(value) in (dict, OrderedDict):
        return {_plain(key, where): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(item, where) for item in value)
    assert type(value) in (*_SCALARS, torch.Tensor), f"{where} holds a {type(value)}"
    if type(value) is torch.Tensor and value.untyped_storage().nbytes() != value.nbytes:
        return value.clone()  # torch.save would write the whole storage behind a view
    return value


def _give_name(source: str, target: Path) -> None:
    """Give a finished file a second name: a hard link, or a copy if the file system has none."""
    link = temporary_name(target)
    try:
        os.link(source, link)
    except OSError:
        with open(source, "rb") as file, replacing(target) as copy:
            shutil.copyfileobj(file, copy)
        return
    try:
        os.replace(link, target)
    finally:
        link.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make the new names survive a crash of the machine."""
    if os.name == "posix":  # elsewhere a folder cannot be opened, nor needs it
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
