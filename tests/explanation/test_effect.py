"""The deletion test against removal by hand, on a captioner whose reasons are known."""

from __future__ import annotations

import math

import pytest
import torch

from finetune.explanation import effect
from finetune.explanation.attribution import attribute_tiles
from finetune.explanation.contrast import log_odds
from finetune.explanation.effect import deletion_sizes, deletion_test, log_odds_without
from tests.helpers.planted import contrasts_of, planted


def alone(captioner, tiles, kept, contrast):
    """Log odds of the slide that never had the other tiles."""
    tokens = captioner.model.image_tokens(tiles[kept][None], torch.ones(1, int(kept.sum()), dtype=torch.bool))[0]
    return log_odds(captioner.model.decoder, tokens, contrast).item()


def explained(captioner, tiles):
    _, contrasts = contrasts_of(captioner, tiles, "见坏死，组织好。")
    return contrasts, attribute_tiles(captioner.model, tiles, contrasts)


@pytest.mark.parametrize("together", [8, 1])
def test_leaving_out_each_tile_in_turn_is_the_slide_without_it(monkeypatch, together):
    monkeypatch.setattr(effect, "_VERSIONS", together)
    captioner, tiles, _ = planted(12, 2)
    _, contrasts = contrasts_of(captioner, tiles, "见坏死，组织好。")
    found = log_odds_without(captioner.model, tiles, [torch.tensor([i]) for i in range(12)], contrasts)
    assert found.shape == (12, 2) and found[:, 0].std() > 1e-3
    for i, row in enumerate(found):
        kept = torch.arange(12) != i
        assert row.tolist() == pytest.approx([alone(captioner, tiles, kept, c) for c in contrasts], abs=1e-5)


def test_a_phrase_that_goes_by_planted_tiles_passes_and_one_that_goes_by_none_does_not():
    captioner, tiles, _ = planted()
    contrasts, weights = explained(captioner, tiles)
    holds, fails = deletion_test(captioner.model, tiles, contrasts, weights)
    assert holds.holds is True and fails.holds is False
    assert fails.log_odds == pytest.approx(fails.without_top) == pytest.approx(3) and fails.without_random is None
    kept = torch.ones(40, dtype=torch.bool)
    kept[weights[0].topk(holds.removed).indices] = False
    assert holds.removed in deletion_sizes(40) and holds.without_top == pytest.approx(alone(captioner, tiles, kept, contrasts[0]), abs=1e-5)
    assert holds.without_top <= 0.5 * holds.log_odds and holds.without_random - holds.without_top > 3 * holds.spread
    for size in deletion_sizes(40):  # the first that is enough
        if size < holds.removed:
            kept = torch.ones(40, dtype=torch.bool)
            kept[weights[0].topk(size).indices] = False
            assert alone(captioner, tiles, kept, contrasts[0]) > 0.5 * holds.log_odds


def test_the_wrong_tiles_have_no_effect():
    captioner, tiles, _ = planted()
    contrasts, weights = explained(captioner, tiles)
    for wrong in (-weights, torch.rand(2, 40, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 40)):
        assert [result.holds for result in deletion_test(captioner.model, tiles, contrasts, wrong)] == [False, False]


def test_what_falls_as_far_without_random_tiles_is_no_effect(monkeypatch):
    """Where each tile counts, half of the log odds go with any 40 % of them: the map says nothing."""
    captioner, tiles, _ = planted()
    contrasts, weights = explained(captioner, tiles)

    def share_of_kept(model, tiles, removals, contrasts):
        noise = torch.rand(len(removals), 1, generator=torch.Generator().manual_seed(len(removals)))
        return torch.stack([torch.full((len(contrasts),), 1 - len(r) / len(tiles)) for r in removals]) * 8 - (noise if len(removals) > 1 else 0)

    monkeypatch.setattr(effect, "log_odds_without", share_of_kept)
    monkeypatch.setattr(effect, "_SIZES", (0.1, 0.6))
    result = deletion_test(captioner.model, tiles, contrasts, weights)[0]
    assert result.holds is False and result.without_top < 0.5 * result.log_odds and result.without_random is not None


@pytest.mark.parametrize(("whole", "without", "holds"), [(8.0, 4.1, False), (8.0, 3.9, True), (0.2, 0.05, False), (0.2, -0.35, True), (-1.0, -1.4, False), (-1.0, -1.6, True)])
def test_half_of_the_log_odds_and_half_a_nat_must_go(monkeypatch, whole, without, holds):
    captioner, tiles, _ = planted()
    contrasts, weights = explained(captioner, tiles)
    top = weights[0].argmax().item()
    monkeypatch.setattr(effect, "log_odds_without", lambda model, tiles, removals, contrasts: torch.tensor(
        [[without if top in r.tolist() and len(removals) == 1 else whole] * len(contrasts) for r in removals]))
    assert deletion_test(captioner.model, tiles, contrasts, weights)[0].holds is holds


def test_few_tiles_are_not_tested():
    captioner, tiles, _ = planted()
    contrasts, weights = explained(captioner, tiles)
    for count in (1, 2, 6):
        result = deletion_test(captioner.model, tiles[:count], contrasts, weights[:, :count])[0]
        assert (result.holds, result.removed, result.without_top) == (None, 0, None) and math.isfinite(result.log_odds)
    assert deletion_sizes(7) == [3] and deletion_sizes(24)[0] == 1 and deletion_sizes(50)[0] == 1
    assert deletion_sizes(1000) == [20, 50, 100, 200, 300, 400]
