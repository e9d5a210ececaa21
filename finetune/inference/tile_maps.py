"""Tile weights as pictures: the grid layout, a heatmap over the grid or a thumbnail, the data of the page."""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..common.caveats import Text
from ..common.errors import UserError
from ..common.files import require_regular
from ..common.log import logger
from ..data.tile_coords import Coords

_LONGEST = 1024  # side of a heatmap in pixels
_MOST_CELLS = 4096  # of the page: beyond, neighbouring tiles share one
_MOST_SIDE = 4096  # cells of a heatmap's side, whatever coordinates a file holds
# Why a phrase has no map
NO_EFFECT, NO_ALTERNATIVE, TOO_FEW_TILES = "no effect", "no alternative", "too few tiles"
UNUSUAL = "unusual slide"
REASONS: dict[str, Text] = {
    NO_EFFECT: ("无效应：不要读这张图", "no effect: do not read this map"),
    NO_ALTERNATIVE: ("没有可以对比的写法：无图", "no alternative to compare with: no map"),
    UNUSUAL: ("异常切片：无图", "unusual slide: no map"),
    TOO_FEW_TILES: ("图块太少，无法检验：无图", "too few tiles for the test: no map"),
}
_BLANK, _TILE, _HOT = (255, 255, 255), (222, 226, 230), (214, 73, 20)


@dataclass(frozen=True)
class Layout:
    """The tiles of a slide on a grid.

    Attributes:
        cells: (N, 2) int, column and row of each tile, from 0.
        known: Whether the positions are those of the file.
        thumbnail_box: (left, top, width, height) of the grid in thumbnail pixels; None without a thumbnail.
        origin: Coordinates of the cell (0, 0).
        step: Coordinate units per cell.
        unit: Of the coordinates, px or um; None without coordinates.
    """

    cells: np.ndarray
    known: bool
    thumbnail_box: tuple[float, float, float, float] | None = None
    origin: tuple[float, float] = (0.0, 0.0)
    step: float = 1.0
    unit: str | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(columns, rows)"""
        columns, rows = (self.cells.max(axis=0) + 1).tolist()
        return columns, rows


def lay_out(num_tiles: int, coords: Coords | None, thumbnail_size: tuple[int, int] | None = None,
            thumbnail_scale: float | None = None) -> Layout:
    """The grid cell of each tile: by its coordinates, or in file order on a square.

    Args:
        num_tiles: N.
        coords: Of the tiles; None if unknown.
        thumbnail_size: (width, height) in pixels of an image whose corner is the origin of the coordinates.
        thumbnail_scale: Coordinate units per thumbnail pixel; None assumes that the thumbnail ends with the tiles.

    Raises:
        UserError: Tiles would lie outside the thumbnail.
    """
    if coords is None:
        side = math.ceil(math.sqrt(num_tiles))
        order = np.arange(num_tiles)
        return Layout(np.stack([order % side, order // side], axis=1), known=False)
    low, step = coords.xy.min(axis=0), coords.step
    if (extent := float((coords.xy.max(axis=0) - low).max())) / step >= _MOST_SIDE:  # not on one grid
        step = extent / (_MOST_SIDE - 1)
    cells = np.rint((coords.xy - low) / step).astype(int)
    box = None
    if thumbnail_size is not None:
        size = (cells.max(axis=0) + 1) * step
        if thumbnail_scale is None:
            thumbnail_scale = float(((low + size) / thumbnail_size).max())
            logger.warning("assuming that the thumbnail ends where the tiles end (%.4g units per pixel); else give "
                           "--thumbnail_scale", thumbnail_scale)
        if ((low + size - step) / thumbnail_scale > thumbnail_size).any():
            raise UserError("--thumbnail_scale", f"is {thumbnail_scale:g}: tiles would lie outside the thumbnail of "
                            "{}x{} pixels".format(*thumbnail_size), "give the scale of this picture, or leave it out")
        box = tuple(float(v) / thumbnail_scale for v in (*low, *size))
    return Layout(cells, known=True, thumbnail_box=box,  # type: ignore[arg-type]
                  origin=(float(low[0]), float(low[1])), step=float(step), unit=coords.unit)


def open_thumbnail(path: Path) -> Image.Image:
    """A picture of the slide, at most `_LONGEST` pixels long when drawn. Raises UserError if it is not one."""
    try:
        require_regular(path)
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning), \
                Image.open(path, formats=("PNG", "JPEG")) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        what = f"is not a usable PNG or JPEG ({type(error).__name__})"
        what = "not found" if isinstance(error, FileNotFoundError) else what
        raise UserError(path, what, "give --thumbnail a picture of the whole slide") from None


def heatmap_png(layout: Layout, weights: Sequence[float], thumbnail: Image.Image | None = None) -> bytes:
    """Weights (N,) as a PNG: white where there is no tile, grey to orange by weight, over the thumbnail if given."""
    columns, rows = layout.shape
    total, there = np.zeros((rows, columns)), np.zeros((rows, columns), dtype=bool)
    np.add.at(total, (layout.cells[:, 1], layout.cells[:, 0]), weights)
    there[layout.cells[:, 1], layout.cells[:, 0]] = True
    heat = total / (total.max() or 1.0)
    cell = max(1, _LONGEST // max(columns, rows))
    size = (columns * cell, rows * cell)
    over_thumbnail = thumbnail is not None and layout.thumbnail_box is not None
    if over_thumbnail:
        shrink = min(1.0, _LONGEST / max(thumbnail.size))
        base = thumbnail.resize([max(1, round(s * shrink)) for s in thumbnail.size])
        left, top, width, height = (v * shrink for v in layout.thumbnail_box)
        size, alpha = (max(1, round(width)), max(1, round(height))), heat * 0.75
    else:
        pixels = np.where(there[..., None], np.array(_TILE), np.array(_BLANK)).astype(np.uint8)
        base, left, top, alpha = Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST), 0, 0, heat
    mask = Image.fromarray(np.rint(alpha * 255).astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    base.paste(Image.new("RGB", size, _HOT), (round(left), round(top)), mask)
    file = io.BytesIO()
    base.save(file, "PNG", optimize=True)
    return file.getvalue()


def page_data(explanation: dict[str, Any], layout: Layout, thumbnail: Image.Image | None = None) -> dict[str, Any]:
    """The data of the page: cells, and for each phrase with a map the heat of each cell, 0 to 99 of its maximum, which
    is `most` of the whole weight. `step` and `origin` give the coordinates of a cell."""
    columns, rows = layout.shape
    coarse = 1
    while len(places := np.unique(layout.cells // coarse, axis=0)) > _MOST_CELLS:
        coarse += 1
    index = {tuple(place): i for i, place in enumerate(places.tolist())}
    cell_of = np.array([index[tuple(place)] for place in (layout.cells // coarse).tolist()])

    def heat(weights: list[float]) -> dict[str, Any]:
        total = np.bincount(cell_of, weights, minlength=len(places))
        most = float(total.max())
        return {"most": most, "heat": np.rint(99 * total / (most or 1.0)).astype(int).tolist()}

    picture, box = None, None
    if thumbnail is not None and layout.thumbnail_box is not None:
        small = thumbnail.copy()
        small.thumbnail((_LONGEST, _LONGEST))
        file = io.BytesIO()
        small.save(file, "JPEG", quality=80)
        picture = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
        left, top, width, height = layout.thumbnail_box  # the picture in units of grid cells
        per_cell = width / columns, height / rows
        box = [-left / per_cell[0], -top / per_cell[1], thumbnail.width / per_cell[0], thumbnail.height / per_cell[1]]
    found = []
    for phrase in explanation["phrases"]:
        shown = heat(phrase["weights"]) if phrase["weights"] else {"most": None, "heat": None}
        test = phrase["deletion_test"]
        chances = test and {name: _chance(test[name]) for name in ("log_odds", "without_top", "without_random")}
        found.append({"text": phrase["text"], "tokens": phrase["tokens"], "alternative": phrase["alternative"],
                      "no_map": REASONS.get(phrase["no_map"]), "removed": test and test["removed"],
                      "chances": chances} | shown)
    return {"columns": columns / coarse, "rows": rows / coarse, "cells": places.tolist(), "known": layout.known,
            "origin": layout.origin, "step": layout.step * coarse, "unit": layout.unit,
            "tokens": explanation["tokens"], "phrases": found, "picture": picture,
            "box": box and [v / coarse for v in box]}


def _chance(log_odds: float | None) -> float | None:
    """The probability of a phrase where there is only its alternative beside it."""
    return None if log_odds is None else 0.5 + 0.5 * math.tanh(log_odds / 2)
