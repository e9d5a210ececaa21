"""Checks that read every tile: NaN, constant values, bytes that changed since they were written."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from ..common.errors import BadSlide, UserError
from ..common.files import expand, read_regular
from ..common.log import logger
from ..common.progress import progress
from .slides import SlideFile
from .tile_reader import read_tiles

_THREADS = 4  # each holds a slide in memory
_SUMS_FIX = "make it with: sha256sum *.h5 > SHA256SUMS"
_CONSTANT = "%d slides have the same numbers in all tiles: were their features extracted?"
_OVERFLOW = "%d slides have values beyond 65504, which are infinite in fp16: use training.precision bf16 or fp32"
_WARNINGS = (_CONSTANT, _OVERFLOW)


def bad_contents(slides: Sequence[SlideFile], sha256_file: str | None) -> dict[str, BadSlide]:
    """Read every tile of the slides, and warn of contents that are usable but suspicious.

    Args:
        slides: With checked headers.
        sha256_file: Checksums as `sha256sum` writes them; None checks none. In an uncompressed file nothing else
            shows a flipped bit.

    Returns:
        {location: problem} of the slides whose contents cannot be used.
    """
    sums = None if sha256_file is None else read_sums(sha256_file)
    # threads are enough: the time goes into the disk, numpy and hashing, which release Python's lock
    with ThreadPoolExecutor(_THREADS) as pool:
        results = pool.map(partial(_check_contents, sums=sums), slides)
        results = list(progress(results, "reading", len(slides), "slide"))
    for warning in _WARNINGS:
        if warning in results:
            logger.warning(warning, results.count(warning))
    return {slide.location: result for slide, result in zip(slides, results, strict=True)
            if isinstance(result, BadSlide)}


def read_sums(path: str) -> dict[str, str]:
    """{file name: SHA-256} of a file of `sha256sum`; folders before a name are ignored. Raises UserError."""
    file = expand(path)
    try:
        lines = read_regular(file).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise UserError(file, f"cannot be read ({reason})", _SUMS_FIX) from None
    sums: dict[str, str] = {}
    for number, line in enumerate(filter(None, lines), start=1):
        match = re.fullmatch(r"([0-9a-fA-F]{64}) [ *](.+)", line)
        if match is None:
            raise UserError(f"{file}:{number}", "not a line of sha256sum", _SUMS_FIX)
        name = re.split(r"[/\\]", match[2])[-1]
        sums[name] = match[1].lower()
    return sums


def _check_contents(slide: SlideFile, sums: dict[str, str] | None) -> BadSlide | str | None:
    """The problem of a slide, or a warning, or None."""
    try:
        tiles = read_tiles(slide)
        problem = None if sums is None else _sum_problem(slide.path, sums)
    except UserError as error:
        return BadSlide(error.what, error.fix)
    except OSError as error:
        return BadSlide(f"cannot be read ({error.strerror})", "copy it again")
    return problem or _warning(tiles)


def _warning(tiles: np.ndarray) -> str | None:
    if tiles.dtype != np.float16 and max(tiles.max(), -tiles.min()) > np.finfo(np.float16).max:
        return _OVERFLOW
    one_tile_with_values = len(tiles) == 1 and tiles.any()
    if not one_tile_with_values and (tiles == tiles[0]).all():
        return _CONSTANT
    return None


def _sum_problem(path: str, sums: dict[str, str]) -> BadSlide | None:
    expected = sums.get(Path(path).name)
    if expected is None:
        return BadSlide("not in data.sha256_file", "add it to that file")
    # a second pass over the file, which by now is in the operating system's cache
    with open(path, "rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != expected:
        return BadSlide("another SHA-256 than in data.sha256_file", "copy it again, or update that file")
    return None
