"""How the best model compares with looking up: captions of validation slides beside texts of training slides."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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
from ..models.caption_confidence import evidence
from ..models.captioner import SlideCaptioner
from ..models.generation import caption_log_probabilities, generate
from ..models.rerank import MIN_PREDICTABLE, rerank
from ..models.training_texts import SlideVectors, TrainingTexts
from ..templates.template import Template
from .caption_lines import caption_lines

MOST_COMPARED = 100  # slides
_IN_WORDS = {CAPTIONS: "captioner", NEAREST_TEXT: "nearest training text", PROBE_TEXT: "linear probe",
             COMMON: "most common"}


@dataclass(frozen=True)
class HeldOutSlides:
    """V validation slides, captioned as inference.py would do it.

    Attributes:
        ids: Of the slides.
        answers: Captions and references.
        vectors: Of the slides.
        evidence: For each caption, (V, F) of `models.caption_confidence`.
        epoch: Of the model.
        uses_rerank: Whether re-ranking made the captions better, and they are the re-ranked ones.
    """

    ids: list[str]
    answers: Answers
    vectors: SlideVectors
    evidence: np.ndarray
    epoch: int
    uses_rerank: bool

    @property
    def is_right(self) -> np.ndarray:
        """Whether each caption is one of its references, word for word, (V,)."""
        captions = zip(self.answers.captions, self.answers.references, strict=True)
        return np.array([caption in references for caption, references in captions])


@dataclass(frozen=True)
class _Captions:
    """Captions of some slides, as text, and the evidence for each (slides, F)."""

    texts: list[str]
    evidence: np.ndarray

    @classmethod
    def join(cls, parts: Sequence[_Captions]) -> _Captions:
        return cls([text for part in parts for text in part.texts], np.concatenate([part.evidence for part in parts]))


@torch.no_grad()
def caption_held_out(model: SlideCaptioner, precision: Precision, texts: TrainingTexts, samples: list[Sample],
                     batches: Iterable[Batch], epoch: int = 0) -> HeldOutSlides:
    """Caption slides that were not trained on, re-ranked where that makes the captions better, as inference.py then
    does.

    Args:
        model: In eval mode.
        samples: Validation slides, at least one.
        batches: Of the same slides, in any order.
        epoch: Of the model.
    """
    references = {sample.slide.slide_id: list(sample.references) for sample in samples}
    ids: list[str] = []
    own: list[_Captions] = []
    better: list[_Captions] = []
    parts: list[SlideVectors] = []
    for batch in batches:
        with precision.autocast():
            image_tokens = model.encode(batch.to(precision.device))
            parts.append(SlideVectors.of(model.decoder, image_tokens))
            captions = _captions(model, image_tokens, parts[-1], texts)
        own.append(captions[0])
        better.append(captions[1])
        ids += batch.ids
    captions, reranked = _Captions.join(own), _Captions.join(better)
    answers = Answers(captions.texts, [references[i] for i in ids])
    uses_rerank = reranked.texts != captions.texts and _is_better(answers.with_captions(reranked.texts), answers)
    if uses_rerank:
        answers, captions = answers.with_captions(reranked.texts), reranked
    return HeldOutSlides(ids, answers, SlideVectors.join(parts), captions.evidence, epoch, uses_rerank)


def compare_held_out(folder: Path, slides: HeldOutSlides, texts: TrainingTexts,
                     more: Sequence[dict[str, object]] | None = None, template: Template | None = None) -> None:
    """Compare captions with looking up, log it, and write it with the captions.

    Args:
        folder: Of the run.
        more: Further entries of each line of the captions.
        template: That the training texts follow: the fields of the captions are scored too.

    Raises:
        UserError: The file cannot be written.
    """
    answers = slides.answers
    report = evaluate(answers, texts.common(), texts.lookups(slides.vectors))
    write_run_file(folder / HELD_OUT, json_text(report.to_dict()))
    if template is not None:
        fields = FieldScores.of(template, answers.captions, answers.references)
        write_run_file(folder / HELD_OUT_FIELDS, json_text(fields.to_dict()))
    lines = caption_lines(slides.epoch, slides.ids, answers, answers.statistics(), more)
    write_run_file(folder / HELD_OUT_CAPTIONS, lines)
    log_comparison(report)


def _captions(model: SlideCaptioner, image_tokens: torch.Tensor, slides: SlideVectors,
              texts: TrainingTexts) -> tuple[_Captions, _Captions]:
    """Greedy captions of image tokens (B, n, D), and what re-ranking makes of them where it is worth a try."""
    tokenizer = texts.tokenizer
    special = {name: getattr(tokenizer, name) for name in ("bos_id", "eos_id", "pad_id")}
    longest = min(texts.max_seq_len, model.decoder.max_positions or texts.max_seq_len)
    own_ids = generate(model.decoder, image_tokens, GenerationOptions(max_length=longest), **special)

    def with_evidence(ids: list[list[int]], captions: list[str]) -> _Captions:
        found, _ = caption_log_probabilities(model.decoder, image_tokens, ids, longest, **special)
        return _Captions(captions, evidence(found.sum(1).cpu().numpy(), ids, captions, slides, texts))

    own = with_evidence(own_ids, [tokenizer.decode(caption) for caption in own_ids])
    if texts.probe is None or len(texts.probe.token_ids) < MIN_PREDICTABLE:
        return own, own
    training_texts = rerank(model.decoder, image_tokens, own_ids, slides, texts, longest)
    ids = [texts.encode(text)[1:-1] if text else caption for text, caption in zip(training_texts, own_ids, strict=True)]
    return own, with_evidence(ids, [text or caption for text, caption in zip(training_texts, own.texts, strict=True)])


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
