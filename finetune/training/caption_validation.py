"""Captions of some validation slides, decoded and scored after each epoch (`training.eval_captions`)."""

from __future__ import annotations

import difflib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..common.distributed import World
from ..common.errors import UserError
from ..common.run_folder import CAPTIONS, MOST_RETRIEVED, RETRIEVAL, write_run_file
from ..common.score_table import LAST_EPOCH, SCORES, VALIDATION, Kind, score_names
from ..common.visible import json_text
from ..config.schema import Config
from ..data.batch import Sample
from ..data.tokenizer import Tokenizer
from ..evaluation.retrieval import Cosines
from ..evaluation.scoring import Answers
from ..evaluation.text_metrics import Statistic
from ..models.embeddings import embed_slides, embed_texts
from ..models.generation import confidences, has_ended
from .caption_lines import caption_lines
from .validation import ObservedBatch


def check_monitor(config: Config) -> None:
    """Raises UserError for a `training.monitor` that this run will not compute."""
    training = config.training
    if training.eval_captions and not config.trains_captions:
        raise UserError("training.eval_captions", "the captions are not trained (model.caption_loss_weight is 0)",
                        "set it to 0")
    monitor, caption_scores = training.monitor, validation_names("text", "retrieval")
    if monitor in caption_scores and not training.eval_captions:
        raise UserError("training.monitor", f"{monitor} needs captions", "set training.eval_captions to, say, 100")
    if training.loss is not None:
        return  # the names of its parts are known once it has been called
    known = [LAST_EPOCH, *validation_names("loss")]
    if config.trains_captions:
        known += validation_names("collapse")
    _require_known(monitor, known + caption_scores)


def _require_known(monitor: str, known: list[str]) -> None:
    if monitor in known:
        return
    similar = difflib.get_close_matches(monitor, known, n=1)
    fix = f"did you mean {similar[0]}?" if similar else f"one of {', '.join(known)}"
    raise UserError("training.monitor", f"{monitor!r} is not a score of this run", fix)


def validation_names(*kinds: Kind) -> list[str]:
    """The names in metrics.jsonl of the validation scores of these kinds."""
    return [VALIDATION + name for name in score_names(*kinds)]


def not_in_log_line(monitor: str) -> set[str]:
    """The names in metrics.jsonl that the log line of an epoch leaves out; it always shows `monitor`."""
    return {VALIDATION + score.name for score in SCORES.values() if not score.log_line} - {monitor}


def choose_samples(samples: list[Sample], count: int, seed: int) -> list[Sample]:
    """`count` of the samples at random, the same in each epoch and after a resume."""
    ordered = sorted(samples, key=lambda sample: sample.slide.slide_id)
    return random.Random(seed).sample(ordered, min(count, len(ordered)))


@dataclass
class CaptionRecord:
    """One slide, captioned.

    Attributes:
        finished: Whether the caption came to its end token within the tokens it may have.
        confidence: Mean probability of the caption's tokens.
        slide_vector: (dim_latents,), a unit vector.
        text_vectors: (references, dim_latents), unit vectors.
    """

    caption: str
    finished: bool
    confidence: float
    slide_vector: np.ndarray
    text_vectors: np.ndarray


@dataclass
class CaptionScores:
    """An observer of the validation pass that captions the chosen samples and scores the captions.

    Attributes:
        max_seq_len: Most tokens of a text, begin and end token included.
        folder: Of the run. Rank 0 writes validation_captions.jsonl and retrieval.json there.
    """

    chosen: list[Sample]
    tokenizer: Tokenizer
    max_seq_len: int
    folder: Path
    _epoch: int = 0
    _num_cut: int = 0
    _records: dict[str, CaptionRecord] = field(default_factory=dict)

    def begin(self, epoch: int) -> None:
        """Reset for a new pass."""
        self._epoch = epoch
        self._records = {}

    def observe(self, observed: ObservedBatch) -> None:
        """Caption those slides of a micro-batch that were chosen."""
        references = {sample.slide.slide_id: list(sample.references) for sample in self.chosen}
        slide_ids = observed.batch.ids
        rows = [row for row, slide_id in enumerate(slide_ids) if slide_id in references]
        if not rows:
            return
        decoder, tokenizer = observed.model.decoder, self.tokenizer
        image_tokens = observed.image_tokens(rows)
        captions = observed.captions(rows)
        probabilities = confidences(decoder, image_tokens, captions, self.max_seq_len, bos_id=tokenizer.bos_id,
                                    eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id)
        slide_vectors = embed_slides(decoder, image_tokens)
        for row, ids, probability, vector in zip(rows, captions, probabilities, slide_vectors, strict=True):
            text_vectors = embed_texts(decoder, tokenizer, references[slide_ids[row]], self.max_seq_len)
            self._records[slide_ids[row]] = CaptionRecord(tokenizer.decode(ids), has_ended(ids, observed.max_length),
                                                          probability, vector, text_vectors)

    def scores(self, world: World) -> dict[str, float]:
        """Scores over the chosen slides of all ranks, by their names in metrics.jsonl."""
        records = self._gather_records(world)
        self._num_cut = sum(not record.finished for record in records)
        references = [list(sample.references) for sample in self.chosen]
        texts, similarity = _cosines(records, references)
        answers = Answers([record.caption for record in records], references, texts, similarity)
        statistics = answers.statistics()
        if world.is_main:
            self._write_captions(records, answers, statistics)
            self._write_similarity(answers)
        all_rows = np.arange(len(records))
        return {VALIDATION + name: statistic(all_rows) for name, statistic in statistics.items()}

    def _gather_records(self, world: World) -> list[CaptionRecord]:
        """Of all ranks, in the order of the chosen slides."""
        by_id: dict[str, CaptionRecord] = {}
        for of_rank in world.gather(self._records):
            by_id |= of_rank
        return [by_id[sample.slide.slide_id] for sample in self.chosen]

    def warnings(self) -> list[str]:
        """How many captions were cut."""
        if not self._num_cut:
            return []
        return [f"{self._num_cut} of {len(self.chosen)} validation captions did not come to their end within "
                f"data.max_seq_len {self.max_seq_len} (finished: false in {CAPTIONS})"]

    def _write_captions(self, records: Sequence[CaptionRecord], answers: Answers,
                        statistics: dict[str, Statistic]) -> None:
        """Write validation_captions.jsonl: a line for each slide, with its scores."""
        ids = [sample.slide.slide_id for sample in self.chosen]
        more = [{"confidence": round(record.confidence, 6), "finished": record.finished} for record in records]
        write_run_file(self.folder / CAPTIONS, caption_lines(self._epoch, ids, answers, statistics, more))

    def _write_similarity(self, answers: Answers) -> None:
        """Write retrieval.json: cosines of the first slides (rows) and the first text of each (columns)."""
        columns = [answers.texts.index(text) for text in answers.first_references()[:MOST_RETRIEVED]]
        similarity = answers.similarity[:MOST_RETRIEVED][:, columns]
        ids = [sample.slide.slide_id for sample in self.chosen[:MOST_RETRIEVED]]
        content = {"ids": ids, "slides": len(self.chosen), "similarity": similarity.round(4).tolist()}
        write_run_file(self.folder / RETRIEVAL, json_text(content))


def _cosines(records: Sequence[CaptionRecord], references: Sequence[list[str]]) -> tuple[list[str], Cosines]:
    """All different texts, and the cosines of slides and texts: equal texts are one candidate."""
    vector_of_text: dict[str, np.ndarray] = {}
    for record, texts in zip(records, references, strict=True):
        vector_of_text |= zip(texts, record.text_vectors, strict=True)
    slide_vectors = np.stack([record.slide_vector for record in records])
    return list(vector_of_text), Cosines(slide_vectors, np.stack(list(vector_of_text.values())))
