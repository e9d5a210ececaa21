"""nearest.pt: the embeddings of the training slides and a linear probe, to look up their texts; and the calibration of
a checkpoint. N training slides, D image dimension, W tokens of the probe."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from ..common.errors import UserError
from .format import Checkpoint, read_pth

NEAREST = "nearest.pt"
# Tensors of a linear probe and their axes
_PROBE = {"mean": "D", "std": "D", "weight": "DW", "frequency": "W", "strength": "W", "noise": "W", "token_ids": "W"}


def temperature_of(checkpoint: Checkpoint) -> float | None:
    """The temperature in a checkpoint, or None if it has not been calibrated."""
    calibration = checkpoint.calibration
    if not isinstance(calibration, dict) or not calibration.get("words"):  # "words": tokens it was fitted on
        return None
    temperature = calibration.get("temperature")
    is_usable = isinstance(temperature, float) and math.isfinite(temperature) and temperature > 0
    return temperature if is_usable else None


def read_nearest(path: Path, checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The nearest.pt beside the file `path` of a checkpoint, None if there is none or it is of other training data.

    Returns:
        `ids`, `texts` of each, and `embeddings` (N, dim_latents), None where the contrastive loss was off. Since
        issue 13 also `slide_embeddings` (N, D), None if they were too many, and `probe`, the tensors of a linear probe,
        None if it had nothing to predict.

    Raises:
        UserError: The file is damaged.
    """
    path = path.with_name(NEAREST)
    if not path.is_file():
        return None
    index = read_pth(path)
    if not _is_index(index):
        raise UserError(path, "is not an index of training slides", "delete it, then --resume auto writes it again")
    return index if index.get("fingerprint") == checkpoint.data.get("fingerprint") else None


def _is_index(index: dict[str, Any]) -> bool:
    """Whether ids, texts and embeddings are of as many slides, and of the types that training writes."""
    ids, texts, embeddings = index.get("ids"), index.get("texts"), index.get("embeddings")
    if not isinstance(ids, list) or not isinstance(texts, list) or len(ids) != len(texts) or not ids:
        return False
    if not all(_are_texts(of_slide) for of_slide in texts):
        return False
    if not all(_are_vectors(vectors, len(ids)) for vectors in (embeddings, index.get("slide_embeddings"))):
        return False
    return index.get("probe") is None or _is_probe(index["probe"])


def _are_vectors(value: Any, count: int) -> bool:
    """Whether these are finite vectors of so many slides, or None."""
    if value is None:
        return True
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.ndim != 2 or len(value) != count:
        return False
    return bool(torch.isfinite(value).all())


def _is_probe(probe: Any) -> bool:
    """Whether it holds the tensors of `models.linear_probe.LinearProbe`, of matching shapes, finite."""
    if not isinstance(probe, dict) or not all(isinstance(probe.get(name), torch.Tensor) for name in _PROBE):
        return False
    sizes: dict[str, int] = {}
    for name, axes in _PROBE.items():
        tensor = probe[name]
        dtype = torch.int64 if name == "token_ids" else torch.float32
        if tensor.dtype != dtype or tensor.ndim != len(axes) or not torch.isfinite(tensor).all():
            return False
        for axis, size in zip(axes, tensor.shape, strict=True):
            if sizes.setdefault(axis, size) != size:
                return False
    positive = all(bool((probe[name] > 0).all()) for name in ("std", "noise", "frequency"))
    return positive and bool((probe["frequency"] < 1).all())


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(text, str) for text in value)


def same_weights(index: dict[str, Any], checkpoint: Checkpoint) -> bool:
    """Whether the embeddings of an index are those of a checkpoint."""
    return all(index.get(key) == value for key, value in mark_of(checkpoint).items())


def mark_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """What an index records of the weights that its embeddings come from."""
    return {"fingerprint": checkpoint.data.get("fingerprint"), "step": checkpoint.progress.get("step")}
