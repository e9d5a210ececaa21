"""How the best model compares with looking up: captions of validation slides beside texts of training slides."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from prism import GenerationOptions

from ..common.device import Precision
from ..common.log import logger
from ..common.run_folder import HELD_OUT, HELD_OUT_CAPTIONS, HELD_OUT_FIELDS, write_run_file
from ..common.score_table import CAPTIONS, COMMON, FEW_SLIDES, NEAREST_TEXT, PROBE_TEXT, RARELY_EXACT
from ..common.visible import json_text
from ..data.batch import Batch, Sample
from ..evaluation.field_scores import FieldScores
from ..evaluation.scoring import Answers, Report, evaluate
from ..evaluation.templates import Template
from ..models.captioner import SlideCaptioner
from ..models.generation import generate
from ..models.rerank import MIN_PREDICTABLE, rerank
from ..models.training_texts import SlideVectors, TrainingTexts
from .caption_lines import caption_lines

MOST_COMPARED = 100  # slides
_IN_WORDS = {CAPTIONS: "captioner", NEAREST_TEXT: "nearest training text", PROBE_TEXT: "linear probe",
             COMMON: "most common"}


@torch.no_grad()
def compare_held_out(folder: Path, model: SlideCaptioner, precision: Precision, texts: TrainingTexts,
                     samples: list[Sample], batches: Iterable[Batch], epoch: int = 0,
                     template: Template | None = None) -> bool:
    """Caption slides that were not trained on, compare that with looking up, log it, and write it with the captions.

    The captions are re-ranked where that makes them better, as inference.py then does.

    Args:
        folder: Of the run.
        model: In eval mode.
        samples: Validation slides, at least one.
        batches: Of the same slides, in any order.
        epoch: Of the model.
        template: That the training texts follow: the fields of the captions are scored too.

    Returns:
        Whether re-ranking made the captions better.

    Raises:
        UserError: The file cannot be written.
    """
    references = {sample.slide.slide_id: list(sample.references) for sample in samples}
    ids: list[str] = []
    captions: list[str] = []
    reranked: list[str] = []
    parts: list[SlideVectors] = []
    for batch in batches:
        with precision.autocast():
            image_tokens = model.encode(batch.to(precision.device))
            parts.append(SlideVectors.of(model.decoder, image_tokens))
            own, better = _captions(model, image_tokens, parts[-1], texts)
        captions += own
        reranked += better
        ids += batch.ids
    answers = Answers(captions, [references[i] for i in ids])
    uses_rerank = reranked != captions and _is_better(answers.with_captions(reranked), answers)
    if uses_rerank:
        answers = answers.with_captions(reranked)
    report = evaluate(answers, texts.common(), texts.lookups(SlideVectors.join(parts)))
    write_run_file(folder / HELD_OUT, json_text(report.to_dict()))
    if template is not None:
        fields = FieldScores.of(template, answers.captions, answers.references)
        write_run_file(folder / HELD_OUT_FIELDS, json_text(fields.to_dict()))
    write_run_file(folder / HELD_OUT_CAPTIONS, caption_lines(epoch, ids, answers, answers.statistics()))
    log_comparison(report)
    return uses_rerank


def _captions(model: SlideCaptioner, image_tokens: torch.Tensor, slides: SlideVectors,
              texts: TrainingTexts) -> tuple[list[str], list[str]]:
    """Greedy captions of image tokens (B, n, D), and what re-ranking makes of them where it is worth a try."""
    tokenizer = texts.tokenizer
    longest = min(texts.max_seq_len, model.decoder.max_positions or texts.max_seq_len)
    ids = generate(model.decoder, image_tokens, GenerationOptions(max_length=longest), bos_id=tokenizer.bos_id,
                   eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id)
    captions = [tokenizer.decode(caption) for caption in ids]
    if texts.probe is None or len(texts.probe.token_ids) < MIN_PREDICTABLE:
        return captions, captions
    training_texts = rerank(model.decoder, image_tokens, ids, slides, texts, longest)
    return captions, [text or caption for text, caption in zip(training_texts, captions, strict=True)]


def _is_better(reranked: Answers, captions: Answers) -> bool:
    """Whether ROUGE-L rises; logs it either way."""
    all_slides = np.arange(len(captions.captions))
    before, after = (answers.statistics()["rouge_l"](all_slides) for answers in (captions, reranked))
    use = "inference.py re-ranks (--rerank auto)" if after > before else "inference.py does not re-rank (--rerank auto)"
    logger.info("re-ranking with training texts: ROUGE-L %.3f instead of %.3f, %s", after, before, use)
    return after > before


def log_comparison(report: Report) -> None:
    """One line that compares the captions with looking up, and a warning if they are no better."""
    name, values = "exact text", _values(report, "exact_match")
    if max(values.values()) < RARELY_EXACT:
        name, values = "ROUGE-L", _values(report, "rouge_l")
    own = values.pop("captioner")
    num_slides = len(report.answers.captions)
    looked_up = ", ".join(f"{words} {value:.2f}" for words, value in values.items())
    logger.info("held-out slides: %s %.2f, %s (%d slides)", name, own, looked_up, num_slides)
    best = max(values, key=values.__getitem__)
    is_perfect = own == 1
    if num_slides >= FEW_SLIDES and own <= values[best] and not is_perfect:
        logger.warning("on the held-out slides the captioner is no better than looking up (%s: %s %.2f against %.2f): "
                       "try more training slides, another model.size (small is the smallest), or another "
                       "training.learning_rate; docs/scoring.md says how to read this", best, name, values[best], own)


def _values(report: Report, score: str) -> dict[str, float]:
    """{column in plain words: its score}, of the columns that there are."""
    columns = {words: report.columns.get(column) for column, words in _IN_WORDS.items()}
    return {words: column[score].value for words, column in columns.items() if column}
