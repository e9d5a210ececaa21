"""nearest.pt: the embeddings of the training slides and a linear probe, to look up their texts; and the calibration of
a checkpoint. N training slides, D image dimension, W tokens of the probe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..common.errors import UserError
from .format import Checkpoint, read_pth

NEAREST = "nearest.pt"
_FIX = "delete it, then --resume auto writes it again"
_MARKS = (type(None), int, str)  # what `mark_of` holds
_LONGEST = 1.01  # of a unit vector, with rounding
_LOWEST, _HIGHEST = 0.01, 100.0  # temperatures by which logits can be divided; a run writes 1/4 to 4
_MOST = 1e12  # of a number of the judgement: no slide has as many tiles, and all others are of the order of 1
_JUDGEMENT = {"unusual": ("least_tiles",), "confidence": ("bias", "likelihood", "probe")}  # part: numbers it must have
# Tensors of a linear probe and their axes; beside them `token_ids` (W)
_PROBE = {"mean": "D", "std": "D", "weight": "DW", "frequency": "W", "strength": "W", "noise": "W"}


def temperature_of(checkpoint: Checkpoint) -> float | None:
    """The temperature in a checkpoint, or None if it has not been calibrated.

    Raises UserError for one that no run writes: a confidence of NaN would be above every threshold.
    """
    calibration = checkpoint.calibration
    if not isinstance(calibration, dict) or not calibration.get("words"):  # "words": tokens it was fitted on
        return None
    return _usable(calibration.get("temperature"), checkpoint)


def field_temperature_of(checkpoint: Checkpoint) -> float | None:
    """The temperature of the fields of a checkpoint's template, or None; raises UserError as `temperature_of`."""
    calibration = checkpoint.calibration
    if not isinstance(calibration, dict) or not calibration.get("fields"):  # number of fields it was fitted on
        return None
    return _usable(calibration.get("field_temperature"), checkpoint)


def _usable(temperature: Any, checkpoint: Checkpoint) -> float:
    if not isinstance(temperature, float) or not _LOWEST <= temperature <= _HIGHEST:  # false for NaN, too
        raise UserError(checkpoint.path or "checkpoint", "its calibration has no usable temperature",
                        "use another checkpoint of the run")
    return temperature


def rerank_is_better(checkpoint: Checkpoint) -> bool:
    """Whether re-ranking made the captions of the validation slides better, as measured after training."""
    calibration = checkpoint.calibration
    return isinstance(calibration, dict) and calibration.get("rerank") is True


def read_nearest(path: Path, checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The nearest.pt beside the file `path` of a checkpoint, None if it does not exist or is of other training data.

    Returns:
        `ids`, `texts` of each, and `embeddings` (N, dim_latents), None where the contrastive loss was off; newer
        files also `slide_embeddings` (N, D), None if they were too many, `probe`, the tensors of a linear probe,
        None if it had nothing to predict, `unusual`, numbers of `models.unusual.UsualSlides`, and `confidence`, numbers
        of `models.caption_confidence.CaptionConfidence` or None.

    Raises:
        UserError: The file is damaged.
    """
    path = path.with_name(NEAREST)
    if not path.is_file():
        return None
    index = read_pth(path)
    if not _is_index(index):
        raise UserError(path, "is not an index of training slides", _FIX)
    return index if index.get("fingerprint") == checkpoint.data.get("fingerprint") else None


def _is_index(index: dict[str, Any]) -> bool:
    """Whether ids, texts and embeddings have the same length and the types that training writes."""
    if "embeddings" not in index or not _has_marks(index) or not _has_texts(index):
        return False
    count, embeddings = len(index["ids"]), index["embeddings"]
    if not _are_vectors(embeddings, count) or not _are_vectors(index.get("slide_embeddings"), count):
        return False
    return _are_no_longer_than_1(embeddings) and (index.get("probe") is None or _is_probe(index["probe"])) \
        and all(_are_numbers(index.get(part), needed) for part, needed in _JUDGEMENT.items())


def _are_numbers(numbers: Any, needed: tuple[str, ...]) -> bool:
    """Whether they are finite numbers by name, the needed ones among them, or None; a limit comes with its median."""
    if numbers is None:
        return True
    if not isinstance(numbers, dict) or not all(type(value) in (int, float) and abs(value) < _MOST
                                                for value in numbers.values()):  # false for NaN, too
        return False
    pairs = [name.removesuffix("limit") + "median" for name in numbers if str(name).endswith("_limit")]
    return numbers.keys() >= {*needed, *pairs}


def _has_marks(index: dict[str, Any]) -> bool:
    """Whether what `mark_of` compares is of plain types."""
    return all(type(index.get(key)) in _MARKS for key in ("fingerprint", "step"))


def _has_texts(index: dict[str, Any]) -> bool:
    """Whether each slide has an id and texts."""
    ids, texts = index.get("ids"), index.get("texts")
    return _are_texts(ids) and isinstance(texts, list) and len(ids) == len(texts) and all(map(_are_texts, texts))


def _are_no_longer_than_1(vectors: torch.Tensor | None) -> bool:
    return vectors is None or bool((vectors.float().norm(dim=1) < _LONGEST).all())


def require_fit(index: dict[str, Any], path: Path, dim_latents: int, image_dim: int, vocabulary: int) -> None:
    """Raise UserError unless vectors and probe are of a model of this size: the file may be another one's."""
    fits = _have_width(index.get("embeddings"), dim_latents) and _have_width(index.get("slide_embeddings"), image_dim)
    probe = index.get("probe")
    if probe is not None:
        ids = probe["token_ids"]
        are_known = bool(((ids >= 0) & (ids < vocabulary)).all())
        fits = fits and are_known and len(probe["mean"]) == image_dim
    if not fits:
        raise UserError(path, "is not an index of training slides of this model", _FIX)


def _have_width(vectors: torch.Tensor | None, width: int) -> bool:
    return vectors is None or vectors.shape[1] == width


def _are_vectors(value: Any, count: int) -> bool:
    """Whether these are finite vectors of so many slides, or None."""
    return value is None or (_is_finite(value) and value.ndim == 2 and len(value) == count)


def _is_finite(value: Any) -> bool:
    is_usable = isinstance(value, torch.Tensor) and value.dtype in (torch.float32, torch.float16)
    return is_usable and bool(torch.isfinite(value).all())


def _is_probe(probe: Any) -> bool:
    """Whether it holds the tensors of `models.linear_probe.LinearProbe`: of matching shapes, float32, finite."""
    if not isinstance(probe, dict) or probe.keys() != {*_PROBE, "token_ids"} or not _are_ids(probe["token_ids"]):
        return False
    tensors = [probe[name] for name in _PROBE]
    if not all(_is_finite(tensor) and tensor.dtype == torch.float32 for tensor in tensors):
        return False
    return _have_probe_shapes(probe) and _can_divide(probe)


def _are_ids(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.int64 and value.ndim == 1


def _have_probe_shapes(probe: dict[str, torch.Tensor]) -> bool:
    size = {"D": probe["mean"].numel(), "W": len(probe["token_ids"])}
    expected = {name: tuple(size[axis] for axis in axes) for name, axes in _PROBE.items()}
    return {name: tuple(probe[name].shape) for name in _PROBE} == expected


def _can_divide(probe: dict[str, torch.Tensor]) -> bool:
    """Whether deviations are above 0, and frequencies between 0 and 1: a token of all texts has no deviation."""
    divisors = torch.cat([probe["std"], probe["noise"], probe["frequency"], 1 - probe["frequency"]])
    return bool((divisors > 0).all())


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(text, str) for text in value)


def same_weights(index: dict[str, Any], checkpoint: Checkpoint) -> bool:
    """Whether the embeddings of an index are those of a checkpoint."""
    return all(index.get(key) == value for key, value in mark_of(checkpoint).items())


def mark_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """The identity of the weights that the embeddings of an index come from."""
    return {"fingerprint": checkpoint.data.get("fingerprint"), "step": checkpoint.progress.get("step")}
