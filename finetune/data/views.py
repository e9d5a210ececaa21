"""Views of a slide: encodings of a random part of its tiles, which a training epoch may read in place of all tiles.

Which tiles a view has, and which view an epoch reads, are pure functions of the seed and the slide's id: nothing to
save, and a resumed run reads what it would have read. Imports no torch.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from .slides import Slide

_SHARE = (0.3, 0.8)  # of the tiles; a small part says other things than the slide, a large one nothing new


@dataclass(frozen=True)
class View:
    """The view `number`, from 1, of each slide under a seed."""

    number: int
    seed: int

    def rows(self, slide: Slide) -> np.ndarray:
        """Sorted indices of its tiles; of each slide of a case the same share, and one tile at least."""
        rng = np.random.default_rng([self.seed, self.number, zlib.crc32(slide.slide_id.encode())])
        share = rng.uniform(*_SHARE)
        start = 0
        chosen = []
        for part in slide.parts:
            rows = rng.choice(part.num_tiles, max(1, round(share * part.num_tiles)), replace=False)
            chosen.append(start + np.sort(rows))
            start += part.num_tiles
        return np.concatenate(chosen)


def view_of_epoch(slide: Slide, num_encodings: int, seed: int, epoch: int) -> View | None:
    """The encoding of a slide that an epoch reads, each equally often in the long run; None for the one of all tiles.

    Args:
        num_encodings: of a slide, the one of all tiles included.
    """
    rng = np.random.default_rng([seed, epoch, zlib.crc32(slide.slide_id.encode())])
    number = int(rng.integers(num_encodings))
    return View(number, seed) if number else None
