"""nearest.pt: where the training slides lie, to look up the texts of the nearest ones; and the calibration of a
checkpoint."""

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
    value = calibration.get("temperature") if isinstance(calibration, dict) and calibration.get("words") else None
    return value if isinstance(value, float) and math.isfinite(value) and value > 0 else None


def read_nearest(path: Path, checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The nearest.pt beside the file `path` of a checkpoint, None if there is none or it is of other training data.

    Returns:
        `ids`, `texts` of each, and `embeddings` (N, dim_latents), None where the contrastive loss was off.

    Raises:
        UserError: The file is damaged.
    """
    path = path.with_name(NEAREST)
    if not path.is_file():
        return None
    index = read_pth(path)
    ids, texts, vectors = index.get("ids"), index.get("texts"), index.get("embeddings")
    good = isinstance(ids, list) and isinstance(texts, list) and len(ids) == len(texts) > 0 and all(
        isinstance(t, list) and t and all(isinstance(x, str) for x in t) for t in texts) and (
        vectors is None or (isinstance(vectors, torch.Tensor) and vectors.ndim == 2 and len(vectors) == len(ids)))
    if not good:
        raise UserError(path, "is no index of training slides", "delete it, then --resume auto writes it again")
    return index if index.get("fingerprint") == checkpoint.data.get("fingerprint") else None


def same_weights(index: dict[str, Any], checkpoint: Checkpoint) -> bool:
    """Whether the embeddings of an index are those of a checkpoint."""
    return all(index.get(key) == value for key, value in mark_of(checkpoint).items())


def mark_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """What an index says of the weights that its embeddings are of."""
    return {"fingerprint": checkpoint.data.get("fingerprint"), "step": checkpoint.progress.get("step")}
