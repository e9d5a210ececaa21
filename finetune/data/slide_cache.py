"""The slide cache: a frozen Prism encodes each slide once; its output is kept as one `.npy` file per slide.

Never stale: the name of a file is a hash of the weights, the precision they ran in and the H5 file's path, size, time
of change and dataset, so whatever changes is encoded again under another name. Never half-written: files are written
under a temporary name and renamed. Runs can share files; any can be deleted at any time, the next run encodes what is
missing. Of training slides it may also hold views, encodings of some of the tiles (`views`).

Shapes: B slides, N tiles of C numbers, n image tokens of D numbers.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from ..common.distributed import ALONE, World
from ..common.errors import UserError
from ..common.files import remove_leftovers, write_atomically
from ..common.log import logger
from ..common.progress import progress
from .batch import pad_tiles
from .slides import Slide
from .tile_reader import read_tiles
from .views import View, view_of_epoch

_FORMAT = 1  # part of every name: files of another layout are never read
_GROUP_TILES = 16_000  # tiles encoded together (80 MB in float16); a larger slide is encoded alone
_GROUP_SLIDES = 16
_SPARE_BYTES = 1 << 30  # left free on the disk
_WAIT_SECONDS = 120  # for files of other machines
Encode = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # tiles (B, N, C), mask (B, N) -> tokens (B, n, D)
_Entry = tuple[Slide, View | None]  # what one file holds: a slide with all its tiles, or a view of it


def token_type(precision: str) -> str:
    """The numpy type that image tokens are kept in; the rounding of an encoder in half precision is no finer."""
    return "float32" if precision == "fp32" else "float16"


@dataclass(frozen=True)
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

    def path(self, slide: Slide, view: View | None = None) -> Path:
        """Where the tokens of exactly these files, in this order, or of a view of them belong."""
        files = [(os.path.realpath(p.path), p.size, p.mtime_ns, p.key, p.num_tiles) for p in slide.parts]
        hashed = files[0] if len(files) == 1 else files
        if view:  # its tiles depend on the id, too
            hashed = (files, slide.slide_id, view.seed, view.number)
        name = hashlib.sha256(repr(hashed).encode("utf-8", "surrogatepass")).hexdigest()
        return self.folder / name[:2] / f"{name[2:34]}.npy"  # 256 folders: 100 000 files in one are slow to list

    def __call__(self, slide: Slide, epoch: int = 0) -> np.ndarray:
        """Tokens (n, D) of all tiles of a slide, the same in every epoch. Raises UserError."""
        return self.read(slide)

    def into(self, row: np.ndarray, slide: Slide, epoch: int) -> None:
        """As a call, into a row (n, D) of a batch."""
        self.read_into(row, slide)

    def read(self, slide: Slide, view: View | None = None) -> np.ndarray:
        """Tokens (n, D) of all tiles of a slide, or of a view of it.

        They are read, not mapped: all of them are needed, and so a loader thread waits for the disk.

        Raises:
            UserError: the file is missing or damaged.
        """
        tokens = np.empty(self.shape, self.dtype)
        self.read_into(tokens, slide, view)
        return tokens

    def read_into(self, tokens: np.ndarray, slide: Slide, view: View | None = None) -> None:
        """Read into `tokens` (n, D), a contiguous array of this cache's type such as a row of a batch: without a copy.

        Raises UserError as `read`.
        """
        path = self.path(slide, view)
        try:
            with open(path, "rb") as file:
                held = _npy_header(file)
                is_complete = held != (self.shape, np.dtype(self.dtype)) or _fill(tokens, file)
            if not is_complete:
                raise EOFError("it is too short")
        except (OSError, ValueError, EOFError) as error:
            raise UserError(path, f"the cached slide {slide.slide_id} cannot be read ({error})",
                            "was it deleted or cut off? delete it and start again: it will be encoded again") from None
        if held != (self.shape, np.dtype(self.dtype)):
            raise UserError(path, f"holds {held[0]} {held[1]}", "delete it and start again")

    @property
    def short_name(self) -> str:
        """The folder as a log shows it: its parents may contain a user's name."""
        return "/".join(self.folder.parts[-2:])

    def has(self, slide: Slide, view: View | None = None) -> bool:
        """Whether a complete file is there: a crash of the machine can leave one that is too short."""
        try:
            return os.path.getsize(self.path(slide, view)) > self.slide_bytes
        except OSError:
            return False

    def _missing(self, entries: Sequence[_Entry]) -> list[_Entry]:
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
        groups = _groups_with_views(slides, views, with_views)
        entries = list(itertools.chain.from_iterable(groups))
        missing = self._missing(entries)
        if missing:
            need, free = self.check_disk(len(missing))
            self._remove_leftovers()
            logger.info("slide cache %s: %d to encode (of %s), %.2f GB of %.0f GB free", self.short_name, len(missing),
                        _describe(entries), need / 1e9, free / 1e9)
            self._encode(_groups_of_rank(groups, missing, world), encode, max(1, workers))
        else:
            logger.info("slide cache %s: all %s are there", self.short_name, _describe(entries))

        # files of another rank may be visible here later than to it
        if world.any(bool(missing)):
            self._wait_for(entries)
        return len(missing)

    def _remove_leftovers(self) -> None:
        """Remove the files that killed fills were writing."""
        for folder in self.folder.iterdir():
            remove_leftovers(folder)

    def _encode(self, groups: list[list[_Entry]], encode: Encode, workers: int) -> None:
        """Encode what is missing of some groups, while others are read and written."""
        bar = progress(None, "encoding slides", sum(map(_num_tiles, groups)), "tile")
        start = time.monotonic()
        with ThreadPoolExecutor(workers) as pool, bar:
            writes: deque[Future] = deque()
            num_encoded = 0
            for group, tiles, mask in _read_ahead(pool, groups):
                for entry, tokens in self._encode_group(group, tiles, mask, encode):
                    writes.append(pool.submit(self.write, entry, tokens))
                while writes and writes[0].done():
                    writes.popleft().result()  # raises at once if the disk is full

                num_encoded += len(group)
                rate = num_encoded / max(time.monotonic() - start, 1e-9)
                bar.set_postfix_str(f"{rate:.1f} slides/s", refresh=False)
                bar.update(_num_tiles(group))

            for write in writes:
                write.result()

    def _encode_group(self, group: list[_Entry], tiles: torch.Tensor, mask: torch.Tensor, encode: Encode,
                      ) -> list[tuple[_Entry, np.ndarray]]:
        """(entry, tokens (n, D)) of the entries that are missing, from the tiles (B, N, C) and mask (B, N) of all."""
        missing = self._missing(group)
        if not missing:  # another run that fills this folder was faster
            return []
        tokens = encode(tiles, mask)
        self._require_finite(group, tokens)
        rows = tokens.float().cpu().numpy().astype(self.dtype)
        return [(entry, row) for entry, row in zip(group, rows, strict=True) if entry in missing]

    def _wait_for(self, entries: Sequence[_Entry]) -> None:
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

    def write(self, entry: _Entry, tokens: np.ndarray) -> None:
        """Put the tokens (n, D) of a slide or view into the cache. Raises UserError."""
        path = self.path(*entry)
        content = io.BytesIO()
        np.save(content, tokens, allow_pickle=False)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content.getvalue(), durable=True)
        except OSError as error:
            raise UserError(path, f"cannot be written ({error.strerror})",
                            "free some space, or set data.latents_cache to another folder or null") from None

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

    def _require_finite(self, group: list[_Entry], tokens: torch.Tensor) -> None:
        """NaN or infinity in one tile reaches all tokens of its slide, so the output is checked, not the input."""
        limit = float(np.finfo(self.dtype).max)
        for (slide, _), row in zip(group, tokens, strict=True):
            is_finite = row.float().abs().max().item() <= limit  # false for NaN
            if not is_finite:
                read_tiles(slide)  # raises the error that counts the bad tiles
                raise UserError(slide.path, "Prism's output for this slide is not finite",
                                "use training.precision=fp32, or leave the slide out")


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


def _npy_header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype]:
    """(shape, type) of a .npy file, read up to its numbers. Raises ValueError for what `np.save` does not write."""
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"version {version} of the npy format")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    if fortran_order:
        raise ValueError("numbers in Fortran's order")
    return shape, dtype


def _fill(array: np.ndarray, file: BinaryIO) -> bool:
    """Read the bytes of a contiguous array. Returns whether there were enough."""
    return file.readinto(memoryview(array.reshape(-1).view(np.uint8))) == array.nbytes


def _describe(entries: Sequence[_Entry]) -> str:
    """Their number, such as "12 slides and 24 views"."""
    num_views = sum(view is not None for _, view in entries)
    slides = f"{len(entries) - num_views} slides"
    return f"{slides} and {num_views} views" if num_views else slides


def _rows(entry: _Entry) -> np.ndarray | None:
    """Sorted indices of the tiles of an entry, None for all."""
    slide, view = entry
    return view.rows(slide) if view else None


def _num_tiles(group: Sequence[_Entry]) -> int:
    total = 0
    for entry in group:
        rows = _rows(entry)
        total += entry[0].num_tiles if rows is None else len(rows)
    return total


def _groups_of_rank(groups: list[list[_Entry]], missing: Sequence[_Entry], world: World) -> list[list[_Entry]]:
    """This rank's share of the groups in which an entry is missing."""
    wanted = set(missing)
    return [group for group in groups[world.rank::world.size] if wanted.intersection(group)]


def _groups_with_views(slides: Sequence[Slide], views: Sequence[View], with_views: Collection[str],
                       ) -> list[list[_Entry]]:
    """The entries to encode together. Those of all tiles are grouped as without views; a view has groups of its own,
    right after those of the same slides, whose files the system then still has in memory."""
    groups: list[list[_Entry]] = []
    for slides_of_group in _groups(slides):
        groups.append([(slide, None) for slide in slides_of_group])
        viewed = [slide for slide in slides_of_group if slide.slide_id in with_views]
        if viewed:
            groups += [[(slide, view) for slide in viewed] for view in views]
    return groups


def _groups(slides: Sequence[Slide]) -> list[list[Slide]]:
    """Slides to encode together: neighbours in size, so that little is padding; a pure function of the slides."""
    groups: list[list[Slide]] = []
    for slide in sorted(slides, key=lambda s: (s.num_tiles, s.slide_id)):
        # sorted by size: the new slide would be the largest of its group, to which the others are padded
        padded_tiles = (len(groups[-1]) + 1) * slide.num_tiles if groups else 0
        if not groups or len(groups[-1]) == _GROUP_SLIDES or padded_tiles > _GROUP_TILES:
            groups.append([])
        groups[-1].append(slide)
    return groups


def _read_ahead(pool: ThreadPoolExecutor, groups: list[list[_Entry]],
                ) -> Iterator[tuple[list[_Entry], torch.Tensor, torch.Tensor]]:
    """Each group with its tiles and mask; the next group is read while the caller works on this one."""
    def read(group: list[_Entry]) -> tuple[torch.Tensor, torch.Tensor]:
        return pad_tiles([read_tiles(entry[0], _rows(entry), check=False) for entry in group])

    reads = deque(pool.submit(read, group) for group in groups[:1])
    for number, group in enumerate(groups):
        tiles, mask = reads.popleft().result()
        if number + 1 < len(groups):
            reads.append(pool.submit(read, groups[number + 1]))
        yield group, tiles, mask
