"""Views of slides in the slide cache. Truth: a plain encoder, called for the tiles of one view at a time."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.data.slide_cache import SlideCache, ViewReader
from finetune.data.slides import Case, SlideFile, inspect_slide
from finetune.data.views import View, view_of_epoch
from tests.helpers.files import random_tiles, refused, write_h5

D, SEED = 8, 42
VIEWS = [View(number, SEED) for number in (1, 2, 3)]


@pytest.fixture
def slides(tmp_path) -> list[SlideFile | Case]:
    """Four slides of 10 to 25 tiles, and a case of two slides of 20 and 3."""
    files = [inspect_slide(write_h5(tmp_path / f"s{i}.h5", random_tiles(n, D, i, "f2")), None, D)
             for i, n in enumerate((10, 15, 20, 25, 20, 3))]
    return [*files[:4], Case("case", tuple(files[4:]))]


def tiles_of(slide: SlideFile | Case) -> np.ndarray:
    sizes = {f"s{i}": n for i, n in enumerate((10, 15, 20, 25, 20, 3))}
    return np.concatenate([random_tiles(sizes[p.slide_id], D, int(p.slide_id[1:]), "f2") for p in slide.parts])


def encode(tiles: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """One token: the sum of the tiles."""
    return (tiles.float() * mask[..., None]).sum(1, keepdim=True)


def a_cache(folder: Path) -> SlideCache:
    return SlideCache.of(folder / "cache", "a" * 64, "fp32", 1, D)


def fill(cache: SlideCache, slides: list, with_views: set[str], encoder=encode) -> int:
    return cache.fill(slides, encoder, views=VIEWS, with_views=with_views)


def test_a_view_is_30_to_80_percent_of_the_tiles_and_a_function_of_seed_number_and_id():
    slides = [SlideFile(f"x{i}", "x.h5", "k", 1000) for i in range(40)]
    shares = [len(View(1, SEED).rows(slide)) / 1000 for slide in slides]
    assert all(0.3 <= share <= 0.8 for share in shares) and max(shares) - min(shares) > 0.3
    rows = View(1, SEED).rows(slides[0])
    assert np.all(np.diff(rows) > 0) and rows[0] >= 0 and rows[-1] < 1000
    assert np.array_equal(rows, View(1, SEED).rows(SlideFile("x0", "elsewhere.h5", "other", 1000)))
    others = (View(2, SEED).rows(slides[0]), View(1, 7).rows(slides[0]), View(1, SEED).rows(slides[1]))
    assert all(not np.array_equal(rows, other) for other in others)
    assert [View(number, SEED).rows(SlideFile("one", "", "", 1)).tolist() for number in (1, 2)] == [[0], [0]]


def test_each_slide_of_a_case_gives_its_share(slides):
    for number in range(1, 30):
        rows = View(number, SEED).rows(slides[-1])
        first, second = np.histogram(rows, [0, 20, 23])[0]
        assert 6 <= first <= 16 and 1 <= second <= 3 and len(set(rows)) == first + second
        assert abs(first / 20 - second / 3) < 0.5 / 3 + 0.5 / 20 + 1e-9


def test_the_cache_holds_what_the_encoder_gives_for_the_tiles_of_a_view(tmp_path, slides):
    cache = a_cache(tmp_path)
    assert fill(cache, slides, {"s0", "s2", "case"}) == 5 + 3 * 3
    for slide in slides:
        tiles = tiles_of(slide)
        np.testing.assert_allclose(cache(slide)[0], tiles.astype("f4").sum(0), atol=1e-4)
        for view in VIEWS:
            assert cache.has(slide, view) == (slide.slide_id in ("s0", "s2", "case"))
            if cache.has(slide, view):
                np.testing.assert_allclose(cache.read(slide, view)[0], tiles[view.rows(slide)].astype("f4").sum(0), atol=1e-4)
    assert fill(cache, slides, {"s0", "s2", "case"}) == 0, "and nothing twice"
    with refused("s1", "encoded again"):
        cache.read(slides[1], VIEWS[0])


def test_views_have_names_of_their_own_and_leave_those_of_all_tiles_alone(tmp_path, slides):
    cache, plain = a_cache(tmp_path), a_cache(tmp_path / "plain")
    slide = slides[0]
    renamed = SlideFile(**vars(slide) | {"slide_id": "other"})
    paths = {cache.path(slide), cache.path(slide, View(1, 42)), cache.path(slide, View(2, 42)), cache.path(slide, View(1, 7)),
             cache.path(renamed, View(1, 42))}
    assert len(paths) == 5 and cache.path(renamed) == cache.path(slide)
    plain.fill(slides, encode)
    fill(cache, slides, {s.slide_id for s in slides})
    assert all(np.array_equal(cache(s), plain(s)) and cache.path(s).name == plain.path(s).name for s in slides)


def test_a_fill_that_was_cut_off_goes_on_and_ends_with_the_same_bits(tmp_path, slides):
    whole, resumed = a_cache(tmp_path / "whole"), a_cache(tmp_path / "resumed")
    ids, calls = {s.slide_id for s in slides}, []
    fill(whole, slides, ids)

    def dies_in_the_third_group(tiles, mask):
        calls.append(len(tiles))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(tiles, mask)

    with pytest.raises(KeyboardInterrupt):
        fill(resumed, slides, ids, dies_in_the_third_group)
    assert 0 < fill(resumed, slides, ids) < 20
    assert all(np.array_equal(whole.read(s, v), resumed.read(s, v)) for s in slides for v in (None, *VIEWS))


def test_an_epoch_reads_one_encoding_drawn_by_seed_epoch_and_id(tmp_path, slides):
    cache = a_cache(tmp_path)
    fill(cache, slides, {s.slide_id for s in slides})
    reader, again = ViewReader(cache, 4, SEED), ViewReader(cache, 4, SEED)
    drawn = [view_of_epoch(slides[0], 4, SEED, epoch) for epoch in range(400)]
    counts = Counter(view.number if view else 0 for view in drawn)
    assert set(counts) == {0, 1, 2, 3} and min(counts.values()) > 60
    for epoch in range(8):
        tokens = reader(slides[0], epoch)
        assert np.array_equal(tokens, cache.read(slides[0], drawn[epoch])) and np.array_equal(tokens, again(slides[0], epoch))
    assert len({str(view_of_epoch(s, 4, SEED, 0)) for s in [SlideFile(f"x{i}", "", "", 9) for i in range(20)]}) == 4
    assert drawn != [view_of_epoch(slides[0], 4, 7, epoch) for epoch in range(400)]
    assert all(view_of_epoch(slides[0], 1, SEED, epoch) is None for epoch in range(9))
