"""Caption the slides of a folder or file: choose them, caption them, write records, print scores."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from prism import GenerationOptions

from ..common.errors import UserError
from ..common.log import logger
from ..common.progress import progress
from ..data.batch import encode_text
from ..data.slides import Slide, open_case
from ..evaluation.scoring import Answers, Report, evaluate
from ..models.training_texts import SlideVectors
from .captioner import Captioner
from .cases import Cases, select_slides
from .ground_truth import GroundTruth
from .nearest import TrainingSlides, texts_to_rerank_with
from .options import InferenceOptions
from .records import Record, new_record, output_path, print_record, print_scores, write_records

_BATCH = 8  # slides decoded together


def run_inference(options: InferenceOptions) -> int:
    """Caption, print, write and score; returns 0.

    Raises:
        UserError: a bad option or file; or, once all is done, slides that failed.
    """
    output = output_path(options.output)
    truth = GroundTruth.load(options)
    captioner = Captioner.from_options(options)
    cases = select_slides(captioner, options, truth.labels)
    texts = texts_to_score(options.text, captioner)
    training = TrainingSlides.load(options.checkpoint, captioner, searchable=options.nearest > 0)
    captioner.rerank_with = texts_to_rerank_with(options, captioner, training)
    if options.abstain_below and captioner.temperature is None:
        logger.warning("confidence is not calibrated: no validation slides in training, or not its best_model.pth")
    generation = options.generation(captioner.trained_length)
    records: list[Record] = []
    vectors: dict[str, SlideVectors] = {}
    try:
        for record in caption_slides(captioner, cases, texts, generation, vectors):
            if record["error"] is None:
                embedding = vectors[record["id"]].contrastive[0]
                complete_record(record, embedding, captioner, options, truth.prompts, training)
            records.append(record)
            print_record(record)
    finally:  # Ctrl+C, or out of memory: the finished records are written
        if output:
            write_records(records, output)
    _warn_of_cut_captions(records, captioner, generation.max_length)
    if truth.can_score:
        abstained = sum(record.get("abstained", False) for record in records)
        answers = truth.answers(captioner, records, vectors, generation.max_length)
        print_scores(_evaluate(answers, truth, records, vectors, training), abstained)
    errors = [(record["id"], record["error"]) for record in records if record["error"] is not None]
    if errors:
        raise UserError(errors[0][0], f"{len(errors)} of {len(records)} slides failed", "their records say why",
                        [error for _, error in errors[:20]])
    return 0


def _warn_of_cut_captions(records: list[Record], captioner: Captioner, max_length: int) -> None:
    num_cut = sum(record["finished"] is False for record in records)
    if num_cut:
        logger.warning("%d of %d captions did not come to their end within %d tokens (finished: false); trained on "
                       "texts of up to %d: give a larger --max_length, or train longer", num_cut, len(records),
                       max_length, captioner.trained_length)


def _evaluate(answers: Answers | None, truth: GroundTruth, records: list[Record], vectors: dict[str, SlideVectors],
              training: TrainingSlides | None) -> Report | None:
    """The scores of the answers and of the baselines that the training texts give; None without answers."""
    if answers is None or training is None:
        return answers and evaluate(answers)
    slides = SlideVectors.join([vectors[record["id"]] for record in truth.scored(records)])
    return evaluate(answers, training.texts.common(), training.texts.lookups(slides))


def texts_to_score(texts: tuple[str, ...], captioner: Captioner) -> list[str]:
    """The texts of --text without repeats; warns about unknown tokens and truncation."""
    unique = list(dict.fromkeys(texts))
    for text in unique:
        ids, was_cut = encode_text(captioner.tokenizer, text, captioner.config.data.max_seq_len)
        num_unknown = ids.count(captioner.tokenizer.unk_id)
        if num_unknown:
            logger.warning("--text %r: %d of its %d tokens are not in the vocabulary", text, num_unknown, len(ids) - 2)
        if was_cut:
            logger.warning("--text %r is longer than data.max_seq_len and is cut", text)
    return unique


def caption_slides(captioner: Captioner, cases: Cases, texts: list[str], options: GenerationOptions,
                   vectors: dict[str, SlideVectors] | None = None) -> Iterator[Record]:
    """The record of each case; `error` says why one cannot be used, the rest goes on. Arguments as in `describe`."""
    batch: list[Slide] = []
    data = captioner.config.data
    for case_id, slides in progress(cases.items(), "captioning", len(cases), "slide"):
        try:
            batch.append(open_case(case_id, slides, data.h5_key, data.image_dim, data.wanted_encoder))
        except UserError as error:
            yield new_record(case_id, error=error.line())
        if len(batch) == _BATCH:
            yield from _caption_batch(captioner, batch, texts, options, vectors)
            batch = []
    if batch:
        yield from _caption_batch(captioner, batch, texts, options, vectors)


def _caption_batch(captioner: Captioner, batch: list[Slide], texts: list[str], options: GenerationOptions,
                   vectors: dict[str, SlideVectors] | None) -> Iterator[Record]:
    """Caption slides together; if one of them turns out to be unreadable, one by one."""
    try:
        yield from captioner.describe(batch, texts, options, vectors)
    except UserError as error:
        if len(batch) == 1:
            yield new_record(batch[0].slide_id, error=error.line())
            return
        for slide in batch:
            yield from _caption_batch(captioner, [slide], texts, options, vectors)


def complete_record(record: Record, embedding: np.ndarray, captioner: Captioner, options: InferenceOptions,
                    prompts: dict[str, list[str]] | None, training: TrainingSlides | None) -> None:
    """Add class probabilities and the nearest training slides, and withhold a caption of low confidence.

    Args:
        record: of a captioned slide, changed in place.
        embedding: the slide's unit vector (dim_latents,).
        captioner: the model.
        options: `nearest` and `abstain_below`.
        prompts: {class: its prompts}, None for no classification.
        training: searchable if options.nearest is above 0.
    """
    if prompts:
        probabilities = captioner.class_probabilities(embedding[None], prompts)[0]
        record["classes"] = dict(zip(prompts, probabilities.tolist(), strict=True))
    if options.nearest and training:
        record["nearest"] = training.nearest(embedding, options.nearest)
    if record["confidence"] < options.abstain_below:
        record["caption"] = None
        record["abstained"] = True
