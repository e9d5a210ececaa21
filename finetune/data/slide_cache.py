"""The slide cache: a frozen Prism encodes each slide once; its output lies on disk as one `.npy` per slide.

Never stale: a file's name is a hash over the weights, the precision they ran in and the H5's path, size, time of
change and dataset, so whatever changes is encoded anew under another name. Never half: files are written beside
their place and moved there. Files can be shared by runs and deleted at any time; the next run fills what is missing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..common.distributed import ALONE, World
from ..common.errors import UserError
from ..common.log import logger
from ..common.progress import progress
from .batch import pad_tiles
from .slides import Slide
from .tile_reader import read_tiles

_FORMAT = 1  # part of every name: a new layout never meets old files
_GROUP_TILES = 16_000  # tiles encoded together (80 MB in float16); a larger slide goes alone
_GROUP_SLIDES = 16
_SPARE_BYTES = 1 << 30  # left free on the disk
_LATE = 120  # seconds
_MACHINE = f"{zlib.crc32(platform.node().encode()):08x}"  # two of them may have processes of one number
Encode = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # tiles (B, N, C), mask (B, N) -> tokens (B, n, D)


@dataclass(frozen=True)
class SlideCache:
    """Image tokens (n, D) of slides in `folder`: the slide embedding, then the image latents.

    key: of the encoder (weights, precision). float16 for encoders that ran in half precision (their own rounding is no
    finer), float32 otherwise. It is also a reader for `BatchLoader`.
    """

    folder: Path
    key: str
    tokens: int
    width: int
    dtype: str

    @classmethod
    def of(cls, folder: Path, sha256: str, precision: str, tokens: int, width: int) -> SlideCache:
        """sha256: fingerprint of Prism's weights. precision: fp32, bf16 or fp16. tokens, width: shape of an entry."""
        key = hashlib.sha256(f"{_FORMAT} {sha256} {precision} {tokens} {width}".encode()).hexdigest()[:16]
        return cls(folder / key, key, tokens, width, "float32" if precision == "fp32" else "float16")

    @property
    def slide_bytes(self) -> int:
        return self.tokens * self.width * np.dtype(self.dtype).itemsize

    def path(self, slide: Slide) -> Path:
        """Where the tokens of this very file belong, or of the very files of a case, in their order."""
        files = [(os.path.realpath(p.path), p.size, p.mtime_ns, p.key, p.num_tiles) for p in slide.parts]
        name = hashlib.sha256(repr(files[0] if len(files) == 1 else files).encode("utf-8", "surrogatepass")).hexdigest()
        return self.folder / name[:2] / f"{name[2:34]}.npy"  # 256 folders: 100 000 files in one are slow to list

    def __call__(self, slide: Slide, epoch: int = 0) -> np.ndarray:
        """Tokens (n, D) of a slide. Raises UserError if they are not there or not whole.

        Read, not mapped: all of it is needed, and so a loader thread does the waiting for the disk.
        """
        path = self.path(slide)
        try:
            tokens = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(path, f"the cached slide {slide.slide_id} cannot be read ({error})",
                            "was it deleted or cut off? delete it and start again: it will be encoded anew") from None
        if tokens.shape != (self.tokens, self.width) or tokens.dtype != self.dtype:
            raise UserError(path, f"holds {tokens.shape} {tokens.dtype}", "delete it and start again")
        return tokens

    @property
    def _name(self) -> str:
        """The folder as a log names it: without the way there, which may hold a user's name."""
        return "/".join(self.folder.parts[-2:])

    def has(self, slide: Slide) -> bool:
        """Whether a whole file is there: a crash of the machine can leave one that is too short."""
        try:
            return os.path.getsize(self.path(slide)) > self.slide_bytes
        except OSError:
            return False

    def fill(self, slides: Sequence[Slide], encode: Encode, workers: int = 2, world: World = ALONE) -> int:
        """Encode what is missing of `slides`; returns how many. `encode` runs here, reading and writing beside it.

        The groups that are encoded together do not depend on what is there already, so that a run killed while it
        fills ends with the same bits as an undisturbed one; nor does it which rank of `world` encodes a group, so that
        ranks that see a shared folder at different moments leave no gap between them. All return when every slide is
        there. Raises UserError if the disk is too small or a slide cannot be encoded; what is done by then stays.
        """
        missing = {s.slide_id for s in slides if not self.has(s)}
        if missing:
            self._make_room(len(missing), len(slides))
            groups = _groups(slides)[world.rank::world.size]
            self._encode([g for g in groups if any(s.slide_id in missing for s in g)], missing, encode, workers)
        else:
            logger.info("slide cache %s: all %d slides are there", self._name, len(slides))
        if world.any(bool(missing)):
            self._wait_for(slides)
        return len(missing)

    def _encode(self, groups: list[list[Slide]], missing: set[str], encode: Encode, workers: int) -> None:
        if not groups:
            return
        tiles = sum(s.num_tiles for g in groups for s in g)
        bar = progress(None, "encoding slides", tiles, "tile", unit_scale=True)
        with ThreadPoolExecutor(max(1, workers)) as pool, bar:
            writing: deque[Future] = deque()
            done = 0
            for group, embeddings, mask in _read_ahead(pool, groups):
                wanted = {s.slide_id for s in group if s.slide_id in missing and not self.has(s)}
                if wanted:  # another run that fills this folder may have been quicker
                    tokens = encode(embeddings, mask)
                    self._require_finite(group, tokens)
                    rows = tokens.float().cpu().numpy().astype(self.dtype)
                    writing += [pool.submit(self._write, slide, row) for slide, row in zip(group, rows, strict=True)
                                if slide.slide_id in wanted]
                while writing and writing[0].done():
                    writing.popleft().result()  # a full disk is told at once
                done += len(group)
                bar.set_postfix_str(f"{done / max(bar.format_dict['elapsed'], 1e-9):.1f} slides/s", refresh=False)
                bar.update(sum(s.num_tiles for s in group))
            for future in writing:
                future.result()

    def _wait_for(self, slides: Sequence[Slide]) -> None:
        """Return when this machine sees every file: a network drive shows those of another one up to a minute late."""
        end = time.monotonic() + _LATE
        while late := [s for s in slides if not self.has(s)]:
            if time.monotonic() > end:
                raise UserError(self.path(late[0]), f"is not there, nor are {len(late) - 1} more cached slides",
                                "with several machines data.latents_cache must be on a disk that all of them share")
            time.sleep(0.5)

    def _write(self, slide: Slide, tokens: np.ndarray) -> None:
        path = self.path(slide)
        temporary = path.with_name(f".{path.stem}.{_MACHINE}.{os.getpid()}.tmp")  # several may fill one folder
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.unlink(missing_ok=True)  # of a process of this number that died
            with open(temporary, "xb") as file:
                np.save(file, tokens, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise UserError(path, f"cannot be written ({error.strerror})",
                            "free some space, or set data.latents_cache to another folder or null") from None

    def _make_room(self, missing: int, total: int) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise UserError(self.folder, f"cannot be written ({error.strerror})",
                            "set data.latents_cache to another folder or null") from None
        need = missing * self.slide_bytes
        logger.info("slide cache %s: %d of %d slides to encode, %.2f GB of %.0f GB free", self._name, missing, total,
                    need / 1e9, free / 1e9)
        if need + _SPARE_BYTES > free:
            raise UserError(self.folder, f"the slide cache needs {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free",
                            "set data.latents_cache to a folder on a larger disk, or to null")

    def _require_finite(self, group: list[Slide], tokens: torch.Tensor) -> None:
        """NaN or infinity in one tile reaches all tokens of its slide, so the result is looked at, not the input."""
        limit = float(np.finfo(self.dtype).max)
        for slide, row in zip(group, tokens, strict=True):
            if not row.float().abs().max().item() <= limit:
                read_tiles(slide)  # raises the error that counts the bad tiles
                raise UserError(slide.path, "Prism's output for this slide is not finite",
                                "use training.precision=fp32, or leave the slide out")


def _groups(slides: Sequence[Slide]) -> list[list[Slide]]:
    """Slides to encode together: neighbours in size, so that little is padding; a pure function of the slides."""
    groups: list[list[Slide]] = []
    for slide in sorted(slides, key=lambda s: (s.num_tiles, s.slide_id)):
        # sorted by size: the new slide would be the largest of its group
        if not groups or len(groups[-1]) == _GROUP_SLIDES or (len(groups[-1]) + 1) * slide.num_tiles > _GROUP_TILES:
            groups.append([])
        groups[-1].append(slide)
    return groups


def _read_ahead(pool: ThreadPoolExecutor, groups: list[list[Slide]],
                ) -> Iterator[tuple[list[Slide], torch.Tensor, torch.Tensor]]:
    """Each group with its tiles and mask; the next group is read while the caller works on this one."""
    def read(group: list[Slide]) -> tuple[torch.Tensor, torch.Tensor]:
        return pad_tiles([read_tiles(s, check=False) for s in group])

    coming = pool.submit(read, groups[0])
    for number, group in enumerate(groups):
        embeddings, mask = coming.result()
        if number + 1 < len(groups):
            coming = pool.submit(read, groups[number + 1])
        yield group, embeddings, mask
