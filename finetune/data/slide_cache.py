"""The slide cache: a frozen Prism encodes each slide once; its output is kept as one `.npy` file per slide.

Never stale: the name of a file is a hash of the weights, the precision they ran in and the H5 file's path, size, time
of change and dataset, so whatever changes is encoded again under another name. Never half-written: files are written
under a temporary name and renamed. Never believed when damaged: see `cached_encoding`; what cannot be used is encoded
again, with a warning. Runs can share files; any can be deleted at any time. Of training slides it may also hold views,
encodings of some of the tiles (`views`).

Shapes: B slides, N tiles of C numbers, n image tokens of D numbers.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch

from ..common.distributed import ALONE, World
from ..common.errors import UserError
from ..common.files import remove_leftovers, write_atomically
from ..common.log import logger
from ..common.progress import progress
from .cached_encoding import IDENTITY_BYTES, DamagedEncoding, EncodingFormat, FileState
from .encoding_groups import (
    Encode,
    Entry,
    describe_entries,
    encode_or_halve,
    groups_of_rank,
    groups_with_views,
    num_tiles_of,
    read_ahead,
    read_group,
)
from .slides import Slide
from .tile_reader import read_tiles
from .views import View, view_of_epoch

_FORMAT = 1  # part of every name: files of another layout are never read
_SPARE_BYTES = 1 << 30  # left free on the disk
_WAIT_SECONDS = 120  # for files of other machines


def token_type(precision: str) -> str:
    """The numpy type that image tokens are kept in; the rounding of an encoder in half precision is no finer."""
    return "float32" if precision == "fp32" else "float16"


@dataclass
class SlideCache:
    """Image tokens (n, D) of slides: the slide embedding, then the image latents. A `Reader` for `BatchLoader`.

    folder: of the files.
    key: hash of the encoder's weights and precision.
    tokens, width: n and D.
    dtype: float16 for encoders that ran in half precision (their own rounding is no finer), otherwise float32.
    """

    folder: Path
    key: str
    tokens: int
    width: int
    dtype: str
    _encode_again: _Repair | None = field(default=None, init=False, repr=False)

    @classmethod
    def of(cls, folder: Path, sha256: str, precision: str, tokens: int, width: int) -> SlideCache:
        """The cache for one encoder.

        Args:
            folder: of all caches.
            sha256: fingerprint of Prism's weights.
            precision: fp32, bf16 or fp16.
            tokens, width: shape (n, D) of an entry.
        """
        key = hashlib.sha256(f"{_FORMAT} {sha256} {precision} {tokens} {width}".encode()).hexdigest()[:16]
        return cls(folder / key, key, tokens, width, token_type(precision))

    @property
    def shape(self) -> tuple[int, int]:
        """(n, D) of an entry."""
        return self.tokens, self.width

    @property
    def slide_bytes(self) -> int:
        return self.tokens * self.width * np.dtype(self.dtype).itemsize

    @cached_property
    def _format(self) -> EncodingFormat:
        return EncodingFormat(self.shape, self.dtype)

    def path(self, slide: Slide, view: View | None = None) -> Path:
        """Where the tokens of exactly these files, in this order, or of a view of them belong."""
        files = [(os.path.realpath(p.path), p.size, p.mtime_ns, p.key, p.num_tiles) for p in slide.parts]
        hashed = files[0] if len(files) == 1 else files
        if view:  # its tiles depend on the id, too
            hashed = (files, slide.slide_id, view.seed, view.number)
        name = hashlib.sha256(repr(hashed).encode("utf-8", "surrogatepass")).hexdigest()
        return self.folder / name[:2] / f"{name[2:34]}.npy"  # 256 folders: 100 000 files in one are slow to list

    def _identity(self, slide: Slide, view: View | None) -> bytes:
        """What a file is the encoding of: its place, and a sum over tiles, as a file may change without a trace."""
        what = str(self.path(slide, view).relative_to(self.folder)), self.key, [p.tile_sum for p in slide.parts]
        return hashlib.blake2b(repr(what).encode(), digest_size=IDENTITY_BYTES).digest()

    def __call__(self, slide: Slide, epoch: int = 0) -> np.ndarray:
        """Tokens (n, D) of all tiles of a slide, the same in every epoch. Raises UserError."""
        return self.read(slide)

    def into(self, row: np.ndarray, slide: Slide, epoch: int) -> None:
        """As a call, into a row (n, D) of a batch."""
        self.read_into(row, slide)

    def read(self, slide: Slide, view: View | None = None) -> np.ndarray:
        """Tokens (n, D) of all tiles of a slide, or of a view of it.

        They are read, not mapped: all of them are needed, and so a loader thread waits for the disk. Where `fill` has
        been given the encoder, what cannot be read is encoded again.

        Raises:
            UserError: the file is missing or damaged.
        """
        tokens = np.empty(self.shape, self.dtype)
        try:
            self.read_into(tokens, slide, view)
        except DamagedEncoding as damage:
            damage.repair()
            self.read_into(tokens, slide, view)
        return tokens

    def read_into(self, tokens: np.ndarray, slide: Slide, view: View | None = None) -> None:
        """Read into `tokens` (n, D), a contiguous array of this cache's type such as a row of a batch: without a copy.

        Raises DamagedEncoding, a UserError, for a file that is missing or damaged.
        """
        path = self.path(slide, view)
        problem = self._format.read_into(tokens, path, self._identity(slide, view))
        if problem is None:
            return
        damage = DamagedEncoding(path, f"the cached slide {slide.slide_id} {problem}",
                                 "start again: it will be encoded again")
        if self._encode_again is not None:
            damage.repair = partial(self._encode_again, (slide, view), damage)
        raise damage

    @property
    def short_name(self) -> str:
        """The folder as a log shows it: its parents may contain a user's name."""
        return "/".join(self.folder.parts[-2:])

    def has(self, slide: Slide, view: View | None = None) -> bool:
        """Whether a file is there, of the right size: a crash of the machine can leave one that is too short."""
        return self._state((slide, view)) in (FileState.WHOLE, FileState.WITHOUT_SUM)

    def _state(self, entry: Entry) -> FileState:
        return self._format.state(self.path(*entry))

    def _missing(self, entries: Sequence[Entry]) -> list[Entry]:
        return [entry for entry in entries if not self.has(*entry)]

    def fill(self, slides: Sequence[Slide], encode: Encode, workers: int = 2, world: World = ALONE, *,
             views: Sequence[View] = (), with_views: Collection[str] = ()) -> int:
        """Encode the slides, and views of some of them, that are missing.

        The groups that are encoded together depend neither on what is there already, so that a killed run ends with
        the same bits as an uninterrupted one, nor on the rank that encodes them, so that ranks that see a shared folder
        at different moments leave no gap between them.

        Args:
            slides: all slides of the run.
            encode: runs in this thread.
            workers: threads that read and write meanwhile.
            world: the processes that share the work; each returns when every slide is there.
            views: to encode as well.
            with_views: ids of the slides of which.

        Returns:
            How many encodings were missing.

        Raises:
            UserError: the disk is too small, or a slide cannot be encoded; what is done by then is kept.
        """
        groups = groups_with_views(slides, views, with_views)
        self._encode_again = _Repair(self, encode, partial(groups_with_views, slides, views, with_views))
        entries = list(itertools.chain.from_iterable(groups))
        missing = self._missing_and_damaged(entries)
        if missing:
            need, free = self.check_disk(len(missing))
            self._remove_leftovers()
            logger.info("slide cache %s: %d to encode (of %s), %.2f GB of %.0f GB free", self.short_name, len(missing),
                        describe_entries(entries), need / 1e9, free / 1e9)
            self._encode(groups_of_rank(groups, missing, world), encode, max(1, workers))
        else:
            logger.info("slide cache %s: all %s are there", self.short_name, describe_entries(entries))

        # files of another rank may be visible here later than to it
        if world.any(bool(missing)):
            self._wait_for(entries)
        return len(missing)

    def _missing_and_damaged(self, entries: Sequence[Entry]) -> list[Entry]:
        """The entries to encode; says what else it finds."""
        by_state: dict[FileState, list[Entry]] = defaultdict(list)
        for entry in entries:
            by_state[self._state(entry)].append(entry)
        damaged, without_sum = by_state[FileState.DAMAGED], by_state[FileState.WITHOUT_SUM]
        for entry in damaged:
            self._require_no_folder(self.path(*entry))
        if damaged:
            logger.warning("%s and %d more files of the slide cache have a wrong size: encoded again",
                           self.path(*damaged[0]).name, len(damaged) - 1)
        if without_sum:
            logger.info("slide cache %s: %d files of an earlier version have no checksum and are used as they are",
                        self.short_name, len(without_sum))
        return by_state[FileState.MISSING] + damaged

    def _remove_leftovers(self) -> None:
        """Remove the files that killed fills were writing."""
        for folder in self.folder.iterdir():
            remove_leftovers(folder)

    def _encode(self, groups: list[list[Entry]], encode: Encode, workers: int) -> None:
        """Encode what is missing of some groups, while others are read and written."""
        bar = progress(None, "encoding slides", sum(map(num_tiles_of, groups)), "tile")
        start = time.monotonic()
        with ThreadPoolExecutor(workers) as pool, bar:
            writes: deque[Future] = deque()
            num_encoded = 0
            for group, tiles, mask in read_ahead(pool, groups):
                for entry, tokens in self._encode_group(group, tiles, mask, encode):
                    writes.append(pool.submit(self.write, entry, tokens))
                while writes and writes[0].done():
                    writes.popleft().result()  # raises at once if the disk is full

                num_encoded += len(group)
                rate = num_encoded / max(time.monotonic() - start, 1e-9)
                bar.set_postfix_str(f"{rate:.1f} slides/s", refresh=False)
                bar.update(num_tiles_of(group))

            for write in writes:
                write.result()

    def _encode_group(self, group: list[Entry], tiles: torch.Tensor, mask: torch.Tensor, encode: Encode,
                      ) -> list[tuple[Entry, np.ndarray]]:
        """(entry, tokens (n, D)) of the entries that are missing, from the tiles (B, N, C) and mask (B, N) of all."""
        missing = self._missing(group)
        if not missing:  # another run that fills this folder was faster
            return []
        rows = self.encode_all(group, tiles, mask, encode)
        return [(entry, row) for entry, row in zip(group, rows, strict=True) if entry in missing]

    def encode_all(self, group: list[Entry], tiles: torch.Tensor, mask: torch.Tensor, encode: Encode) -> np.ndarray:
        """The tokens (B, n, D) of a group, as they are kept, from its tiles (B, N, C) and mask (B, N). Raises
        UserError."""
        tokens = encode_or_halve(group, tiles, mask, encode)
        self._require_finite(group, tokens)
        return tokens.float().cpu().numpy().astype(self.dtype)

    def _wait_for(self, entries: Sequence[Entry]) -> None:
        """Return when this machine sees every file: a network drive shows those of another one up to a minute late."""
        deadline = time.monotonic() + _WAIT_SECONDS
        late = list(entries)
        while True:
            late = self._missing(late)
            if not late:
                return
            if time.monotonic() > deadline:
                raise UserError(self.path(*late[0]), f"is not there, nor are {len(late) - 1} more cached slides",
                                "with several machines data.latents_cache must be on a disk that all of them share")
            time.sleep(0.5)

    def write(self, entry: Entry, tokens: np.ndarray) -> None:
        """Put the tokens (n, D) of a slide or view into the cache. Raises UserError."""
        path = self.path(*entry)
        self._require_no_folder(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, self._format.content(tokens, self._identity(*entry)), durable=True)
        except OSError as error:
            raise UserError(path, f"cannot be written ({error.strerror})",
                            "free some space, or set data.latents_cache to another folder or null") from None

    @staticmethod
    def _require_no_folder(path: Path) -> None:
        """What stands where a file or its folder belongs, and cannot be replaced by it, may be of value to someone."""
        if path.is_dir():
            raise UserError(path, "is a folder, and the file of a cached slide belongs there", "move or delete it")
        if path.parent.is_file():
            raise UserError(path.parent, "is a file, and a folder of the slide cache belongs there",
                            "move or delete it")

    def check_disk(self, missing: int) -> tuple[int, int]:
        """Make the folder. Returns the bytes that so many encodings need, and those that are free.

        Raises UserError if they do not fit on the disk.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise UserError(self.folder, f"cannot be written ({error.strerror})",
                            "set data.latents_cache to another folder or null") from None
        need = missing * self.slide_bytes
        if need + _SPARE_BYTES > free:
            raise UserError(self.folder, f"the slide cache needs {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free",
                            "set data.latents_cache to a folder on a larger disk, or to null")
        return need, free

    def _require_finite(self, group: list[Entry], tokens: torch.Tensor) -> None:
        """NaN or infinity in one tile reaches all tokens of its slide, so the output is checked, not the input."""
        limit = float(np.finfo(self.dtype).max)
        for (slide, _), row in zip(group, tokens, strict=True):
            is_finite = row.float().abs().max().item() <= limit  # false for NaN
            if not is_finite:
                read_tiles(slide)  # raises the error that counts the bad tiles
                raise UserError(slide.path, "Prism's output for this slide is not finite",
                                "use training.precision=fp32, or leave the slide out")


class _Repair:
    """Encodes again what turns out to be damaged after the cache was filled, once each."""

    def __init__(self, cache: SlideCache, encode: Encode, groups: Callable[[], list[list[Entry]]]) -> None:
        self._cache, self._encode, self._groups = cache, encode, groups
        self._done: set[Entry] = set()

    def __call__(self, entry: Entry, damage: DamagedEncoding) -> None:
        """Replace the file of an entry. Raises UserError."""
        group = next((group for group in self._groups() if entry in group), None)
        if group is None:
            raise damage
        if entry in self._done:
            raise UserError(damage.where, f"{damage.what}, after it was encoded again",
                            "is the disk failing? set data.latents_cache to a folder on another one")
        self._done.add(entry)
        logger.warning("slide cache: %s: %s; it is encoded again", os.path.basename(damage.where), damage.what)
        rows = self._cache.encode_all(group, *read_group(group), self._encode)
        self._cache.write(entry, rows[group.index(entry)])


@dataclass(frozen=True)
class ViewReader:
    """Reads one of the encodings of a slide, drawn by (seed, epoch, id): a `Reader` for training slides.

    num_encodings: of a slide, the one of all tiles included.
    """

    cache: SlideCache
    num_encodings: int
    seed: int

    @property
    def shape(self) -> tuple[int, int]:
        """(n, D) of an entry."""
        return self.cache.shape

    @property
    def dtype(self) -> str:
        """float16 or float32."""
        return self.cache.dtype

    def __call__(self, slide: Slide, epoch: int) -> np.ndarray:
        """Tokens (n, D) of a slide in an epoch. Raises UserError."""
        return self.cache.read(slide, view_of_epoch(slide, self.num_encodings, self.seed, epoch))

    def into(self, row: np.ndarray, slide: Slide, epoch: int) -> None:
        """As a call, into a row (n, D) of a batch."""
        self.cache.read_into(row, slide, view_of_epoch(slide, self.num_encodings, self.seed, epoch))
