"""How much each tile of a slide speaks for a phrase and against its alternative: integrated gradients.

All tiles t are moved to the slide's mean tile m at once: m + a (t - m) with a from 1 to 0. The log odds of the phrase
change on the way, and what each tile contributes to the change is its attribution; together they are the log odds of
the slide less those of a slide of mean tiles. (Integrated gradients, Sundararajan et al. 2017,
https://arxiv.org/abs/1703.01365.) The gradient at the slide itself, a = 1, says little: where several tiles show the
same, no single one changes anything. LOG.md has the comparison that chose this.

Shapes: N tiles of dimension C, P phrases.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from prism.attention import BlendedSlide

from ..common.progress import progress
from ..models.captioner import SlideCaptioner
from .contrast import Contrast, log_odds

_STEPS = 4  # points of the Gauss-Legendre quadrature; with 8 the maps are the same (LOG.md)


def attribute_tiles(model: SlideCaptioner, tiles: Tensor, contrasts: Sequence[Contrast]) -> Tensor:
    """Attribute the log odds of phrases to the tiles (N, C) of their slide: (P, N), in the encoder's type."""
    points, weights = np.polynomial.legendre.leggauss(_STEPS)  # on [-1, 1]
    slide, total = BlendedSlide(model.prism, tiles), 0.0
    for point, weight in progress(list(zip(points, weights, strict=True)), "explaining", _STEPS, "step"):
        gradients = _gradients(model, slide, (point.item() + 1) / 2, contrasts)
        total = total + gradients * (weight.item() / 2)
    return total


def _gradients(model: SlideCaptioner, slide: BlendedSlide, share: float,
               contrasts: Sequence[Contrast]) -> Tensor:
    """Derivatives (P, N) of the log odds by each tile's share, where all are `share`."""
    decoder = model.decoder
    with torch.enable_grad():
        shares = slide.shares(share).requires_grad_()
        embedding, latents = slide.encode(shares)
        image_tokens = torch.cat([embedding.unsqueeze(0), latents])[:model.image_tokens_shape[0]].to(decoder.dtype)
        rows = []
        for contrast in contrasts:
            rows += torch.autograd.grad(log_odds(decoder, image_tokens, contrast), shares, retain_graph=True)
    return torch.stack(rows)
