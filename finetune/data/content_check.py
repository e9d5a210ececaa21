"""What only reading every tile shows: NaN, values without information, bytes that changed since they were written."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from ..common.errors import BadSlide, UserError
from ..common.files import expand
from ..common.log import logger
from ..common.progress import progress
from .slides import SlideFile
from .tile_reader import read_tiles

_THREADS = 4  # so many slides are in memory at a time
_WARNINGS = {
    "overflow": "%d slides have values beyond 65504, which are infinite in fp16: use training.precision bf16 or fp32",
    "constant": "%d slides have the same numbers in all tiles: were their features extracted?",
}


def bad_contents(slides: Sequence[SlideFile], sha256_file: str | None) -> dict[str, BadSlide]:
    """{place: problem} of the slides whose contents cannot be used; warns of those that look odd.

    sha256_file: sums to hold the files against, as `sha256sum` writes them; None looks at no sums. A flipped bit in an
    uncompressed file shows in no other way.
    """
    sums = None if sha256_file is None else read_sums(sha256_file)
    with ThreadPoolExecutor(_THREADS) as pool:
        results = pool.map(partial(_look, sums=sums), slides)
        found = list(progress(results, "reading", len(slides), "slide"))
    for oddity, count in sorted(Counter(f for f in found if isinstance(f, str)).items()):
        logger.warning(_WARNINGS[oddity], count)
    return {s.place: f for s, f in zip(slides, found, strict=True) if isinstance(f, BadSlide)}


def read_sums(path: str) -> dict[str, str]:
    """{file name: SHA-256} of a file of `sha256sum`; folders before a name do not count. Raises UserError."""
    sums: dict[str, str] = {}
    try:
        lines = expand(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(expand(path), f"cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8'})",
                        "give a file made by: sha256sum *.h5 > SHA256SUMS") from None
    for number, line in enumerate(filter(None, lines), start=1):
        match = re.fullmatch(r"([0-9a-fA-F]{64}) [ *](.+)", line)
        if match is None:
            raise UserError(f"{expand(path)}:{number}", "no line of sha256sum",
                            "make it with: sha256sum *.h5 > SHA256SUMS")
        sums[re.split(r"[/\\]", match[2])[-1]] = match[1].lower()
    return sums


def _look(slide: SlideFile, sums: dict[str, str] | None) -> BadSlide | str | None:
    """What is wrong with a slide, or the name of what is odd about it, or None."""
    name = Path(slide.path).name
    try:
        tiles = read_tiles(slide)
        if sums is not None:
            with open(slide.path, "rb") as file:
                if sums.get(name) != hashlib.file_digest(file, "sha256").hexdigest():
                    return BadSlide("another SHA-256 than in data.sha256_file" if name in sums else
                                    "not in data.sha256_file", "copy it again, or make that file anew")
    except UserError as error:
        return BadSlide(error.what, error.fix)
    except OSError as error:
        return BadSlide(f"cannot be read ({error.strerror})", "copy it again")
    if tiles.dtype != np.float16 and max(tiles.max(), -tiles.min()) > np.finfo(np.float16).max:
        return "overflow"
    return "constant" if (len(tiles) > 1 or not tiles.any()) and (tiles == tiles[0]).all() else None
