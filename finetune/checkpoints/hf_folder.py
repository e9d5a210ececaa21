"""A checkpoint as a Hugging Face folder: weights in safetensors, config, tokenizer and a model card.

It holds the trained weights but no optimizer state, slide ids or paths; `config.yaml` serves to train again.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..common.caveats import is_random
from ..common.errors import UserError
from ..common.files import read_regular, temporary_folder
from ..common.visible import json_text
from ..config.schema import Config, PrismConfig, from_dict
from ..config.yaml_file import dump_yaml
from .format import BEST, FORMAT_VERSION, Checkpoint, check_version, wrong_sections
from .model_card import model_card

WEIGHTS = "model.safetensors"
_CONFIG, _TOKENIZER, _CARD = "config.json", "tokenizer.json", "README.md"
_SECTIONS = ("config", "prism", "data", "versions", "progress")
_FIX = "export the checkpoint again"
_MAX_JSON = 1 << 26  # bytes; a vocabulary of 100 000 tokens has a tenth of it


def write_folder(checkpoint: Path, folder: Path) -> None:
    """Write the run in `checkpoint` to `folder`, all files or none. Raises UserError."""
    content = Checkpoint.load(model_path(checkpoint))
    _require_empty(folder)
    _remove_private(content)
    try:
        with temporary_folder(folder) as temporary:
            _write_files(content, temporary, folder.name)
            if folder.exists():
                folder.rmdir()  # it is empty; Windows cannot replace a folder
            os.replace(temporary, folder)
    except (OSError, SafetensorError) as error:
        raise UserError(folder, f"cannot be written ({getattr(error, 'strerror', None) or error})",
                        "choose another --output") from None


def _require_empty(folder: Path) -> None:
    """Raises UserError for a file or a folder that is not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(folder, "already exists", "choose another --output")


def _remove_private(content: Checkpoint) -> None:
    """Remove slide ids and local paths."""
    if not _is_public(content.prism.get("source")):
        content.config["prism"]["weights"] = content.prism["source"] = PrismConfig.weights
    source = content.prism.get("text_source")
    if source is not None and not _is_public(str(source).partition("@")[0]):
        name = re.split(r"[/\\]", str(source).rstrip("/\\"))[-1]
        content.config["model"]["decoder"], content.prism["text_source"] = f"hf:{name}", name
    content.data = {key: value for key, value in content.data.items() if key in ("fingerprint", "slides", "texts")}


def _write_files(content: Checkpoint, folder: Path, name: str) -> None:
    weights, tied = _untied(content.model)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    sections = {key: getattr(content, key) for key in _SECTIONS}
    _write_json(folder / _CONFIG, {"model_type": "prism-coca", "format_version": FORMAT_VERSION, **sections,
                                   "tied_weights": tied, "calibration": content.calibration or {},
                                   "init_from": content.init_from, "template": content.template})
    _write_json(folder / _TOKENIZER, content.tokenizer)
    (folder / "config.yaml").write_text(dump_yaml(_training_config(content)), encoding="utf-8")
    (folder / _CARD).write_text(model_card(content, name), encoding="utf-8")


def _training_config(content: Checkpoint) -> Config:
    """The config to train again with: a checkpoint has "" for each local path, which means the default."""
    sections: dict[str, dict[str, Any]] = {}
    for section, values in content.config.items():
        sections[section] = {key: value for key, value in values.items() if value != ""}
    return from_dict(sections, str(content.path))


def model_path(path: Path) -> Path:
    """A `.pth` or an exported folder as it is; of the folder of a run its best_model.pth. Raises UserError."""
    if not path.is_dir() or (path / _CONFIG).exists():
        return path
    if (path / BEST).is_file():
        return path / BEST
    others = sorted(file.name for file in path.glob("*.pth"))
    fix = f"give {path / others[-1]}" if others else "give a .pth of a run, its folder, or a folder of finetune.export"
    raise UserError(path, f"is neither an exported model nor a run with a {BEST}", fix)


def read_model(path: Path) -> Checkpoint:
    """A `.pth` of a run or an exported folder. Raises UserError."""
    return read_folder(path) if path.is_dir() else Checkpoint.load(path)


def read_folder(folder: Path) -> Checkpoint:
    """An exported checkpoint: one without the state of its training. Raises UserError for anything else."""
    content = _read_content(folder)
    try:
        model = load_file(folder / WEIGHTS)
        model |= {alias: model[name] for alias, name in content["tied_weights"].items()}
    except (OSError, SafetensorError, KeyError, TypeError):
        raise UserError(folder / WEIGHTS, "not a readable safetensors file of this model", _FIX) from None
    return Checkpoint(**{key: content[key] for key in (*_SECTIONS, "tokenizer", "format_version")}, model=model,
                      random_states={}, optimizer={}, scaler={}, calibration=content.get("calibration"),
                      init_from=content.get("init_from"), template=content.get("template"), path=folder)


def _read_content(folder: Path) -> dict[str, Any]:
    """Everything but the weights, with types checked."""
    content = _read_json(folder / _CONFIG) | {"tokenizer": _read_json(folder / _TOKENIZER)}
    check_version(content, folder)
    wrong = wrong_sections(content, (*_SECTIONS, "tokenizer", "tied_weights"))
    if wrong:
        raise UserError(folder / _CONFIG, f"its {', '.join(wrong)} is not what an export writes", _FIX)
    return content


def _untied(state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Each tensor once, and {alias: the name it is stored under}: safetensors refuses shared memory."""
    names: dict[tuple[int, torch.Size], str] = {}
    weights, tied = {}, {}
    for name, tensor in state.items():
        first_name = names.setdefault((tensor.data_ptr(), tensor.shape), name)
        if first_name != name and tensor.numel():  # empty tensors all have the address 0
            tied[name] = first_name
        else:
            weights[name] = tensor.contiguous()
    return weights, tied


def _is_public(source: Any) -> bool:
    """Whether it is `random`, `random-tiny`, a hub id or a name on ModelScope, not a local path."""
    if not isinstance(source, str):
        return False
    looks_like_hub_id = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source.removeprefix("ms:")) is not None
    return is_random(source) or (looks_like_hub_id and not Path(source).exists())


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json_text(data, indent=1), encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        size = path.stat().st_size
        if size > _MAX_JSON:
            raise UserError(path, f"{size / 1e6:.0f} MB is not a config", _FIX)
        data = json.loads(read_regular(path))
    except OSError as error:
        raise UserError(path, f"cannot be read ({error.strerror})", "give a folder of finetune.export") from None
    except (ValueError, RecursionError):
        raise UserError(path, "not valid JSON", _FIX) from None
    if not isinstance(data, dict):
        raise UserError(path, f"holds a {type(data).__name__}", _FIX)
    return data
