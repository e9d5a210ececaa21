"""The index of a folder of slides, kept so that headers are read again only where a file has changed."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path

from ..common.log import logger
from .slides import Slide, SlideFile

_VERSION = 1
_FIELDS = [f.name for f in dataclasses.fields(SlideFile)]


def read_manifest(path: Path, h5_key: str | None, image_dim: int,
                  encoder: str | None) -> dict[str, SlideFile]:
    """{place: header} of the slides whose files are as they were. Empty if there is no manifest, or one made with
    another `h5_key`, `image_dim` or `encoder`; one that cannot be read is told and ignored, as
    everything in it can be had anew.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["made_for"] != [_VERSION, h5_key, image_dim, encoder]:
            return {}
        slides = [SlideFile(**dict(zip(_FIELDS, row, strict=True))) for row in content["slides"]]
        return {s.place: s for s in slides if _unchanged(s)}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        logger.warning("%s cannot be read (%s): all headers are read again", path, type(error).__name__)
        return {}


def write_manifest(path: Path, h5_key: str | None, image_dim: int, encoder: str | None,
                   slides: Iterable[Slide]) -> None:
    """Write the headers of `slides` for the next run; a folder that cannot be written costs it time only."""
    rows = [[getattr(s, name) for name in _FIELDS] for slide in slides for s in slide.parts]
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)  # of a process of this number that died
        with open(temporary, "x", encoding="utf-8") as file:
            json.dump({"made_for": [_VERSION, h5_key, image_dim, encoder], "slides": rows}, file)
        os.replace(temporary, path)
    except OSError as error:
        logger.warning("%s cannot be written (%s): the next run reads all headers again", path, error.strerror)


def _unchanged(slide: SlideFile) -> bool:
    try:
        stat = os.stat(slide.path)
    except OSError:
        return False
    return (stat.st_size, stat.st_mtime_ns) == (slide.size, slide.mtime_ns)
