"""A cache file of slide headers, so that only changed slides are read again."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..common.files import write_atomically
from ..common.log import logger
from .slides import Slide, SlideFile

_VERSION = 1
_FIELDS = [field.name for field in dataclasses.fields(SlideFile)]


def read_headers(path: Path | None, h5_key: str | None, image_dim: int, encoder: str | None) -> dict[str, SlideFile]:
    """Read the headers that an earlier run has written.

    Args:
        path: The cache file; None if there is none.
        h5_key, image_dim, encoder: Of the check, as in `slides.inspect_slide`.

    Returns:
        {location: header} of the files that are unchanged. Empty if there is no cache, or if it was made with other
        arguments; a damaged one is ignored with a warning: it can always be rebuilt.
    """
    if path is None:
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["made_for"] != [_VERSION, h5_key, image_dim, encoder]:
            return {}
        return _unchanged(content["slides"])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        logger.warning("%s cannot be read (%s): all headers are read again", path, type(error).__name__)
        return {}


def write_headers(path: Path, h5_key: str | None, image_dim: int, encoder: str | None,
                  slides: Iterable[Slide]) -> None:
    """Write the headers of `slides` for the next run; if it cannot be written, that run only takes longer.

    Args:
        path: The cache file.
        h5_key, image_dim, encoder: Of the check, as in `slides.inspect_slide`.
        slides: Whose headers were checked.
    """
    # rows without the names of the fields: there may be 100 000 of them
    files = [file for slide in slides for file in slide.parts]
    rows = [[getattr(file, name) for name in _FIELDS] for file in files]
    content = {"made_for": [_VERSION, h5_key, image_dim, encoder], "slides": rows}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(content))
    except OSError as error:
        logger.warning("%s cannot be written (%s): the next run reads all headers again", path, error.strerror)


def _unchanged(rows: list[list[Any]]) -> dict[str, SlideFile]:
    slides = {}
    for row in rows:
        slide = SlideFile(**dict(zip(_FIELDS, row, strict=True)))
        with contextlib.suppress(OSError):
            if slide.is_unchanged(os.stat(slide.path)):
                slides[slide.location] = slide
    return slides
