"""A sum over a few tiles of a file, by which other tiles in a file of the same shape are noticed.

Reading all tiles of 20 000 slides takes hours. Features of another encoder, another magnification or another slide
differ in every tile, so 24 of them are enough; whoever must notice a single changed tile gives `data.sha256_file`.
Files of the slide cache carry the sum: another way to choose the tiles has all slides encoded again.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

NOT_SUMMED = 0
_NUM_TILES = 24  # in the middle, side by side: a compressed file is unpacked by chunks, at 9 ms for 512 tiles


def join_sums(sums: Sequence[int]) -> int:
    """One sum over the files of a case; NOT_SUMMED if a file has none."""
    return NOT_SUMMED if NOT_SUMMED in sums else zlib.crc32(repr(list(sums)).encode()) or 1


def sum_of_tiles(rows: Callable[[slice], bytes], num_tiles: int) -> int:
    """CRC-32 of the tiles in the middle.

    Args:
        rows: Gives the bytes of some tiles, in the type in which they are stored.
        num_tiles: Of the file.
    """
    start = max(0, (num_tiles - _NUM_TILES) // 2)
    return zlib.crc32(rows(slice(start, min(start + _NUM_TILES, num_tiles)))) or 1  # 0 is NOT_SUMMED
