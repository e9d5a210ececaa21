"""What the slide cache encodes together: groups of slides of similar size, and of their views.

The groups depend on the slides of a run alone, so that whatever is encoded again comes out with the same bits.

Shapes: B slides, N tiles of C numbers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from ..common.distributed import World
from .batch import pad_tiles
from .slides import Slide
from .tile_reader import read_tiles
from .views import View

_GROUP_TILES = 16_000  # tiles encoded together (80 MB in float16); a larger slide is encoded alone
_GROUP_SLIDES = 16
Entry = tuple[Slide, View | None]  # what one file holds: a slide with all its tiles, or a view of it


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
