"""What the tiles of a slide say without a model: how many there are, whether all are the same, how many are zero."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .slides import Slide
from .tile_reader import read_tiles

_FIRST = 16  # tiles: hardly any slide begins with as many equal ones
_LOOKED_AT = 64  # tiles, evenly spread over the slide, that show how many are zero


class TileFacts(NamedTuple):
    """Facts about the tiles of a slide.

    Attributes:
        num_tiles: N.
        are_equal: Whether all of two or more tiles are the same: blank glass, or an extraction that failed.
        are_zero: Whether all numbers are 0.
        zero_share: Of up to 64 tiles that are evenly spread over the slide, the share that is 0.
    """

    num_tiles: int
    are_equal: bool
    are_zero: bool
    zero_share: float = 0.0


def facts_of(tiles: np.ndarray) -> TileFacts:
    """Of tiles (N, D)."""
    first = tiles[:1]
    same = all((tiles[begin:begin + _FIRST] == first).all() for begin in range(0, len(tiles), _FIRST))
    zero_share = _zero_share(tiles[_spread(len(tiles))])
    return TileFacts(len(tiles), same and len(tiles) > 1, same and not first.any(), zero_share)


def read_facts(slide: Slide) -> TileFacts:
    """Of a slide whose tiles are not needed otherwise: the first few and some of the others are enough where the first
    differ, and where the file can be mapped no more is read. Raises UserError."""
    spread = _spread(slide.num_tiles)
    rows = np.union1d(np.arange(min(_FIRST, slide.num_tiles)), spread)
    tiles = read_tiles(slide, rows, check=False)
    first = facts_of(tiles[:_FIRST])
    if first.are_equal or first.are_zero:
        return facts_of(read_tiles(slide, check=False))
    return first._replace(num_tiles=slide.num_tiles, zero_share=_zero_share(tiles[np.searchsorted(rows, spread)]))


def _spread(count: int) -> np.ndarray:
    """Indices of the tiles of a slide of `count` that are looked at."""
    return np.unique(np.linspace(0, count - 1, min(_LOOKED_AT, count)).astype(np.int64))


def _zero_share(tiles: np.ndarray) -> float:
    return float(1 - tiles.any(axis=1).mean())
