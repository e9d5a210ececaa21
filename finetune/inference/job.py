"""A job: the slides of a folder are captioned in batches, and each record is written as soon as it is there.

The batches are consecutive slides of the job, whatever is done already: a job that was interrupted and goes on ends
with the same bits as an uninterrupted one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from tqdm import tqdm

from prism import GenerationOptions

from ..common.errors import UserError
from ..common.log import logger
from ..common.progress import progress
from ..data.slide_cache import SlideCache
from ..models.training_texts import SlideVectors
from .captioner import Captioner
from .encoding import EncodedSlide, SlideEncoder
from .interruption import StopSignals
from .memory import memory_errors
from .record_file import RecordFile
from .records import Record, new_record, print_record

_SLIDES = 16  # decoded together: more gain little on two cores, where products of 16 rows are bound by arithmetic
_ROWS = 32  # most sequences decoded together, beams included


@dataclass
class Job:
    """The slides to caption and all that belongs to it.

    Attributes:
        cases: {id: the files of each of its slides}.
        cache: Of the encoder's output, None for none.
        made_from: {id: what its record is made from}.
        complete: Adds to the record of a captioned slide what its unit vector (dim_latents,) gives.
        brief: Print a record on one line.
        keep_vectors: Fill `vectors` for the scores, those of slides that were captioned earlier included.
    """

    captioner: Captioner
    cases: dict[str, list[list[str]]]
    texts: list[str]
    generation: GenerationOptions
    cache: SlideCache | None
    file: RecordFile
    made_from: dict[str, str]
    complete: Callable[[Record, np.ndarray], None]
    keep_vectors: bool
    brief: bool = False
    vectors: dict[str, SlideVectors] = field(default_factory=dict)

    def run(self, signals: StopSignals) -> None:
        """Caption what has no record yet. Raises UserError if a record cannot be written, Interrupted."""
        batches = [(ids, self._to_encode(ids)) for ids in self._batches()]
        wanted = [(case_id, self.cases[case_id]) for _, to_encode in batches for case_id in to_encode]
        encoder = SlideEncoder(self.captioner, self.cache, ahead=self._batch_size)
        bar = progress(None, "captioning", len(self.cases), "slide", initial=len(self.cases) - len(wanted))
        with bar, closing(encoder.encoded(wanted)) as encoded:
            for ids, to_encode in batches:
                slides = list(islice(encoded, len(to_encode)))
                self._caption(ids, slides, signals)
                bar.update(len(slides))

    @property
    def _batch_size(self) -> int:
        return max(1, min(_SLIDES, _ROWS // self.generation.num_beams))

    def _batches(self) -> Iterator[list[str]]:
        ids = iter(self.cases)
        while batch := list(islice(ids, self._batch_size)):
            yield batch

    def _to_encode(self, ids: list[str]) -> list[str]:
        """Those of a batch whose image tokens are needed: all, none, or those that failed before."""
        missing = [case_id for case_id in ids if case_id not in self.file]
        if self.keep_vectors:
            return ids
        if missing and self.file.failed_before.issuperset(missing):
            return missing
        return ids if missing else []

    def _caption(self, ids: list[str], slides: list[EncodedSlide], signals: StopSignals) -> None:
        """Write and print the records of a batch that are missing."""
        if all(case_id in self.file for case_id in ids):
            self._add_vectors([slide for slide in slides if slide.error is None])
            return
        vectors: dict[str, SlideVectors] = {}
        for record in self._records(slides, vectors):
            if record["id"] not in self.file:
                self._write(record, vectors.get(record["id"]), signals)
        if self.keep_vectors:
            self.vectors |= vectors

    def _records(self, slides: list[EncodedSlide], vectors: dict[str, SlideVectors]) -> list[Record]:
        """The records of a batch, in its order."""
        usable = [slide for slide in slides if slide.error is None]
        records = {record["id"]: record for record in self._describe(usable, vectors)}
        for slide in slides:
            if slide.error is not None:
                records[slide.slide_id] = new_record(slide.slide_id, error=slide.error)
        return [records[slide.slide_id] for slide in slides]

    def _write(self, record: Record, vectors: SlideVectors | None, signals: StopSignals) -> None:
        """Complete a record, write it, print it. vectors: of its slide, None if that failed."""
        if record["error"] is None:
            self.complete(record, vectors.contrastive[0])
        record["made_from"] = self.made_from[record["id"]]
        with signals.writing():
            self.file.append(record)
        with tqdm.external_write_mode(file=sys.stdout):  # not through the progress bar
            print_record(record, brief=self.brief)

    def _describe(self, slides: list[EncodedSlide], vectors: dict[str, SlideVectors]) -> Iterator[Record]:
        """The records of encoded slides. What does not fit into memory is halved, down to one slide."""
        if not slides:
            return
        ids = [slide.slide_id for slide in slides]
        try:
            with memory_errors(ids[0], "while it is captioned"):
                tokens = np.stack([slide.tokens for slide in slides])
                records = self.captioner.describe_encoded(ids, tokens, self.texts, self.generation, vectors,
                                                          [slide.facts for slide in slides])
            yield from records
            return
        except UserError as error:
            why = error
        if len(slides) == 1:
            yield new_record(slides[0].slide_id, error=why.line())
            return
        half = len(slides) // 2
        logger.warning("%s: captioning %d slides together instead of %d", why.what, half, len(slides))
        for part in (slides[:half], slides[half:]):
            yield from self._describe(part, vectors)

    def _add_vectors(self, slides: list[EncodedSlide]) -> None:
        """Those of a batch whose captions are there already."""
        if slides:
            ids = [slide.slide_id for slide in slides]
            found = self.captioner.look_again(ids, np.stack([slide.tokens for slide in slides]), self.generation)
            self.vectors.update(zip(ids, found.rows(), strict=True))
