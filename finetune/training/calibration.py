"""What happens once after training, with the best weights: the temperature of the token probabilities is calibrated,
and nearest.pt, the index of the training slides, is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch

from ..checkpoints.format import BEST, FORMAT_VERSION, Checkpoint, write_pth
from ..checkpoints.nearest_index import NEAREST, mark_of, read_nearest, same_weights
from ..common.device import Precision
from ..common.log import logger
from ..data.batch import Batch, Sample
from ..models.captioner import SlideCaptioner
from ..models.embeddings import embed_slides

_TEMPERATURES = [2 ** (k / 8) for k in range(-16, 17)]  # 1/4 to 4 in steps of 9 %


def calibrate_and_index(folder: Path, model: SlideCaptioner, precision: Precision, train: list[Sample],
                        batches_of: Callable[[str], Iterable[Batch]], trains_captions: bool = True) -> None:
    """Add `calibration` to best_model.pth and write nearest.pt; do nothing if both are there.

    Leaves `model` with the best weights.

    Args:
        train: The training samples, for their texts.
        batches_of: The batches of "train" or "validation"; none if the side is empty.
    """
    if is_calibrated_and_indexed(folder):
        return
    best = Checkpoint.load(folder / BEST)
    model.load_saved_state(best.model, BEST)
    model.eval()
    best.calibration = calibrate(model, precision, batches_of("validation") if trains_captions else ())
    texts_of = {sample.slide.slide_id: list(sample.references) for sample in train}
    ids, embeddings = list(texts_of), None
    if model.decoder.contrastive_loss_weight:
        ids, embeddings = _embed(model, precision, batches_of("train"))
    write_pth(folder, [NEAREST], {
        "format_version": FORMAT_VERSION, **mark_of(best), "ids": ids, "texts": [texts_of[i] for i in ids],
        "embeddings": embeddings})
    best.save(folder, [BEST])  # last: it marks the run as complete


def is_calibrated_and_indexed(folder: Path) -> bool:
    """Whether `calibrate_and_index` has nothing (more) to do: it is done, or best_model.pth is gone."""
    if not (folder / BEST).exists():
        logger.warning("%s is gone: no calibration, no %s", BEST, NEAREST)
        return True
    best = Checkpoint.load(folder / BEST)
    index = read_nearest(folder / BEST, best)
    return best.calibration is not None and index is not None and same_weights(index, best)


@torch.no_grad()
def _embed(model: SlideCaptioner, precision: Precision, batches: Iterable[Batch]) -> tuple[list[str], torch.Tensor]:
    """Ids of all slides, and their unit vectors (slides, dim_latents)."""
    ids: list[str] = []
    vectors: list[np.ndarray] = []
    for batch in batches:
        with precision.autocast():
            vectors.append(embed_slides(model.decoder, model.encode(batch.to(precision.device))))
        ids += batch.ids
    return ids, torch.from_numpy(np.concatenate(vectors))


@torch.no_grad()
def calibrate(model: SlideCaptioner, precision: Precision, batches: Iterable[Batch]) -> dict[str, float]:
    """The temperature at which the reference texts of the validation slides are most probable.

    Temperature scaling (Guo et al. 2017, https://arxiv.org/abs/1706.04599) of the token probabilities.

    Returns:
        `temperature` (1.0 without batches) and `words`, the number of tokens; with batches also the share of tokens
        predicted `right`, and their mean highest probability before and after: `confidence_before`, `confidence`.
    """
    likelihood = torch.zeros(len(_TEMPERATURES), dtype=torch.float64)  # sums over tokens, as is the next one
    confidence = torch.zeros(len(_TEMPERATURES), dtype=torch.float64)
    num_tokens = num_right = 0
    for batch in batches:
        with precision.autocast():
            batch = batch.to(precision.device)
            logits = model.decoder(batch.text, image_tokens=model.encode(batch), text_mask=batch.text_mask)
        logits = logits[batch.text_mask].float()  # (tokens, vocabulary)
        labels = batch.labels[batch.text_mask]
        num_tokens += len(labels)
        num_right += int((logits.argmax(-1) == labels).sum())
        for k, temperature in enumerate(_TEMPERATURES):
            log_probabilities = (logits / temperature).log_softmax(-1)
            likelihood[k] += log_probabilities.gather(1, labels[:, None]).sum().item()
            confidence[k] += log_probabilities.max(-1).values.exp().sum().item()
    if not num_tokens:
        return {"temperature": 1.0, "words": 0}
    accuracy = num_right / num_tokens
    confidence /= num_tokens
    best, uncalibrated = int(likelihood.argmax()), _TEMPERATURES.index(1.0)
    logger.info("confidence: %.1f %% of the validation tokens are right; their mean probability is %.1f %%, and "
                "%.1f %% at temperature %.2f", 100 * accuracy, 100 * confidence[uncalibrated], 100 * confidence[best],
                _TEMPERATURES[best])
    return {"temperature": _TEMPERATURES[best], "words": num_tokens, "right": accuracy,
            "confidence_before": confidence[uncalibrated].item(), "confidence": confidence[best].item()}
