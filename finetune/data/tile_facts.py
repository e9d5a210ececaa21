"""What the tiles of a slide say without a model: how many they are, and whether they are all the same."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .slides import Slide
from .tile_reader import read_tiles

_FIRST = 16  # tiles: hardly any slide begins with as many equal ones


class TileFacts(NamedTuple):
    """Facts about the tiles of a slide.

    Attributes:
        num_tiles: N.
        are_equal: Whether all of two or more tiles are the same: blank glass, or an extraction that failed.
        are_zero: Whether all numbers are 0.
    """

    num_tiles: int
    are_equal: bool
    are_zero: bool


def facts_of(tiles: np.ndarray) -> TileFacts:
    """Of tiles (N, D)."""
    first = tiles[:1]
    same = all((tiles[begin:begin + _FIRST] == first).all() for begin in range(0, len(tiles), _FIRST))
    return TileFacts(len(tiles), same and len(tiles) > 1, same and not first.any())


def read_facts(slide: Slide) -> TileFacts:
    """Of a slide whose tiles are not needed otherwise: the first few are enough where they differ, and where the file
    can be mapped no more is read. Raises UserError."""
    first = facts_of(read_tiles(slide, np.arange(min(_FIRST, slide.num_tiles)), check=False))
    if first.are_equal or first.are_zero:
        return facts_of(read_tiles(slide, check=False))
    return first._replace(num_tiles=slide.num_tiles)
