"""Does a map show what the model goes by? The deletion test: without its top tiles, a phrase must lose its log odds.

A map is shown only if it passes. For one of the sizes below, removing as many of the tiles that weigh most must lower
the log odds of the phrase against its alternative

- by half, and at least by half a nat: in the sample slides, what stands in some tiles loses more than all of its log
  odds, what stands in all tiles at most a seventh (LOG.md); half is far from both;
- and by 4.34 standard deviations more than 20 random removals of as many tiles do on average: that is as improbable in
  one of the six sizes as three standard deviations in a single one.

Sizes grow, since what a third of the tiles show is still there without a tenth; the first that passes counts.

Shapes: N tiles of dimension C, K versions of a slide, P phrases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..common.progress import progress
from ..models.captioner import SlideCaptioner
from .contrast import Contrast, log_odds

_SIZES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4)  # of the tiles; a map of more would not say where
_DRAWS = 20  # random removals of a size, which has more different ones than that
_SHARE = 0.5  # of the log odds that must be lost
_LEAST = 1.0  # nat; smaller log odds count as this: what is a coin's toss anyway has no effect to lose
# Standard deviations: Student's t of one more draw beside 20, for the tail beyond 3 sigma divided by the six sizes
# (Bonferroni), t(19) = 4.233 times sqrt(1 + 1 / 20)
_SPREAD = 4.34
_TILES = 40_000  # of versions of a slide that are encoded together, 0.4 GB in float32; one version at least
_VERSIONS = 8  # most versions


@dataclass(frozen=True)
class Effect:
    """The deletion test of one phrase: the first size that passes, else the largest.

    Attributes:
        log_odds: Of the whole slide.
        removed: Number of tiles; 0 if the slide has too few for the test.
        without_top: Log odds without the tiles that weigh most; None if there are too few.
        without_random: Mean log odds without random tiles; None if `without_top` alone decided.
        spread: Standard deviation of those.
        holds: Whether the test passes; None if there are too few tiles for it.
    """

    log_odds: float
    removed: int = 0
    without_top: float | None = None
    without_random: float | None = None
    spread: float | None = None
    holds: bool | None = None

    @property
    def wanted(self) -> float:
        """The log odds that must not be exceeded without the top tiles."""
        return self.log_odds - _SHARE * max(self.log_odds, _LEAST)


def deletion_sizes(num_tiles: int) -> list[int]:
    """The numbers of tiles to remove, growing; none if there are too few tiles."""
    sizes = sorted({round(share * num_tiles) for share in _SIZES})
    return [size for size in sizes if math.comb(num_tiles, size) > _DRAWS + 1]


def deletion_test(model: SlideCaptioner, tiles: Tensor, contrasts: Sequence[Contrast], weights: Tensor,
                  seed: int = 0) -> list[Effect]:
    """Test the map of each phrase.

    Args:
        tiles: (N, C)
        weights: (P, N), the higher the more a tile speaks for the phrase.
        seed: Of the random removals, which are the same for all phrases of a slide.
    """
    order = weights.argsort(dim=1, descending=True).cpu()
    whole = log_odds_without(model, tiles, [torch.empty(0, dtype=torch.long)], contrasts)[0].tolist()
    effects, sizes = [Effect(value) for value in whole], deletion_sizes(len(tiles))
    for size in progress(sizes, "deletion test", len(sizes), "size"):
        tops = order[:, :size]
        effects = _without_top(model, tiles, contrasts, tops, effects)
        effects = _beside_random(model, tiles, contrasts, tops, effects, seed)
    return effects


def _without_top(model: SlideCaptioner, tiles: Tensor, contrasts: Sequence[Contrast], tops: Tensor,
                 effects: list[Effect]) -> list[Effect]:
    """The effects after the top tiles (P, size) of the phrases that have not passed are removed."""
    found = []
    for effect, contrast, top in zip(effects, contrasts, tops, strict=True):
        if not effect.holds:
            value = log_odds_without(model, tiles, [top], [contrast]).item()
            effect = Effect(effect.log_odds, len(top), value, holds=False)
        found.append(effect)
    return found


def _beside_random(model: SlideCaptioner, tiles: Tensor, contrasts: Sequence[Contrast], tops: Tensor,
                   effects: list[Effect], seed: int) -> list[Effect]:
    """The effects, those whose log odds have fallen far enough compared with random removals of as many tiles."""
    size, found = tops.shape[1], list(effects)
    fallen = [i for i, effect in enumerate(effects) if _is_to_compare(effect)]
    if not fallen:
        return found
    removals = _random_removals(len(tiles), size, seed)
    values = log_odds_without(model, tiles, removals, [contrasts[i] for i in fallen])  # (_DRAWS, fallen)
    in_order = torch.stack(removals).sort().values
    for column, i in enumerate(fallen):
        is_top = (in_order == tops[i].sort().values).all(dim=1)
        found[i] = _compared(effects[i], values[~is_top.to(values.device), column].double())
    return found


def _is_to_compare(effect: Effect) -> bool:
    """Whether the log odds have fallen far enough without the top tiles, and the phrase has not passed yet."""
    return not effect.holds and effect.without_top <= effect.wanted


def _random_removals(num_tiles: int, size: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(num_tiles, generator=generator)[:size] for _ in range(_DRAWS)]


def _compared(effect: Effect, random: Tensor) -> Effect:
    """An effect whose log odds have fallen far enough, compared with those of random removals (draws,)."""
    mean, spread = random.mean().item(), random.std().item()
    return replace(effect, without_random=mean, spread=spread, holds=mean - effect.without_top > _SPREAD * spread)


@torch.no_grad()
def log_odds_without(model: SlideCaptioner, tiles: Tensor, removals: Sequence[Tensor],
                     contrasts: Sequence[Contrast]) -> Tensor:
    """Log odds (K, P) of phrases without some tiles, by the ordinary encoder.

    Args:
        tiles: (N, C)
        removals: K times the indices of tiles, on the CPU.
    """
    kept = torch.ones(len(removals), len(tiles), dtype=torch.bool)
    for row, removed in zip(kept, removals, strict=True):
        row[removed] = False
    rows, decoder = [], model.decoder
    versions = min(max(_TILES // len(tiles), 1), _VERSIONS)
    for masks in kept.split(versions):
        copies = tiles.expand(len(masks), -1, -1)
        image_tokens = model.image_tokens(copies, masks.to(tiles.device)).to(decoder.dtype)
        for tokens in image_tokens:
            of_version = [log_odds(decoder, tokens, contrast) for contrast in contrasts]
            rows.append(torch.stack(of_version))
    return torch.stack(rows)
