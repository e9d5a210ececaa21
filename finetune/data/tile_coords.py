"""Coordinates of tiles, in the units and with the attributes of each tool."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Attributes = Mapping[str, Any]


@dataclass(frozen=True)
class Coords:
    """Positions of the N tiles of one file; None for what the file does not say.

    Attributes:
        xy: (N, 2) float64, corners of the tiles in `unit`.
        unit: `px`, pixels of the slide at full resolution (level 0), or `um`, micrometres.
        tile_size: Side of a tile in `unit`.
        mpp: Resolution the tiles were read at, in micrometres per pixel.
        magnification: Objective power the tiles were read at.
    """

    xy: np.ndarray
    unit: str = "px"
    tile_size: float | None = None
    mpp: float | None = None
    magnification: float | None = None

    @property
    def step(self) -> float:
        """Distance of neighbouring tiles: the smallest between two rows or columns of the grid; 1 for a single tile."""
        gaps = [np.diff(np.unique(axis)) for axis in self.xy.T]
        return float(min((gap.min() for gap in gaps if len(gap)), default=self.tile_size or 1.0))


def coords_of(xy: np.ndarray, of_file: Attributes, of_dataset: Attributes) -> Coords:
    """Coordinates with what attributes say of them.

    Args:
        xy: (N, 2) float64.
        of_file, of_dataset: Attributes of the H5 file or of the group of the slide, and of the dataset of coordinates.
    """
    # only STAMP writes a unit, and it writes micrometres
    if of_file.get("unit") == "um":
        return _stamp_coords(xy, of_file)
    return _level0_coords(xy, of_dataset if "patch_size_level0" not in of_file else of_file)  # AtlasPatch: of the file


def _stamp_coords(xy: np.ndarray, attributes: Attributes) -> Coords:
    tile_size = _positive(attributes.get("tile_size_um"))
    pixels = _positive(attributes.get("tile_size_px"))
    mpp = tile_size / pixels if tile_size and pixels else None
    return Coords(xy, "um", tile_size, mpp)


def _level0_coords(xy: np.ndarray, attributes: Attributes) -> Coords:
    """Coordinates of TRIDENT, CLAM and others: `patch_size` is in pixels of the level the tiles were read at."""
    tile_size = _positive(attributes.get("patch_size_level0"))  # of TRIDENT
    patch_size = _positive(attributes.get("patch_size"))
    magnification = _positive(attributes.get("target_magnification"))
    if tile_size is None and patch_size is not None:
        tile_size = patch_size * _downsample(attributes, magnification)
    return Coords(xy, "px", tile_size, magnification=magnification)


def _downsample(attributes: Attributes, magnification: float | None) -> float:
    """Pixels of level 0 per pixel that was read; 1 if the file does not say."""
    full_magnification = _positive(attributes.get("level0_magnification"))
    if magnification and full_magnification:
        return full_magnification / magnification
    return _positive(attributes.get("downsample")) or 1.0  # of CLAM's patch_level


def _positive(value: object) -> float | None:
    """An attribute, or the first number of one, if it is positive and finite."""
    try:
        number = float(np.asarray(value).reshape(-1)[0])
    except (TypeError, ValueError, IndexError):  # TRIDENT writes what it does not know as the text 'None'
        return None
    return number if 0 < number < math.inf else None
