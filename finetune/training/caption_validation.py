"""Captions of some validation slides, written and scored after each epoch (`training.eval_captions`)."""

from __future__ import annotations

import difflib
import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from prism import GenerationOptions

from ..common.distributed import World
from ..common.errors import UserError
from ..common.files import write_atomically
from ..common.run_folder import MOST_RETRIEVED, RETRIEVAL
from ..common.score_table import SCORES, VALIDATION, Kind, score_names
from ..config.schema import Config
from ..data.batch import Batch, Sample
from ..data.tokenizer import Tokenizer
from ..evaluation.scoring import Answers
from ..models.captioner import SlideCaptioner
from ..models.embeddings import embed_slides, embed_texts
from ..models.generation import confidences, generate

FILE = "validation_captions.jsonl"


def check_monitor(config: Config) -> None:
    """Raises UserError for a `training.monitor` that no epoch of this run will have."""
    training = config.training
    if training.eval_captions and not config.trains_captions:
        raise UserError("training.eval_captions", "the captions are not trained (model.caption_loss_weight is 0)",
                        "set it to 0")
    caption_scores = validation_names("text", "retrieval")
    known = validation_names("loss")
    if config.trains_captions:
        known += validation_names("collapse")
    known += caption_scores
    name = training.monitor
    if name not in known and training.loss is None:  # parts of a loss of one's own are known once it has been called
        near = difflib.get_close_matches(name, known, n=1)
        raise UserError("training.monitor", f"{name!r} is no score of this run",
                        f"did you mean {near[0]}?" if near else f"one of {', '.join(known)}")
    if name in caption_scores and not training.eval_captions:
        raise UserError("training.monitor", f"{name} needs captions", "set training.eval_captions to, say, 100")


def validation_names(*kinds: Kind) -> list[str]:
    """The names in metrics.jsonl of the validation scores of these kinds."""
    return [VALIDATION + name for name in score_names(*kinds)]


def not_in_log_line(monitor: str) -> set[str]:
    """The names in metrics.jsonl for which the log line of an epoch has no room; it always shows `monitor`."""
    return {VALIDATION + score.name for score in SCORES.values() if not score.log_line} - {monitor}


def choose(samples: list[Sample], count: int, seed: int) -> list[Sample]:
    """`count` of the samples, the same in each epoch and after a resume."""
    ordered = sorted(samples, key=lambda s: s.slide.slide_id)
    return random.Random(seed).sample(ordered, min(count, len(ordered)))


@dataclass
class CaptionEvaluation:
    """Captions of the chosen samples, greedily decoded while validating; draws nothing from a random generator."""

    chosen: list[Sample]
    tokenizer: Tokenizer
    max_seq_len: int
    folder: Path
    _records: dict[str, dict[str, Any]] = field(default_factory=dict)

    def begin(self) -> None:
        """Forget the last epoch."""
        self._records = {}

    def see(self, model: SlideCaptioner, batch: Batch) -> None:
        """Caption those of a validation batch that were chosen; its slides are encoded: `image_tokens` (B, n, D)."""
        references = {s.slide.slide_id: list(s.references) for s in self.chosen}
        rows = [i for i, slide_id in enumerate(batch.ids) if slide_id in references]
        if not rows:
            return
        tokenizer, tokens = self.tokenizer, batch.image_tokens[rows].to(model.decoder.dtype)
        options = GenerationOptions(max_length=self.max_seq_len)
        special = {name: getattr(tokenizer, name) for name in ("bos_id", "eos_id", "pad_id")}
        captions = generate(model.decoder, tokens, options, **special)
        sure = confidences(model.decoder, tokens, captions, self.max_seq_len, **special)
        vectors = embed_slides(model.decoder, tokens)
        for row, ids, confidence, vector in zip(rows, captions, sure, vectors, strict=True):
            texts = references[batch.ids[row]]
            self._records[batch.ids[row]] = {
                "caption": tokenizer.decode(ids), "references": texts, "confidence": confidence, "vector": vector,
                "text_vectors": embed_texts(model.decoder, tokenizer, texts, self.max_seq_len)}

    def scores(self, epoch: int, world: World) -> dict[str, float]:
        """Scores over the chosen slides, of all ranks, by their name in metrics.jsonl; rank 0 writes
        validation_captions.jsonl, and retrieval.json with the cosines of the first slides (rows) and their texts."""
        seen = {slide_id: record for of_rank in world.gather(self._records) for slide_id, record in of_rank.items()}
        records = [seen[s.slide.slide_id] for s in self.chosen]
        references = [r["references"] for r in records]
        vectors = {text: v for r in records for text, v in zip(r["references"], r["text_vectors"], strict=True)}
        similarity = np.stack([r["vector"] for r in records]) @ np.stack(list(vectors.values())).T
        statistics = Answers([r["caption"] for r in records], references, list(vectors), similarity).statistics()
        per_slide = [name for name in score_names("text") if SCORES[name].per_slide]
        lines = [{"epoch": epoch, "id": sample.slide.slide_id, "caption": r["caption"], "references": r["references"],
                  "scores": {name: round(statistics[name](np.array([i])), 6) for name in per_slide},
                  "confidence": round(r["confidence"], 6)}
                 for i, (sample, r) in enumerate(zip(self.chosen, records, strict=True))]
        if world.is_main:
            _write(self.folder / FILE, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
            names, first = list(vectors), slice(MOST_RETRIEVED)
            columns = [names.index(texts[0]) for texts in references[first]]
            _write(self.folder / RETRIEVAL, json.dumps({"ids": [line["id"] for line in lines[first]],
                                                        "similarity": similarity[first, columns].round(4).tolist()}))
        everyone = np.arange(len(records))
        return {VALIDATION + name: score(everyone) for name, score in statistics.items()}


def _write(path: Path, text: str) -> None:
    """What the last epoch gave, whole at any moment. Raises UserError."""
    try:
        write_atomically(path, text)
    except OSError as error:
        raise UserError(path, f"cannot be written ({error.strerror})",
                        "free some space, then --resume auto; the last checkpoint is good") from None
