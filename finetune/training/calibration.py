"""What happens once after training, with the best weights: the temperature of the token probabilities is calibrated,
captions are compared with looking up, and nearest.pt is written, the index of the training slides with a linear probe
and what judges a new slide and its caption."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.format import BEST, FORMAT_VERSION, Checkpoint, write_pth
from ..checkpoints.nearest_index import NEAREST, mark_of, read_nearest, same_weights
from ..common.device import Precision
from ..common.log import logger
from ..common.progress import progress
from ..config.schema import Config
from ..data.batch import Batch, Sample
from ..data.prepare import Data
from ..data.splits import groups_of
from ..data.tile_facts import TileFacts
from ..models.captioner import SlideCaptioner
from ..models.linear_probe import LinearProbe
from ..models.training_texts import SlideVectors, TrainingTexts
from ..models.unusual import SPACES, UsualSlides
from ..templates.template import Template
from .caption_validation import choose_samples
from .confidence_fit import FittedConfidence, fit_confidence
from .field_temperature import fit_field_temperature
from .held_out import MOST_COMPARED, HeldOutSlides, caption_held_out, compare_held_out
from .temperature import calibrate

_MOST_EMBEDDINGS = 20_000  # slide embeddings of Prism that nearest.pt holds: 50 MB
_HALF_MAX = 65504.0  # of float16


def calibrate_and_index(folder: Path, model: SlideCaptioner, precision: Precision, data: Data, config: Config,
                        batches_of: Callable[[list[Sample]], Iterable[Batch]]) -> None:
    """Add `calibration` to best_model.pth, write nearest.pt, and compare the captions with looking up texts.

    Does nothing if all of it is done. Leaves `model` with the best weights.

    Args:
        batches_of: The batches of some samples; none if there are none.
    """
    if is_calibrated_and_indexed(folder):
        return
    best = Checkpoint.load(folder / BEST)
    model.load_saved_state(best.model, BEST)
    model.eval()
    calibrated_on = data.validation if config.trains_captions else []
    best.calibration = calibrate(model, precision, _with_progress("calibrating", calibrated_on, batches_of),
                                 config.data.group_pattern)
    index = _index(model, precision, data, config, _with_progress(f"writing {NEAREST}", data.train, batches_of))
    texts = TrainingTexts.of_index(index, data.tokenizer, config.data.max_seq_len)
    held_out = None
    if config.trains_captions and data.validation:
        chosen = choose_samples(data.validation, MOST_COMPARED, config.training.seed)
        held_out = caption_held_out(model, precision, texts, chosen,
                                    _with_progress("comparing with looking up", chosen, batches_of),
                                    int(best.progress.get("epoch", 0)))
        best.calibration["rerank"] = held_out.uses_rerank
        if best.template:
            batches = _with_progress("filling the template", chosen, batches_of)
            best.calibration |= fit_field_temperature(model, precision, best.template, data.tokenizer, chosen, batches)
    template = best.template and Template.from_dict(best.template)
    index |= _judgement(folder, index["ids"], data, config, texts, held_out, template)
    write_pth(folder, [NEAREST], {"format_version": FORMAT_VERSION, **mark_of(best), **index})
    best.weights_only().save(folder, [BEST])  # last: it marks the run as complete


def _judgement(folder: Path, ids: list[str], data: Data, config: Config, texts: TrainingTexts,
               held_out: HeldOutSlides | None, template: Template | None) -> dict[str, dict[str, float] | None]:
    """What nearest.pt holds to judge a new slide and its caption: `unusual` and `confidence`. Writes the comparison of
    the held-out slides. ids: of the training slides, in the order of `texts`."""
    trained_spaces = ("contrastive",) if config.prism.freeze else tuple(SPACES)
    usual = UsualSlides.of(texts, _tiles_of(data.train, ids), groups_of(ids, config.data.group_pattern),
                           held_out and held_out.vectors, trained_spaces)
    if held_out is None:
        return {"unusual": usual.to_dict(), "confidence": None}
    fitted = fit_confidence(held_out, config.data.group_pattern)
    facts = [TileFacts(number, False, False) for number in _tiles_of(data.validation, held_out.ids)]
    reasons = usual.reasons_of(texts, held_out.vectors, facts)
    compare_held_out(folder, held_out, texts, _judged_lines(reasons, fitted), template)
    return {"unusual": usual.to_dict(), "confidence": fitted and fitted.numbers}


def _tiles_of(samples: Sequence[Sample], ids: Sequence[str]) -> list[int]:
    """How many tiles the slides of these ids have."""
    num_tiles = {sample.slide.slide_id: sample.slide.num_tiles for sample in samples}
    return [num_tiles[i] for i in ids]


def _judged_lines(reasons: list[list[str]], fitted: FittedConfidence | None) -> list[dict[str, Any]]:
    """What the lines of the held-out captions say of slide and caption, as the records of inference.py have it."""
    lines: list[dict[str, Any]] = [{"unusual": bool(why)} for why in reasons]
    for row, (line, why) in enumerate(zip(lines, reasons, strict=True)):
        if fitted:
            line["confidence"] = 0.0 if why else round(float(fitted.left_out[row]), 6)
        if why:
            line["unusual_reason"] = "; ".join(why)
    return lines


def _with_progress(name: str, samples: list[Sample], batches_of: Callable[[list[Sample]], Iterable[Batch]],
                   ) -> Iterator[Batch]:
    """The batches of some samples, with the progress in slides."""
    if not samples:
        return
    with progress(None, name, len(samples), "slide") as shown:
        for batch in batches_of(samples):
            yield batch
            shown.update(len(batch.ids))


def is_calibrated_and_indexed(folder: Path) -> bool:
    """Whether `calibrate_and_index` has nothing (more) to do: it is done, or best_model.pth is gone."""
    if not (folder / BEST).exists():
        logger.warning("%s is gone: no calibration, no %s", BEST, NEAREST)
        return True
    best = Checkpoint.load(folder / BEST)
    index = read_nearest(folder / BEST, best)
    return best.calibration is not None and index is not None and same_weights(index, best) and "unusual" in index


@torch.no_grad()
def _index(model: SlideCaptioner, precision: Precision, data: Data, config: Config,
           batches: Iterable[Batch]) -> dict[str, Any]:
    """What nearest.pt holds of the training slides, in the order of their batches."""
    ids: list[str] = []
    parts: list[SlideVectors] = []
    for batch in batches:
        with precision.autocast():
            parts.append(SlideVectors.of(model.decoder, model.encode(batch.to(precision.device))))
        ids += batch.ids
    vectors = SlideVectors.join(parts)
    samples = {sample.slide.slide_id: sample for sample in data.train}
    groups = groups_of(ids, config.data.group_pattern)
    probe = LinearProbe.fit(vectors.latent_mean, [samples[i].token_ids for i in ids], groups, config.training.seed)
    embeddings = None
    if model.decoder.contrastive_loss_weight:
        embeddings = torch.from_numpy(vectors.contrastive)
    return {"ids": ids, "texts": [list(samples[i].references) for i in ids], "embeddings": embeddings,
            "slide_embeddings": _slide_embeddings(vectors), "probe": probe.to_dict() if probe else None}


def _slide_embeddings(vectors: SlideVectors) -> torch.Tensor | None:
    """(N, D) in half precision; None if they are too many for the file."""
    if len(vectors.embedding) > _MOST_EMBEDDINGS:
        return None
    return torch.from_numpy(vectors.embedding).clamp(-_HALF_MAX, _HALF_MAX).half()
