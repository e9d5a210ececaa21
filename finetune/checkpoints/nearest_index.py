"""nearest.pt, the embeddings and texts of the training slides; and the calibration of a checkpoint.

Shapes: N training slides."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from ..common.errors import UserError
from .format import Checkpoint, read_pth

NEAREST = "nearest.pt"


def temperature_of(checkpoint: Checkpoint) -> float | None:
    """The temperature in a checkpoint, or None if it has not been calibrated."""
    calibration = checkpoint.calibration
    if not isinstance(calibration, dict) or not calibration.get("words"):  # "words": tokens it was fitted on
        return None
    temperature = calibration.get("temperature")
    is_usable = isinstance(temperature, float) and math.isfinite(temperature) and temperature > 0
    return temperature if is_usable else None


def read_nearest(path: Path, checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The nearest.pt beside the file `path` of a checkpoint, None if it does not exist or is of other training data.

    Returns:
        `ids`, `texts` of each, and `embeddings` (N, dim_latents), None where the contrastive loss was off.

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
    """Whether ids, texts and embeddings have the same length and the types that training writes."""
    ids, texts, embeddings = index.get("ids"), index.get("texts"), index.get("embeddings")
    if not isinstance(ids, list) or not isinstance(texts, list) or len(ids) != len(texts) or not ids:
        return False
    if not all(_are_texts(of_slide) for of_slide in texts):
        return False
    if embeddings is None:
        return True
    return isinstance(embeddings, torch.Tensor) and embeddings.ndim == 2 and len(embeddings) == len(ids)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(text, str) for text in value)


def same_weights(index: dict[str, Any], checkpoint: Checkpoint) -> bool:
    """Whether the embeddings of an index are those of a checkpoint."""
    return all(index.get(key) == value for key, value in mark_of(checkpoint).items())


def mark_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """The identity of the weights that the embeddings of an index come from."""
    return {"fingerprint": checkpoint.data.get("fingerprint"), "step": checkpoint.progress.get("step")}
