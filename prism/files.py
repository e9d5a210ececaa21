"""Files of weights on disk: find them, read them, refuse what is not one. Nothing here runs code from a file."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .config import BioGptConfig, PerceiverConfig, PrismConfig
from .errors import PrismWeightsError

# What a model folder may hold, best first: safetensors cannot carry code and is read tensor by tensor.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
TORCH_SUFFIXES = (".bin", ".pt", ".pth")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
ENCODER = "image_resampler."

_log = logging.getLogger(__name__)


def find_weights(path: Path) -> Path:
    """The file of weights (or the index of its shards) that `path`, a folder or a file, means.

    Raises:
        PrismWeightsError: A folder without weights, or a file of another kind.
    """
    if path.is_dir():
        found = [path / name for name in WEIGHT_FILES if (path / name).is_file()]
        if not found:
            raise PrismWeightsError(f"{path}: holds none of {', '.join(WEIGHT_FILES)}")
        return found[0]
    if path.suffix.lower() not in SUFFIXES:
        raise PrismWeightsError(f"{path}: not a file of weights; need a folder or a file ending in {SUFFIXES}")
    return path


def read_config(folder: Path) -> PerceiverConfig:
    """Architecture from `config.json`; the published one where there is no file or no `perceiver_config` in it.

    Unknown keys are ignored: transformers writes its own defaults into such files.

    Raises:
        PrismWeightsError: The file is not JSON, or asks for an architecture we do not have.
    """
    return _section(folder / "config.json", "perceiver_config", PerceiverConfig)


def read_whole_config(folder: Path) -> PrismConfig:
    """The same for all of Prism. Raises PrismWeightsError as `read_config`."""
    path = folder / "config.json"
    given = _read_json(path) if path.is_file() else {}
    parts = {"perceiver_config": read_config(folder), "biogpt_config": _section(path, "biogpt_config", BioGptConfig)}
    try:
        widths = {key: given[key] for key in ("biogpt_context_dim", "dim_latents") if key in given}
        return PrismConfig(**parts, **widths)
    except ValueError as error:
        raise PrismWeightsError(f"{path}: {error}") from None


def _section(path: Path, name: str, kind: type[Any]) -> Any:
    """A config of `kind` from the mapping `name` in a config.json; its defaults where there is none."""
    if not path.is_file():
        return kind()
    try:
        given = _read_json(path).get(name) or {}
        return kind(**{key: value for key, value in given.items() if key in kind.__dataclass_fields__})
    except (ValueError, AttributeError) as error:
        reason = error if isinstance(error, ValueError) else f"{name} is not a mapping"
        raise PrismWeightsError(f"{path}: {str(reason).removeprefix(f'{path}: ')}") from None


def read_weights(path: Path, part: str) -> tuple[dict[str, Tensor], int]:
    """Tensors whose names begin with `part` (ENCODER, or "" for all) in a file or in the shards of an index, and how
    many keys it holds in all.

    Wrappers' prefixes (`module.` of DataParallel, `_orig_mod.` of torch.compile) are taken off.

    Raises:
        PrismWeightsError: Not a readable file of weights.
    """
    if path.name.endswith(".index.json"):
        parts = [read_weights(path.parent / name, part) for name in shard_names(path)]
        return {key: tensor for tensors, _ in parts for key, tensor in tensors.items()}, sum(n for _, n in parts)
    _reject_placeholders(path)
    read = _read_torch if path.suffix.lower() in TORCH_SUFFIXES else _read_safetensors
    return read(path, part)


def shard_names(index: Path) -> list[str]:
    """File names of the shards an `*.index.json` lists, all beside it."""
    try:
        names = sorted(set(_read_json(index)["weight_map"].values()))
    except (KeyError, TypeError, AttributeError):
        raise PrismWeightsError(f"{index}: not an index of shards (no weight_map)") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(SUFFIXES):
            raise PrismWeightsError(f"{index}: {name!r} is not the name of a shard beside it")
    return names


def _keys_of(part: str, keys: list[str], path: Path) -> dict[str, str]:
    """Published name -> name in the file, for the tensors of a part."""
    plain = {re.sub(r"^(module\.)+", "", key.replace("_orig_mod.", "")): key for key in keys}
    if set(plain) != set(keys):
        _log.warning("%s: prefix module. or _orig_mod. taken off the keys", path)
    return {name: key for name, key in plain.items() if name.startswith(part)}


def _reject_placeholders(path: Path) -> None:
    """A clear message for what failed downloads leave in place of weights; the readers' own would puzzle."""
    try:
        with path.open("rb") as file:
            head = file.read(64).lstrip()
    except OSError as error:
        raise PrismWeightsError(f"{path}: cannot be read ({error.strerror})") from None
    if not head:
        raise PrismWeightsError(f"{path}: empty file; download it again")
    if head.startswith(b"version https://git-lfs"):
        raise PrismWeightsError(f"{path}: a Git LFS pointer, not the weights; run `git lfs pull` or download the file")
    if head.startswith(b"<"):
        raise PrismWeightsError(f"{path}: a web page, not the weights; log in and download the file again")


def _read_safetensors(path: Path, part: str) -> tuple[dict[str, Tensor], int]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            keys = list(file.keys())
            return {name: file.get_tensor(key) for name, key in _keys_of(part, keys, path).items()}, len(keys)
    except (SafetensorError, OSError):
        raise PrismWeightsError(f"{path}: not a readable safetensors file (cut off?); download it again") from None


def _read_torch(path: Path, part: str) -> tuple[dict[str, Tensor], int]:
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a damaged pickle can raise anything; torch's own text would advise to run what is in the file
        raise PrismWeightsError(
            f"{path}: not a readable checkpoint of tensors (cut off, or it holds other Python objects, "
            "which are never loaded); download it again or use model.safetensors"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise PrismWeightsError(f"{path}: holds a {type(state).__name__}; need a mapping of names to tensors only")
    return {name: state[key] for name, key in _keys_of(part, list(state), path).items()}, len(state)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PrismWeightsError(f"{path}: not readable JSON ({error})") from None
