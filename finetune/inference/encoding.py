"""Slides on the way to their captions: found in the slide cache, or opened, read and encoded, ahead of the decoding.

Two threads read, a third encodes, and the caller decodes. Memory does not grow with the folder: tiles of at most
`_SLIDES_READ` slides and image tokens of at most `ahead` are held.

Shapes: N tiles of dimension C, n image tokens of dimension D.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from ..checkpoints.hf_folder import model_path
from ..common.errors import UserError
from ..common.files import expand
from ..common.log import logger, notice
from ..common.run_folder import METRICS, SLIDE_CACHE
from ..config.schema import Config
from ..config.yaml_file import load_yaml
from ..data.slide_cache import SlideCache
from ..data.slides import Slide, open_case
from ..data.tile_facts import TileFacts, facts_of, read_facts
from ..data.tile_reader import read_tiles
from .captioner import Captioner
from .memory import memory_errors
from .options import InferenceOptions

_READERS = 2
_SLIDES_READ = 3  # one is being encoded, two are being read
Case = tuple[str, list[list[str]]]  # id, and the files of each of its slides


@dataclass(frozen=True)
class EncodedSlide:
    """A slide's image tokens (n, D) and facts about its tiles, or why there are none."""

    slide_id: str
    tokens: np.ndarray | None = None
    facts: TileFacts | None = None
    error: str | None = None


@dataclass(frozen=True)
class _ReadSlide:
    """A slide with its tiles (N, C), or with its image tokens from the cache."""

    slide: Slide
    facts: TileFacts
    tiles: np.ndarray | None = None
    tokens: np.ndarray | None = None


class SlideEncoder:
    """Encodes slides in order, each alone, so that its tokens do not depend on others.

    Args:
        captioner: With the encoder.
        cache: Where tokens are looked for and kept; None for neither.
        ahead: Most slides that are encoded before the caller takes them.
    """

    def __init__(self, captioner: Captioner, cache: SlideCache | None, ahead: int) -> None:
        self._captioner, self._cache, self._ahead = captioner, cache, ahead
        self._stopped = False
        self._can_store = False

    def encoded(self, cases: Sequence[Case]) -> Iterator[EncodedSlide]:
        """The slides of cases, in order. Close it to end the threads."""
        if self._cache and cases:
            self._can_store = _is_writable(self._cache, len(cases))
        readers = ThreadPoolExecutor(_READERS, "read")
        encoder = ThreadPoolExecutor(1, "encode", self._set_up_thread)
        pending: deque[Future[EncodedSlide]] = deque()
        try:
            one_by_one = self._encode_all(cases, readers)  # runs in the one thread of `encoder`
            for _ in cases:
                pending.append(encoder.submit(next, one_by_one))
                if len(pending) > self._ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            self._stopped = True
            encoder.shutdown(wait=False, cancel_futures=True)
            readers.shutdown(wait=False, cancel_futures=True)

    def _set_up_thread(self) -> None:
        """Autocast for the life of the thread: leaving it would clear the casts of the decoder, which all share. On
        a GPU a stream of its own, beside that of the decoder."""
        self._captioner.precision.autocast().__enter__()
        device = self._captioner.precision.device
        if device.type == "cuda":
            torch.cuda.set_stream(torch.cuda.Stream(device))

    def _read(self, case: Case) -> _ReadSlide:
        """Raises UserError, MemoryError."""
        data = self._captioner.config.data
        slide = open_case(*case, data.h5_key, data.image_dim, data.wanted_encoder)
        tokens = self._cached(slide)
        if tokens is not None:
            return _ReadSlide(slide, read_facts(slide), tokens=tokens)
        tiles = read_tiles(slide)
        # a map is read here, not while the encoder waits
        return _ReadSlide(slide, facts_of(tiles), tiles if tiles.flags.writeable else tiles.copy())

    def _cached(self, slide: Slide) -> np.ndarray | None:
        if self._cache is None or not self._cache.has(slide):
            return None
        try:
            return self._cache.read(slide)
        except UserError as error:
            logger.warning("%s: it is encoded again", error.what)
            return None

    def _encode_all(self, cases: Sequence[Case], readers: ThreadPoolExecutor) -> Iterator[EncodedSlide]:
        """The slides in order; while one is encoded, the next ones are read."""
        reads: deque[tuple[str, Future[_ReadSlide]]] = deque()
        remaining = iter(cases)
        for _ in cases:
            for case in islice(remaining, _SLIDES_READ - len(reads)):
                reads.append((case[0], readers.submit(self._read, case)))
            yield self._encode(*reads.popleft(), readers)

    def _encode(self, slide_id: str, read: Future[_ReadSlide], writers: ThreadPoolExecutor) -> EncodedSlide:
        try:
            with memory_errors(slide_id, "while its tiles are read"):
                found = read.result()
            if found.tokens is not None:
                return EncodedSlide(slide_id, found.tokens, found.facts)
            with memory_errors(found.slide.path, "while its tiles are encoded"):
                tokens = self._tokens(found)
        except UserError as error:
            return EncodedSlide(slide_id, error=error.line())
        if self._can_store and not self._stopped:
            writers.submit(self._store, found.slide, tokens)
        return EncodedSlide(slide_id, tokens, found.facts)

    def _tokens(self, found: _ReadSlide) -> np.ndarray:
        """Raises UserError for tiles that overflow, and what means out of memory."""
        try:
            tokens = self._captioner.encode(found.tiles)
        except torch.OutOfMemoryError:  # of a GPU: once more without the memory that torch keeps for later
            torch.cuda.empty_cache()
            tokens = self._captioner.encode(found.tiles)
        if not np.isfinite(tokens).all():
            raise UserError(found.slide.path, "its tiles make the model overflow",
                            "check how its features were extracted")
        return tokens

    def _store(self, slide: Slide, tokens: np.ndarray) -> None:
        try:
            self._cache.write((slide, None), tokens)
        except UserError as error:
            if self._can_store:
                logger.warning("%s: the slide cache is not written any more: %s", error.where, error.what)
            self._can_store = False


def slide_cache(captioner: Captioner, options: InferenceOptions) -> SlideCache | None:
    """The cache of the encoder's output, by default the one of the training; for a folder of slides only.

    None also where Prism was trained: its output is of this checkpoint alone.
    """
    if options.embeddings_dir is None or options.latents_cache == "null" or not captioner.config.prism.freeze:
        return None
    folder = expand(options.latents_cache)
    if options.latents_cache == "auto":
        folder = _default_cache(options)
    prism = captioner.model.prism
    return SlideCache.of(folder, prism.sha256, captioner.precision.name, *captioner.model.image_tokens_shape)


def _default_cache(options: InferenceOptions) -> Path:
    """The one of the training; beside a model that is in no run folder; of Prism itself in this folder."""
    if options.checkpoint is None:
        return expand(SLIDE_CACHE)
    model = model_path(expand(options.checkpoint))
    if model.is_dir() or not (model.parent / METRICS).exists():
        return model.parent / SLIDE_CACHE
    config = model.parent / "config.yaml"
    setting = load_yaml(config, Config()).data.latents_cache if config.exists() else None
    is_folder = setting not in (None, "auto")
    return expand(setting) if is_folder else model.parent.parent / SLIDE_CACHE


def _is_writable(cache: SlideCache, num_slides: int) -> bool:
    """Whether the encodings of so many slides fit; logs where they go. A full disk is no reason not to caption."""
    try:
        need, free = cache.check_disk(num_slides)
    except UserError as error:
        logger.warning("%s: %s: encodings that are there are used, others are not kept", error.where, error.what)
        return False
    notice("slide cache %s: encodings are kept, up to %.2f GB of %.0f GB free (--latents_cache null: none)",
           cache.short_name, need / 1e9, free / 1e9, indent=2)
    return True
