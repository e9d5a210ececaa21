"""A cache file of slide headers, so that only changed slides are read again.

A `summed_json` of what the headers were read for and a row for each file: its header and the time at which its inode
changed, which no program can set back.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..common.log import logger
from .slides import Slide, SlideFile
from .summed_json import read_summed, why_unread, write_summed

_VERSION = 2
_FIELDS = [field.name for field in dataclasses.fields(SlideFile)]
_TYPES = [{"str": (str,), "int": (int,)}.get(field.type, (int, type(None))) for field in dataclasses.fields(SlideFile)]


def read_headers(path: Path | None, h5_key: str | None, image_dim: int, encoder: str | None) -> dict[str, SlideFile]:
    """Read the headers that an earlier run has written.

    Args:
        path: The cache file; None if there is none.
        h5_key, image_dim, encoder: Of the check, as in `slides.inspect_slide`.

    Returns:
        {location: header} of the files that are unchanged. Empty if there is no cache, or if it was made with other
        arguments or by another version; a damaged one is ignored with a warning: it can always be rebuilt.
    """
    if path is None:
        return {}
    try:
        rows = read_summed(path, [_VERSION, h5_key, image_dim, encoder])
        return _unchanged(rows or [])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        logger.warning("%s cannot be read (%s): all headers are read again", path, why_unread(error))
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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_summed(path, [_VERSION, h5_key, image_dim, encoder], [_row(file) for file in files])
    except OSError as error:
        logger.warning("%s cannot be written (%s): the next run reads all headers again", path, error.strerror)


def _row(file: SlideFile) -> list[Any]:
    status = _status(file.path)
    return [*(getattr(file, name) for name in _FIELDS), status.st_ctime_ns if status else 0]


def _unchanged(rows: list[list[Any]]) -> dict[str, SlideFile]:
    """Raises ValueError, TypeError for rows that `write_headers` does not write."""
    slides = {}
    for *row, changed_at in rows:
        if not all(type(value) in types for value, types in zip(row, _TYPES, strict=True)):
            raise ValueError
        slide = SlideFile(*row)
        status = _status(slide.path)
        if status and slide.is_unchanged(status) and status.st_ctime_ns == changed_at:
            slides[slide.location] = slide
    return slides


def _status(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None
