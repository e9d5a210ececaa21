"""nearest.pt: where the training slides lie, to look up the texts of the nearest ones; and the calibration of a
checkpoint."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from ..common.errors import UserError
from .format import load_checkpoint

NEAREST = "nearest.pt"


def temperature_of(content: dict[str, Any]) -> float | None:
    """The temperature in a checkpoint, or None if it has not been calibrated."""
    calibration = content.get("calibration")
    value = calibration.get("temperature") if isinstance(calibration, dict) and calibration.get("words") else None
    return value if isinstance(value, float) and math.isfinite(value) and value > 0 else None


def read_nearest(checkpoint: Path, content: dict[str, Any]) -> dict[str, Any] | None:
    """The nearest.pt beside a checkpoint if it is of the same training data, else None: `ids`, `texts` of each, and
    `embeddings` (n, dim_latents), None where the contrastive loss was off. Raises UserError for a damaged file."""
    path = checkpoint.parent / NEAREST
    if not path.is_file():
        return None
    index = load_checkpoint(path)
    ids, texts, vectors = index.get("ids"), index.get("texts"), index.get("embeddings")
    good = isinstance(ids, list) and isinstance(texts, list) and len(ids) == len(texts) > 0 and all(
        isinstance(t, list) and t and all(isinstance(x, str) for x in t) for t in texts) and (
        vectors is None or (isinstance(vectors, torch.Tensor) and vectors.ndim == 2 and len(vectors) == len(ids)))
    if not good:
        raise UserError(path, "is no index of training slides", "delete it, then --resume auto writes it again")
    return index if index.get("fingerprint") == content["data"].get("fingerprint") else None


def same_weights(index: dict[str, Any], content: dict[str, Any]) -> bool:
    """Whether the embeddings of an index are those of a checkpoint."""
    return all(index.get(key) == value for key, value in _mark(content).items())


def _mark(content: dict[str, Any]) -> dict[str, Any]:
    return {"fingerprint": content["data"].get("fingerprint"), "step": content["progress"].get("step")}
