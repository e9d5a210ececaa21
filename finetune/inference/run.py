"""Caption the slides of a folder or file: choose them, caption them, write records, show scores."""

from __future__ import annotations

import math
import time

import numpy as np

from ..common.errors import UserError
from ..common.log import logger, notice
from ..data.batch import encode_text
from ..evaluation.scoring import Answers, Report, evaluate
from ..models.training_texts import SlideVectors
from ..templates.template import Template
from .captioner import Captioner
from .cases import select_slides
from .closing import Outcome, announce, announce_end, scores_path, show_scores
from .encoding import slide_cache
from .form import withhold_fields
from .ground_truth import GroundTruth
from .interruption import Interrupted, StopSignals
from .job import Job
from .model_facts import ModelFacts
from .nearest import TrainingSlides, judge_of, texts_to_rerank_with, warn_of_unlearned
from .options import InferenceOptions
from .record_file import RecordFile
from .records import Record, output_path
from .scores import Scored, records_with_fields, score_fields, template_to_score
from .sources import slide_source, source_of
from .thresholds import Thresholds


def run_inference(options: InferenceOptions) -> int:
    """Caption, print, write and score.

    Returns:
        0, or 128 + its number if a signal ended the job.

    Raises:
        UserError: a bad option or file; or, once all is done, slides that failed.
    """
    output = output_path(options.output)
    truth = GroundTruth.load(options)
    with RecordFile(output) as file:
        captioner = Captioner.from_options(options)
        cases = select_slides(captioner, options, truth.labels)
        texts = texts_to_score(options.text, captioner)
        training = TrainingSlides.load(options.checkpoint, captioner, searchable=options.nearest > 0)
        captioner.rerank_with = texts_to_rerank_with(options, captioner, training)
        captioner.judge = judge_of(captioner, training)
        warn_of_unlearned(captioner.form, training)
        options.thresholds.require_known(captioner.form and captioner.form.template.slots)
        if options.thresholds and captioner.temperature is None and captioner.form is None:
            logger.warning("confidence is not calibrated: no validation slides in training, or not its best_model.pth")
        template = template_to_score(captioner) if truth.can_score else None
        generation = options.generation(captioner.trained_length)
        source = source_of(captioner, options, generation, texts, truth.prompts, training)
        slides = {case_id: slide_source(files, truth.references_of(case_id)) for case_id, files in cases.items()}
        file.begin(source, slides, options.resume)

        def complete(record: Record, embedding: np.ndarray) -> None:
            complete_record(record, embedding, captioner, options, truth.prompts, training)
            truth.add_match(record)

        job = Job(captioner, cases, texts, generation, slide_cache(captioner, options), file,
                  {case_id: source.of_slide(files) for case_id, files in slides.items()}, complete,
                  keep_vectors=truth.can_score, brief=output is not None and len(cases) > 1)
        if options.embeddings_dir is not None:
            announce(len(cases), options.embeddings_dir, ModelFacts.of(captioner), captioner.where)
        start = time.monotonic()
        exit_code = _caption_until_stopped(job)
        if exit_code == 0:
            _report(job, truth, training, options, template, time.monotonic() - start)
        return exit_code


def _caption_until_stopped(job: Job) -> int:
    """Caption, and write what there is in any case. Returns 0, or 128 + the number of a signal."""
    with StopSignals() as signals:
        try:
            job.run(signals)
            with signals.writing():
                job.file.finish(job.cases)
        except Interrupted as interrupted:
            job.file.finish(job.cases)
            done = sum(case_id in job.file for case_id in job.cases)
            logger.warning("%s: %d of %d slides are done%s", interrupted.name, done, len(job.cases),
                           "; the same command with --resume goes on" if job.file.output else "")
            return interrupted.exit_code
    return 0


def _report(job: Job, truth: GroundTruth, training: TrainingSlides | None, options: InferenceOptions,
            template: Template | None, seconds: float) -> None:
    """Warn of cut captions, show scores and how it went. Raises UserError if slides failed."""
    outcome = Outcome.of(job.file.records(job.cases))
    if outcome.num_cut:
        _warn_of_cut(outcome.num_cut, job)
    form = job.captioner.form
    if form is not None and truth.labels is not None:
        notice("%s", form.calibration(truth.labels).line())
    scores = scores_path(job.file.output) if truth.can_score else None
    if truth.can_score:
        records = _with_vectors(job)
        answers = truth.answers(job.captioner, records, job.vectors, job.generation.max_length)
        report = _evaluate(answers, truth, records, job.vectors, training)
        show_scores(_scored(report, truth, records, template), outcome.num_abstained, scores, options)
    if len(job.cases) > 1:
        announce_end(outcome, seconds, job.file.output, scores)
    if outcome.errors:
        raise UserError(outcome.errors[0][0], f"{len(outcome.errors)} of {len(job.cases)} slides failed",
                        "their records say why", [error for _, error in outcome.errors[:20]])


def _warn_of_cut(number: int, job: Job) -> None:
    logger.warning("%d of %d captions did not come to their end within %d tokens (finished: false); trained on "
                   "texts of up to %d: give a larger --max_length, or train longer", number, len(job.cases),
                   job.generation.max_length, job.captioner.trained_length)


def _scored(report: Report | None, truth: GroundTruth, records: list[Record], template: Template | None,
            ) -> Scored | None:
    """The scores of captions and fields; None if there are none."""
    of_fields = records_with_fields(records, truth)
    fields = score_fields(template, truth, of_fields)
    return Scored(report, truth.scored(records), fields, of_fields) if report or fields else None


def _with_vectors(job: Job) -> list[Record]:
    """The records to score: a slide that was captioned earlier may not be readable any more."""
    records = [record for record in job.file.records(job.cases) if record["error"] is None]
    usable = [record for record in records if record["id"] in job.vectors]
    if len(usable) < len(records):
        logger.warning("%d slides that were captioned earlier cannot be read any more: they are not scored",
                       len(records) - len(usable))
    return usable


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
    _withhold(record, options.thresholds)


def _withhold(record: Record, thresholds: Thresholds) -> None:
    """Withhold the fields of low probability, and a caption of low confidence or with such a field."""
    fields = record.get("fields", {})
    is_unknown = record.get("unusual", False) and bool(thresholds)  # nothing is known of an unusual slide
    withhold_fields(fields, {name: math.inf if is_unknown else thresholds.of_field(name) for name in fields})
    is_part = any(one.get("abstained") for one in fields.values())
    if is_part or is_unknown or record["confidence"] < thresholds.common:
        record["caption"] = None
        record["abstained"] = True
