"""After training, from the best weights: the temperature of their probabilities, and where the training slides lie."""

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


def finish(folder: Path, model: SlideCaptioner, precision: Precision, train: list[Sample],
           batches_of: Callable[[str], Iterable[Batch]], trains_captions: bool = True) -> None:
    """Add `calibration` to best_model.pth and write nearest.pt; nothing if both are there. Leaves `model` with the best
    weights.

    batches_of: the batches of `train` or `validation`, empty if there is none.
    """
    if is_finished(folder):
        return
    best = Checkpoint.load(folder / BEST)
    model.load_saved_state(best.model, BEST)
    model.eval()
    best.calibration = calibrate(model, precision, batches_of("validation") if trains_captions else ())
    ids, rows = [], []
    if model.decoder.contrastive_loss_weight:
        for batch in batches_of("train"):
            with torch.no_grad(), precision.autocast():
                rows.append(embed_slides(model.decoder, model.encode(batch.to(precision.device))))
            ids += batch.ids
    texts = {s.slide.slide_id: list(s.references) for s in train}
    write_pth(folder, [NEAREST], {
        "format_version": FORMAT_VERSION, **mark_of(best), "ids": ids or list(texts),
        "texts": [texts[i] for i in ids or texts],
        "embeddings": torch.from_numpy(np.concatenate(rows)) if rows else None})
    best.save(folder, [BEST])


def is_finished(folder: Path) -> bool:
    """Whether a run has what `finish` gives it, or no best_model.pth any more."""
    if not (folder / BEST).exists():
        logger.warning("%s is gone: no calibration, no %s", BEST, NEAREST)
        return True
    best = Checkpoint.load(folder / BEST)
    index = read_nearest(folder / BEST, best)
    return best.calibration is not None and index is not None and same_weights(index, best)


@torch.no_grad()
def calibrate(model: SlideCaptioner, precision: Precision, batches: Iterable[Batch]) -> dict[str, float]:
    """Temperature scaling (Guo et al. 2017, arXiv 1706.04599) of the words' probabilities: the temperature at which the
    reference texts of the validation slides are most probable. 1.0 without validation, or without captions."""
    likelihood, confidence = (torch.zeros(len(_TEMPERATURES), dtype=torch.float64) for _ in range(2))
    words = right = 0
    for batch in batches:
        with precision.autocast():
            batch = batch.to(precision.device)
            tokens = model.encode(batch)
            logits = model.decoder(batch.text, image_tokens=tokens, text_mask=batch.text_mask)[batch.text_mask].float()
        labels = batch.labels[batch.text_mask]
        words, right = words + len(labels), right + int((logits.argmax(-1) == labels).sum())
        for k, temperature in enumerate(_TEMPERATURES):
            log_odds = (logits / temperature).log_softmax(-1)
            likelihood[k] += log_odds.gather(1, labels[:, None]).sum().item()
            confidence[k] += log_odds.max(-1).values.exp().sum().item()
    if not words:
        return {"temperature": 1.0, "words": 0}
    best, plain = int(likelihood.argmax()), _TEMPERATURES.index(1.0)
    logger.info("confidence: %.1f %% of the validation words are right; their mean probability is %.1f %%, and %.1f %% "
                "at temperature %.2f", 100 * right / words, 100 * confidence[plain] / words,
                100 * confidence[best] / words, _TEMPERATURES[best])
    return {"temperature": _TEMPERATURES[best], "words": words, "right": right / words,
            "confidence_before": confidence[plain].item() / words, "confidence": confidence[best].item() / words}
