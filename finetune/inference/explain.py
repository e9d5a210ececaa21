"""Where a sentence comes from: how much each tile of a slide speaks for each token and phrase of its caption.

Two ways to weigh tiles, both through CoCa's cross-attention, its pooling and the encoder's cross-attention:

- `gradient`, what is shown: each tile gets a weight in every cross-attention of the encoder, 1 if nothing is changed;
  the derivative of a token's log-probability by the logarithm of that weight says how much the token hangs on the tile.
  Gradients through attention, in the line of Chefer et al. 2021 (https://arxiv.org/abs/2103.15679). Of a phrase: a sum.
- `attention`, to compare with: attention rollout (Abnar & Zuidema 2020, https://arxiv.org/abs/2005.00928). It says
  where the model looks, not what changes its words.

The deletion test asks whether a map is true of the model: without the tenth of the tiles that weighs most, the phrase
must become less probable than without a random tenth. LOG.md has the comparison that made `gradient` the one shown.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coca_pytorch import CoCa
from prism.attention import encode_weighted

from ..common.errors import UserError, printable, say
from ..common.files import expand, write_atomically
from ..common.log import logger
from ..common.progress import progress
from ..config.schema import GenerationOptions
from ..data.slides import Slide, open_case
from ..data.tile_reader import read_coords, read_tiles
from ..pages.html import render
from .captioner import Captioner
from .tile_maps import Layout, heatmap_png, lay_out, open_thumbnail, page_data

SHARE = 0.1  # of the tiles, removed in the deletion test
_DRAWS = 10  # random removals each phrase is compared with
_ENDS_PHRASE = set("，。；、：！？,.;:!?\n")
_TOGETHER = 8  # slides without some tiles, encoded at once


@dataclass
class Weights:
    """Of one slide and its caption of T tokens (the end token left out).

    gradient: (T, N) derivative of log p(token) by the log weight of each tile; a row sums to 0. attention: (T, N)
    rollout, a row sums to 1. log_probs: (T,). image_tokens: (n, D) that the explained path computed.
    """

    gradient: Tensor
    attention: Tensor
    log_probs: Tensor
    image_tokens: Tensor


def tile_weights(captioner: Captioner, tiles: Tensor, ids: list[int]) -> Weights:
    """Weigh the tiles (N, C) of a slide for each token of a caption. ids: [bos, token, ..., eos]."""
    model = captioner.model
    tiles = tiles.to(model.decoder.img_queries)
    log_weights = tiles.new_zeros(len(tiles)).requires_grad_()
    with torch.enable_grad():
        embedding, latents, rollout = encode_weighted(model.prism, tiles, log_weights)
        tokens = torch.cat([embedding.unsqueeze(0), latents])[: model.image_tokens_shape[0]]
        log_probs, attention = _read(model.decoder, tokens, ids)
        rows = [torch.autograd.grad(log_prob, log_weights, retain_graph=True)[0]
                for log_prob in progress(log_probs[:-1], "explaining", len(log_probs) - 1, "token")]
    attention = attention[:-1] @ rollout[: len(tokens)]
    return Weights(torch.stack(rows), attention / attention.sum(1, keepdim=True), log_probs[:-1].detach(),
                   tokens.detach())


def _read(coca: CoCa, image_tokens: Tensor, ids: list[int]) -> tuple[Tensor, Tensor]:
    """Log-probabilities (T + 1,) of ids[1:], and how much each attends to the image tokens (T + 1, n)."""
    pooling, *readers = [coca.img_attn_pool, *(cross.fn for _, cross in coca.multimodal_layers)]
    seen: list[Tensor] = []

    def note(module: Any, inputs: tuple[Tensor, ...]) -> None:
        x, key = inputs[:2]
        with torch.no_grad():
            query = module.to_q(module.norm(x)).unflatten(-1, (module.heads, -1))[0]  # (i, h, d)
            scores = torch.einsum("ihd,jd->hij", query * query.shape[-1] ** -0.5, key[0])
            seen.append(scores.softmax(-1).mean(0))

    hooks = [module.register_forward_pre_hook(note) for module in (pooling, *readers)]
    try:
        text = torch.tensor([ids], device=image_tokens.device)
        logits = coca(text[:, :-1], image_tokens=image_tokens.unsqueeze(0),
                      text_mask=torch.ones_like(text[:, :-1], dtype=torch.bool))[0]
    finally:
        for hook in hooks:
            hook.remove()
    log_probs = logits.float().log_softmax(-1).gather(1, text[0, 1:, None]).squeeze(1)
    pooled, *read = seen
    return log_probs, torch.stack(read).mean(0) @ pooled[1:]


def phrases(pieces: list[str]) -> list[range]:
    """Which tokens form each phrase: up to a punctuation mark, which belongs to none."""
    found, begin = [], 0
    for i, piece in enumerate([*pieces, "。"]):
        if piece.strip(" ") in _ENDS_PHRASE:
            if i > begin:
                found.append(range(begin, i))
            begin = i + 1
    return found


@torch.no_grad()
def log_probs_without(captioner: Captioner, tiles: Tensor, kept: Tensor, ids: list[int]) -> Tensor:
    """Log-probabilities (B, T) of a caption's tokens where only some tiles are left: kept (B, N) bool.

    By the encoder as it is used everywhere, not by the path that explains.
    """
    model, rows = captioner.model, []
    tiles = tiles.to(model.decoder.img_queries)
    for part in progress(kept.split(_TOGETHER), "deletion test", math.ceil(len(kept) / _TOGETHER), "batch"):
        image_tokens = model.image_tokens(tiles.expand(len(part), -1, -1), part.to(tiles.device))
        rows += [_read(model.decoder, tokens, ids)[0][:-1] for tokens in image_tokens]
    return torch.stack(rows)


def deletion_test(captioner: Captioner, tiles: Tensor, ids: list[int], spans: list[range], weights: Weights,
                  seed: int = 0) -> list[dict[str, Any]]:
    """For each phrase its probability with all tiles, without its top tenth (by either method), without random tenths.

    `random`: the geometric mean over draws, which are the same for all phrases of a slide. `holds`: top < random.
    """
    count = max(1, round(SHARE * len(tiles)))
    if count >= len(tiles):
        return [{"removed": 0, "probability": _probability(weights.log_probs, span), "holds": None} for span in spans]
    generator = torch.Generator().manual_seed(seed)
    removed = [torch.randperm(len(tiles), generator=generator)[:count] for _ in range(_DRAWS)]
    for span in spans:
        removed += [w[span.start:span.stop].sum(0).topk(count).indices.cpu() for w in
                    (weights.gradient, weights.attention)]
    kept = torch.ones(len(removed), len(tiles), dtype=torch.bool)
    kept.scatter_(1, torch.stack(removed), False)
    log_probs = log_probs_without(captioner, tiles, kept, ids).double()
    results = []
    for number, span in enumerate(spans):
        by_gradient, by_attention = (log_probs[_DRAWS + 2 * number + i] for i in range(2))
        sums = log_probs[:, span.start:span.stop].sum(1)  # of a long phrase the probability may be no float any more
        draws = sums[:_DRAWS].mean()
        result = {"removed": count, "probability": _probability(weights.log_probs, span),
                  "without_top": _probability(by_gradient, span), "without_random": draws.exp().item(),
                  "without_top_by_attention": _probability(by_attention, span)}
        results.append(result | {"holds": bool(sums[_DRAWS + 2 * number] < draws)})
    return results


def _probability(log_probs: Tensor, span: range) -> float:
    return log_probs[span.start:span.stop].double().sum().exp().item()


def explain(captioner: Captioner, slide: Slide, caption: str) -> dict[str, Any]:
    """All that is known of where `caption` comes from: plain types, weights as lists over the tiles in file order."""
    tiles = torch.from_numpy(np.array(read_tiles(slide))).to(captioner.precision.device)
    tokenizer = captioner.tokenizer
    words = tokenizer.encode(caption)
    if not words:
        raise UserError(slide.slide_id, "its caption is empty", "there is nothing to explain; train longer")
    ids = [tokenizer.bos_id, *words, tokenizer.eos_id]
    pieces = [tokenizer.decode([i]) for i in words]
    spans = phrases(pieces)
    weights = tile_weights(captioner, tiles, ids)
    tests = deletion_test(captioner, tiles, ids, spans, weights)
    rows = _shares(weights.gradient)
    return {
        "id": slide.slide_id, "caption": caption, "method": "gradient", "tiles": len(tiles),
        "tokens": [{"text": piece, "probability": p, "weights": row} for piece, p, row in
                   zip(pieces, weights.log_probs.exp().tolist(), rows, strict=True)],
        "phrases": [{"text": "".join(pieces[s.start:s.stop]), "tokens": list(s), "deletion_test": test,
                     "weights": _shares(weights.gradient[s.start:s.stop].sum(0, keepdim=True))[0]}
                    for s, test in zip(spans, tests, strict=True)],
    }


def _shares(gradient: Tensor) -> list[list[float]]:
    """What speaks for a token, (T, N) -> shares that sum to 1. What speaks against it is 0."""
    positive = gradient.clamp(min=0).double()
    return (positive / positive.sum(1, keepdim=True).clamp(min=1e-300)).tolist()


def run_explain(args: argparse.Namespace, options: GenerationOptions) -> int:
    """What `inference.py --explain DIR` does: caption one slide, write explanation.json, a PNG per phrase, a page."""
    folder = expand(args.explain)
    if args.embeddings_file is None:
        raise UserError("--explain", "is for one slide", "give it with --embeddings_file")
    thumbnail = open_thumbnail(expand(args.thumbnail)) if args.thumbnail else None
    scale = _positive("--thumbnail_scale", args.thumbnail_scale)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(folder, f"cannot be made ({error.strerror})", "give another folder to --explain") from None
    captioner = Captioner.of_flags(args, options)
    slide = open_slide(captioner, expand(args.embeddings_file))
    caption = captioner.describe([slide], [], options)[0]["caption"]
    explanation, layout = explain_slide(captioner, slide, caption, thumbnail and thumbnail.size, scale)
    try:
        write_atomically(folder / "explanation.json", json.dumps(explanation, ensure_ascii=False))
        for number, phrase in enumerate(explanation["phrases"], start=1):
            write_atomically(folder / f"phrase_{number}.png", heatmap_png(layout, phrase["weights"], thumbnail))
        page = render("explain.html", ("page.js", "tilemap.js"), id=slide.slide_id,
                      data=page_data(explanation, layout, thumbnail))
        write_atomically(folder / "explanation.html", page)
    except OSError as error:
        raise UserError(folder, f"cannot be written ({error.strerror})", "free some space") from None
    say(f"{printable(slide.slide_id)}\tcaption: {printable(explanation['caption'])}")
    for phrase in explanation["phrases"]:
        say(f"\t{printable(phrase['text'])}\t{describe_test(phrase['deletion_test'])}")
    say(f"explanation.html, explanation.json and {len(explanation['phrases'])} PNG in {folder}")
    return 0


def _positive(flag: str, text: str | None) -> float | None:
    try:
        value = None if text is None else float(text)
    except ValueError:
        value = math.nan
    if value is not None and not 0 < value < math.inf:
        raise UserError(flag, f"is {text!r}", "it must be a number above 0")
    return value


def describe_test(test: dict[str, Any]) -> str:
    if test["holds"] is None:
        return f"probability {test['probability']:.5g}; too few tiles for a deletion test"
    return (f"probability {test['probability']:.5g}; without its top {test['removed']} tiles "
            f"{test['without_top']:.5g}, without as many random ones {test['without_random']:.5g}"
            + ("" if test["holds"] else "  (the deletion test does not hold: do not trust this map)"))


def open_slide(captioner: Captioner, path: Path) -> Slide:
    data = captioner.config.data
    return open_case(path.stem, [[str(path)]], data.h5_key, data.image_dim, data.wanted_encoder)


def explain_slide(captioner: Captioner, slide: Slide, caption: str,
                  thumbnail_size: tuple[int, int] | None = None,
                  thumbnail_scale: float | None = None) -> tuple[dict[str, Any], Layout]:
    """Explain a caption of a slide; tiles with their coordinates, or laid on a square where the file has none.

    Raises UserError for a model with Prism's own decoder, and for a slide whose caption is empty.
    """
    if not isinstance(captioner.model.decoder, CoCa):
        raise UserError("--explain", "the captions are of Prism's own text decoder",
                        "explanations are for model.decoder=coca")
    coords = read_coords(slide)
    if coords is None:
        logger.warning("%s has no coordinates: its tiles are laid on a square in the order of the file", slide.slide_id)
    layout = lay_out(slide.num_tiles, coords, thumbnail_size, thumbnail_scale)
    explanation = explain(captioner, slide, caption)
    explanation["unit"] = coords.unit if coords else None
    explanation["coordinates"] = coords.xy.tolist() if coords else None
    return explanation, layout
