"""What the slide cache encodes together: groups of slides of similar size, and of their views.

The groups depend on the slides of a run alone, so that whatever is encoded again comes out with the same bits.

Shapes: B slides, N tiles of C numbers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from ..common.device import is_out_of_memory
from ..common.distributed import World
from ..common.errors import UserError
from ..common.log import logger
from .batch import pad_tiles
from .slides import Slide
from .tile_reader import read_tiles
from .views import View

_GROUP_TILES = 16_000  # tiles encoded together (80 MB in float16); a larger slide is encoded alone
_GROUP_SLIDES = 16
Entry = tuple[Slide, View | None]  # what one file holds: a slide with all its tiles, or a view of it
Encode = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # tiles (B, N, C), mask (B, N) -> tokens (B, n, D)


def describe_entries(entries: Sequence[Entry]) -> str:
    """Their number, such as "12 slides and 24 views"."""
    num_views = sum(view is not None for _, view in entries)
    slides = f"{len(entries) - num_views} slides"
    return f"{slides} and {num_views} views" if num_views else slides


def _rows(entry: Entry) -> np.ndarray | None:
    """Sorted indices of the tiles of an entry, None for all."""
    slide, view = entry
    return view.rows(slide) if view else None


def num_tiles_of(group: Sequence[Entry]) -> int:
    """Tiles of the entries of a group, together."""
    total = 0
    for entry in group:
        rows = _rows(entry)
        total += entry[0].num_tiles if rows is None else len(rows)
    return total


def groups_of_rank(groups: list[list[Entry]], missing: Sequence[Entry], world: World) -> list[list[Entry]]:
    """This rank's share of the groups in which an entry is missing."""
    wanted = set(missing)
    return [group for group in groups[world.rank::world.size] if wanted.intersection(group)]


def groups_with_views(slides: Sequence[Slide], views: Sequence[View], with_views: Collection[str],
                      ) -> list[list[Entry]]:
    """The entries to encode together. Those of all tiles are grouped as without views; a view has groups of its own,
    right after those of the same slides, whose files the system then still has in memory."""
    groups: list[list[Entry]] = []
    for slides_of_group in _groups(slides):
        groups.append([(slide, None) for slide in slides_of_group])
        viewed = [slide for slide in slides_of_group if slide.slide_id in with_views]
        if viewed:
            groups += [[(slide, view) for slide in viewed] for view in views]
    return groups


def _groups(slides: Sequence[Slide]) -> list[list[Slide]]:
    """Slides to encode together: neighbours in size, so that little is padding; a pure function of the slides."""
    groups: list[list[Slide]] = []
    for slide in sorted(slides, key=lambda s: (s.num_tiles, s.slide_id)):
        # sorted by size: the new slide would be the largest of its group, to which the others are padded
        padded_tiles = (len(groups[-1]) + 1) * slide.num_tiles if groups else 0
        if not groups or len(groups[-1]) == _GROUP_SLIDES or padded_tiles > _GROUP_TILES:
            groups.append([])
        groups[-1].append(slide)
    return groups


def read_group(group: Sequence[Entry]) -> tuple[torch.Tensor, torch.Tensor]:
    """The tiles (B, N, C) of a group and their mask (B, N). Raises UserError."""
    return pad_tiles([read_tiles(entry[0], _rows(entry), check=False) for entry in group])


def read_ahead(pool: ThreadPoolExecutor, groups: list[list[Entry]],
               ) -> Iterator[tuple[list[Entry], torch.Tensor, torch.Tensor]]:
    """Each group with its tiles and mask; the next group is read while the caller works on this one."""
    reads = deque(pool.submit(read_group, group) for group in groups[:1])
    for number, group in enumerate(groups):
        tiles, mask = reads.popleft().result()
        if number + 1 < len(groups):
            reads.append(pool.submit(read_group, groups[number + 1]))
        yield group, tiles, mask


def encode_or_halve(group: Sequence[Entry], tiles: torch.Tensor, mask: torch.Tensor, encode: Encode) -> torch.Tensor:
    """The tokens (B, n, D) of a group. What does not fit into memory is encoded in halves, down to one slide.

    Args:
        group: The B entries, for messages.
        tiles, mask: (B, N, C) and (B, N) of them.

    Raises:
        UserError: A slide does not fit alone; it is named.
    """
    tokens = _encode_if_it_fits(encode, tiles, mask)
    if tokens is not None:
        return tokens
    if len(group) == 1:
        raise UserError(group[0][0].path, f"out of memory while its {tiles.shape[1]} tiles are encoded",
                        "use a machine with more memory, set data.max_tiles, or leave the slide out")
    half = len(group) // 2
    logger.warning("out of memory: %d slides are encoded together instead of %d", half, len(group))
    parts = []
    for rows in (slice(half), slice(half, None)):
        most = int(mask[rows].sum(1).max())  # smaller slides need less padding
        parts.append(encode_or_halve(group[rows], tiles[rows, :most], mask[rows, :most], encode))
    return torch.cat(parts)


def _encode_if_it_fits(encode: Encode, tiles: torch.Tensor, mask: torch.Tensor) -> torch.Tensor | None:
    """The tokens, or None if the memory is not enough."""
    try:
        return encode(tiles, mask)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # what the failed attempt has left
    return None
