"""A checkpoint as a Hugging Face folder: weights in safetensors, config, tokenizer and a model card.

It holds what trained, nothing of the optimizer, and no slide ids or paths; `config.yaml` is there to train again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..common.errors import UserError
from ..config.schema import PrismConfig, from_dict
from ..config.yaml_file import dump_yaml
from .format import FORMAT_VERSION, Checkpoint, check_version, is_json_like

_WEIGHTS, _CONFIG, _TOKENIZER, _CARD = "model.safetensors", "config.json", "tokenizer.json", "README.md"
_SECTIONS = ("config", "prism", "data", "versions", "progress")
_FIX = "export the checkpoint again"
_MOST_JSON = 1 << 26  # bytes; a vocabulary of 100 000 words has a tenth of it


def write_folder(checkpoint: Path, folder: Path) -> None:
    """Write the run in `checkpoint` to `folder`, all files or none. Raises UserError."""
    content = Checkpoint.load(checkpoint)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(folder, "is there already", "choose another --output")
    if not _is_public(content.prism.get("source")):  # a path on this disk says nothing elsewhere
        content.config["prism"]["weights"] = content.prism["source"] = PrismConfig.weights
    content.data = {key: value for key, value in content.data.items() if key in ("fingerprint", "slides")}
    weights, tied = _untied(content.model)
    temporary = folder.with_name(folder.name + ".tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file(weights, temporary / _WEIGHTS, metadata={"format": "pt"})
        _write_json(temporary / _CONFIG, {"model_type": "prism-coca", "format_version": FORMAT_VERSION,
                                          **{key: getattr(content, key) for key in _SECTIONS}, "tied_weights": tied,
                                          "calibration": content.calibration or {}})
        _write_json(temporary / _TOKENIZER, content.tokenizer)
        # a checkpoint has "" for each path of the disk: to train again they are what they are by default
        again = {section: {key: value for key, value in keys.items() if value != ""}
                 for section, keys in content.config.items()}
        (temporary / "config.yaml").write_text(dump_yaml(from_dict(again, str(checkpoint))), encoding="utf-8")
        (temporary / _CARD).write_text(_card(content, folder.name, _scores(checkpoint, content)), encoding="utf-8")
        if folder.exists():
            folder.rmdir()  # it is empty; Windows replaces no folder
        os.replace(temporary, folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(folder, f"cannot be written ({getattr(error, 'strerror', None) or error})",
                        "choose another --output") from None


def read_folder(folder: Path) -> Checkpoint:
    """An exported checkpoint: one without the state of its training. Raises UserError for anything else."""
    content = _read_json(folder / _CONFIG) | {"tokenizer": _read_json(folder / _TOKENIZER)}
    check_version(content, folder)
    if wrong := [key for key in (*_SECTIONS, "tokenizer", "tied_weights")
                 if not isinstance(content.get(key), dict) or not is_json_like(content[key])]:
        raise UserError(folder / _CONFIG, f"its {', '.join(wrong)} is not what an export writes", _FIX)
    try:
        weights = load_file(folder / _WEIGHTS)
        model = weights | {alias: weights[name] for alias, name in content["tied_weights"].items()}
    except (OSError, SafetensorError, KeyError, TypeError):
        raise UserError(folder / _WEIGHTS, "not a readable safetensors file of this model", _FIX) from None
    return Checkpoint(**{key: content[key] for key in (*_SECTIONS, "tokenizer", "format_version")}, model=model,
                      random_states={}, optimizer={}, scaler={}, calibration=content.get("calibration"), path=folder)


def _untied(state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Each tensor once, and {other name of it: its name}: safetensors knows no shared ones."""
    first: dict[tuple[int, torch.Size], str] = {}
    tied = {name: one for name, tensor in state.items()
            if (one := first.setdefault((tensor.data_ptr(), tensor.shape), name)) != name and tensor.numel()}
    return {name: tensor.contiguous() for name, tensor in state.items() if name not in tied}, tied


def _is_public(source: Any) -> bool:
    """Whether it is `random`, `random-tiny` or a hub id: nothing of this disk."""
    hub_id = isinstance(source, str) and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source) and not Path(source).exists()
    return bool(hub_id) or source in ("random", "random-tiny")


def _scores(checkpoint: Path, content: Checkpoint) -> dict[str, Any]:
    """The line of the checkpoint's epoch in the run's `metrics.jsonl`; of the lowest loss alone where it has gone."""
    progress, rows = content.progress, []
    try:
        lines = checkpoint.with_name("metrics.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [row for line in lines if isinstance(row := json.loads(line), dict)]
    except (OSError, ValueError):
        pass
    return next((row for row in reversed(rows) if row.get("epoch") == progress.get("epoch")),
                {"epoch": progress.get("epoch"), "best_val_loss": progress.get("best_loss")})


def _card(content: Checkpoint, name: str, scores: dict[str, Any]) -> str:
    """The model card (https://huggingface.co/docs/hub/model-cards), for people first."""
    config, prism, slides = content.config, content.prism, content.data.get("slides") or {}
    model = config["model"]
    derived = "prism" in (model.get("decoder"), model.get("init")) or not config["prism"]["freeze"]
    parameters = sum(t.numel() for t in content.model.values()) / 1e6
    source = prism.get("source")
    holds = ("**Weights derived from Prism's are in this folder.** Prism's licence, CC BY-NC-ND 4.0, does not allow to "
             "share what is derived from its weights: keep the folder to yourself." if derived else
             "No weights of Prism are in this folder; it needs them to run, under their own licence (CC BY-NC-ND 4.0: "
             "research, not commercial use). What you may do with the weights here depends on your training data too.")
    rows = "\n".join(f"| {key} | {value:.4g} |" for key, value in scores.items()
                     if (key == "epoch" or "loss" in key or key.startswith("val_")) and isinstance(value, (int, float)))
    words = " The words of the training texts are, as the vocabulary." if content.tokenizer.get("type") in (
        "vocab", "bpe") else ""
    base = f"base_model: {source}\n" if source and "/" in source else ""
    return f"""---
license: other
license_name: see-the-licence-section
pipeline_tag: image-to-text
tags: [histopathology, whole-slide-image, captioning]
{base}---
# {name}

Writes a caption for a whole-slide image from the Virchow embeddings of its tiles, and scores texts for it. Trained with
prism-coca on top of Prism (https://arxiv.org/abs/2405.10254). For research; not a medical device.

## Use
```
python inference.py --checkpoint {name} --prism {source} --embeddings_file SLIDE.h5 --text "..." "..."
```
The weights of Prism must be those it was trained with (SHA-256 of the slide encoder {prism.get("sha256")}).

## Data
{slides.get("training", "an unknown number of")} slides to train, {slides.get("validation", "an unknown number")} to \
validate; their ids and texts are not in this folder.{words}
Fingerprint of ids, texts, tile counts and split:
`{content.data.get("fingerprint")}`.

## Scores
After the epoch of this checkpoint; `val_`: on the validation slides, the others on the training slides:

| score | value |
|---|---|
{rows}

## Train again
```
python train_with_config.py --config config.yaml --set data.embeddings_dir=H5_FOLDER data.labels_file=LABELS.json
```
{parameters:.1f} M trained numbers; {", ".join(f"{key} {value}" for key, value in content.versions.items())}.

## Licence
{holds}
"""


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, ensure_ascii=False, indent=1), encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if (size := path.stat().st_size) > _MOST_JSON:
            raise UserError(path, f"{size / 1e6:.0f} MB is no config", _FIX)
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(path, f"cannot be read ({error.strerror})", "give a folder of finetune.export") from None
    except (ValueError, RecursionError):
        raise UserError(path, "not valid JSON", _FIX) from None
    if not isinstance(data, dict):
        raise UserError(path, f"holds a {type(data).__name__}", _FIX)
    return data
