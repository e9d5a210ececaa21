"""Captions of some validation slides, written and scored after each epoch (`training.eval_captions`)."""

from __future__ import annotations

import difflib
import json
import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..common.distributed import World
from ..common.errors import UserError
from ..common.run_folder import MOST_RETRIEVED, RETRIEVAL
from ..config.schema import Config, GenerationOptions
from ..data.batch import Batch, Sample
from ..data.tokenizer import Tokenizer
from ..evaluation.scoring import RETRIEVAL_SCORES, TEXT_SCORES, Answers
from ..models.captioner import SlideCaptioner
from ..models.embeddings import embed_slides, embed_texts
from ..models.generation import confidences, generate

FILE = "validation_captions.jsonl"
SHORT = ("val_bleu_4", "val_rouge_l", "val_exact_match")  # of the scores, what a line of the log has room for
_ALWAYS = ("val_loss", "val_caption_loss", "val_contrastive_loss", "val_shuffled_gap", "val_distinct_captions")
_HIGHER_IS_BETTER = {"val_shuffled_gap", "val_distinct_captions", *(
    f"val_{score}" for score in (*TEXT_SCORES, *RETRIEVAL_SCORES) if not score.endswith("median_rank"))}
EVALUATED = tuple(f"val_{score}" for score in (*TEXT_SCORES, *RETRIEVAL_SCORES))


def check_monitor(config: Config) -> None:
    """Raises UserError for a `training.monitor` that no epoch of this run will have."""
    training = config.training
    if training.eval_captions and not config.trains_captions:
        raise UserError("training.eval_captions", "the captions are not trained (model.caption_loss_weight is 0)",
                        "set it to 0")
    known = [*_ALWAYS[:3], *(_ALWAYS[3:] if config.trains_captions else ()), *EVALUATED]
    name = training.monitor
    if name not in known and training.loss is None:  # parts of a loss of one's own are known once it has been called
        near = difflib.get_close_matches(name, known, n=1)
        raise UserError("training.monitor", f"{name!r} is no score of this run",
                        f"did you mean {near[0]}?" if near else f"one of {', '.join(known)}")
    if name in EVALUATED and not training.eval_captions:
        raise UserError("training.monitor", f"{name} needs captions", "set training.eval_captions to, say, 100")


def higher_is_better(monitor: str) -> bool:
    """Whether the best model has the highest of this; of losses, one's own too, and of ranks it has the lowest."""
    return monitor in _HIGHER_IS_BETTER


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
        tokenizer, tokens = self.tokenizer, batch.image_tokens[rows].to(model.decoder.temperature.dtype)
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
        per_slide = [name for name in TEXT_SCORES if name != "distinct_share"]
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
        return {f"val_{name}": score(everyone) for name, score in statistics.items()}


def _write(path: Path, text: str) -> None:
    """What the last epoch gave, whole at any moment. Raises UserError."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(path, f"cannot be written ({error.strerror})",
                        "free some space, then --resume auto; the last checkpoint is good") from None
