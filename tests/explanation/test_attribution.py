"""Attributions against the ordinary encoder, finite differences, their own completeness, and planted tiles."""

from __future__ import annotations

import pytest
import torch

from finetune.explanation import attribution
from finetune.explanation.attribution import attribute_tiles
from finetune.explanation.contrast import log_odds
from prism import perceiver
from prism.attention import BlendedSlide
from tests.helpers.planted import contrasts_of, planted, tiny_encoder


@pytest.fixture
def tiles():
    return 3 * torch.randn(13, 12, dtype=torch.double, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("part", [4096, 4])
@pytest.mark.parametrize("wide", [False, True])
def test_a_blended_slide_is_the_slide_of_blended_tiles(tiles, monkeypatch, part, wide):
    monkeypatch.setattr(perceiver, "PART", part)
    if wide:
        monkeypatch.setattr(perceiver.CrossAttention, "keys_values", lambda *_: None)
    prism, mean = tiny_encoder(), tiles.mean(0)
    shares = torch.rand(13, dtype=torch.double, generator=torch.Generator().manual_seed(2))
    for given in (torch.ones(13).double(), shares, torch.zeros(13).double()):
        used = prism.slide_representations((mean + given[:, None] * (tiles - mean))[None])
        embedding, latents = BlendedSlide(prism, tiles).encode(given)
        torch.testing.assert_close(embedding, used["image_embedding"][0], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(latents, used["image_latents"][0], rtol=1e-6, atol=1e-6)


def odds_at(captioner, tiles, contrast, shares):
    """By the ordinary encoder."""
    mean = tiles.mean(0)
    moved = mean + shares[:, None] * (tiles - mean)
    tokens = captioner.model.image_tokens(moved[None], torch.ones(1, len(tiles), dtype=torch.bool))[0]
    return log_odds(captioner.model.decoder, tokens, contrast).item()


def steep(captioner, tiles):
    """Let the decoder turn from one phrase to the other between the slide of mean tiles and the slide."""
    slide = BlendedSlide(captioner.model.prism, tiles)
    without, whole = (slide.encode(slide.shares(share))[1].mean(0) for share in (0.0, 1.0))
    decoder, difference = captioner.model.decoder, (whole - without).detach()
    decoder.middle, decoder.direction = without.detach() + difference / 2, 2 * difference / difference.square().sum()


def test_the_gradient_is_the_one_of_finite_differences(monkeypatch):
    monkeypatch.setattr(attribution, "_STEPS", 1)  # one point, half way
    captioner, tiles, marked = planted()
    steep(captioner, tiles)
    _, contrasts = contrasts_of(captioner, tiles, "见坏死，组织好。")
    found = attribute_tiles(captioner.model, tiles, contrasts)
    assert found.shape == (2, 40) and found[0].abs().max() > 0.1
    for tile in [int(marked.nonzero()[0]), int((~marked).nonzero()[0])]:
        slope = []
        for by in (0.01, -0.01):
            shares = torch.full((40,), 0.5, dtype=torch.double)
            shares[tile] += by
            slope.append(odds_at(captioner, tiles, contrasts[0], shares))
        assert found[0, tile].item() == pytest.approx((slope[0] - slope[1]) / 0.02, rel=1e-2, abs=1e-2)


def test_attributions_sum_to_what_the_slide_has_over_its_mean_tile(monkeypatch):
    monkeypatch.setattr(attribution, "_STEPS", 12)
    captioner, tiles, _ = planted()
    steep(captioner, tiles)
    _, (contrast, constant) = contrasts_of(captioner, tiles, "见坏死，组织好。")
    found = attribute_tiles(captioner.model, tiles, [contrast, constant])
    ends = [odds_at(captioner, tiles, contrast, torch.full((40,), share, dtype=torch.double)) for share in (1.0, 0.0)]
    assert abs(ends[0] - ends[1]) > 5 and found[0].sum().item() == pytest.approx(ends[0] - ends[1], rel=0.01)
    torch.testing.assert_close(found[1], torch.zeros(40, dtype=torch.double), rtol=0, atol=1e-5)


def test_the_planted_tiles_are_found_where_no_single_one_changes_anything():
    captioner, tiles, marked = planted()
    _, (contrast, _) = contrasts_of(captioner, tiles, "见坏死，组织好。")
    found = attribute_tiles(captioner.model, tiles, [contrast])[0]
    assert found[marked].min() > found[~marked].max()
    whole = odds_at(captioner, tiles, contrast, torch.ones(40, dtype=torch.double))
    for tile in marked.nonzero()[:, 0].tolist():
        kept = [i for i in range(40) if i != tile]
        alone = captioner.model.image_tokens(tiles[kept][None], torch.ones(1, 39, dtype=torch.bool))[0]
        assert whole - log_odds(captioner.model.decoder, alone, contrast).item() < 0.1 * whole
