"""Answers by looking up: texts of the training slides that fit a new slide, found without the captioner.

A captioner is of use where it is better than these. N training slides, S slides, M different texts, D image dimension.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from ..common.score_table import NEAREST_TEXT, PROBE_TEXT
from ..data.batch import encode_text
from ..data.tokenizer import Tokenizer
from .captioner import CaptionDecoder
from .embeddings import embed_slides
from .linear_probe import LinearProbe
from .probe_tokens import latent_mean

_MOST_TEXTS = 20_000  # different ones that the probe weighs: 160 MB for 2000 tokens


class SlideVectors(NamedTuple):
    """What look-ups need of S slides, float32.

    Attributes:
        contrastive: unit vectors (S, dim_latents).
        embedding: Prism's slide embeddings, (S, D).
        latent_mean: means of Prism's image latents, (S, D); of the slide embedding if there are no latents.
    """

    contrastive: np.ndarray
    embedding: np.ndarray
    latent_mean: np.ndarray

    @classmethod
    def of(cls, decoder: CaptionDecoder, image_tokens: torch.Tensor) -> SlideVectors:
        """Of image tokens (S, n, D): the slide embedding, then latents or nothing."""
        tokens = image_tokens.float()
        return cls(embed_slides(decoder, image_tokens), tokens[:, 0].cpu().numpy(), latent_mean(tokens).cpu().numpy())

    def rows(self) -> list[SlideVectors]:
        """Those of each slide, as arrays of one row."""
        return [SlideVectors(*(array[i:i + 1] for array in self)) for i in range(len(self.embedding))]

    @classmethod
    def join(cls, parts: Sequence[SlideVectors]) -> SlideVectors:
        """Those of several slides or batches."""
        return cls(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


@dataclass(frozen=True)
class TrainingTexts:
    """The first text of each training slide, and what finds one of them for a new slide.

    Attributes:
        texts: N.
        contrastive: unit vectors (N, dim_latents); None without the contrastive loss, or of other weights.
        embedding: Prism's slide embeddings (N, D), None if they were not kept.
        probe: None if nothing could be predicted.
        max_seq_len: most tokens of a text, begin and end token included.
    """

    texts: list[str]
    contrastive: np.ndarray | None
    embedding: np.ndarray | None
    probe: LinearProbe | None
    tokenizer: Tokenizer
    max_seq_len: int

    @classmethod
    def of_index(cls, index: dict[str, Any], tokenizer: Tokenizer, max_seq_len: int, *,
                 same_weights: bool = True) -> TrainingTexts:
        """Those of nearest.pt. same_weights: whether its contrastive embeddings are of the model that is asked."""
        contrastive = index["embeddings"] if same_weights else None
        embedding, probe = index.get("slide_embeddings"), index.get("probe")
        return cls([texts[0] for texts in index["texts"]],
                   None if contrastive is None else contrastive.float().numpy(),
                   None if embedding is None else embedding.float().numpy(),
                   None if probe is None else LinearProbe.from_dict(probe), tokenizer, max_seq_len)

    @cached_property
    def counts(self) -> dict[str, int]:
        """{text: its number of slides}, the most common first."""
        return dict(Counter(self.texts).most_common())

    @cached_property
    def candidates(self) -> list[str]:
        """The M texts that the probe weighs: all different ones, or the most common."""
        return list(self.counts)[:_MOST_TEXTS]

    @cached_property
    def candidate_places(self) -> dict[str, int]:
        """{candidate: its place among them}."""
        return {text: place for place, text in enumerate(self.candidates)}

    @cached_property
    def candidate_ids(self) -> list[list[int]]:
        """Token ids of the candidates, with begin and end token."""
        return [self.encode(text) for text in self.candidates]

    def encode(self, text: str) -> list[int]:
        """[begin, ..., end] as in training."""
        return encode_text(self.tokenizer, text, self.max_seq_len)[0]

    def common(self) -> str:
        """The most common text."""
        return next(iter(self.counts))

    @cached_property
    def centred(self) -> np.ndarray | None:
        """Prism's slide embeddings less their mean, which most of an embedding is, as unit vectors (N, D)."""
        return None if self.embedding is None else unit_rows(self.embedding - self.embedding.mean(0))

    def cosines(self, slides: SlideVectors) -> dict[str, np.ndarray]:
        """{space: cosines of S slides and the training slides, (S, N)}: `contrastive` where it is trained, and `prism`
        where the embeddings were kept."""
        found = {}
        if self.contrastive is not None:
            found["contrastive"] = slides.contrastive @ self.contrastive.T
        if self.embedding is not None:
            found["prism"] = unit_rows(slides.embedding - self.embedding.mean(0)) @ self.centred.T
        return found

    def nearest(self, slides: SlideVectors) -> list[str] | None:
        """The text of the training slide nearest to each of S slides, in the contrastive space if there is one,
        otherwise in Prism's; None with neither."""
        cosines = self.cosines(slides)
        if not cosines:
            return None
        first = next(iter(cosines.values()))
        return [self.texts[i] for i in first.argmax(1)]

    def by_probe(self, slides: SlideVectors) -> list[str] | None:
        """The training text that the probe finds most probable for each of S slides, None without a probe."""
        if self.probe is None:
            return None
        return [self.candidates[i] for i in self.probe_scores(slides).argmax(1)]

    def probe_scores(self, slides: SlideVectors) -> np.ndarray:
        """Log probability of each candidate for each slide up to a constant, common texts being probable, (S, M)."""
        log_counts = np.log([self.counts[text] for text in self.candidates])
        return self.probe.text_scores(slides.latent_mean, self.candidate_ids) + log_counts

    def lookups(self, slides: SlideVectors) -> dict[str, list[str]]:
        """{how it is looked up: the text of each of S slides}, under the names of the columns of the score table."""
        answers = {NEAREST_TEXT: self.nearest(slides), PROBE_TEXT: self.by_probe(slides)}
        return {name: texts for name, texts in answers.items() if texts is not None}


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Each row (N, D) at length 1; a row of zeros stays."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
