"""Explanation of a caption: how much each tile of a slide contributes to each token and phrase.

Two attributions, both through CoCa's cross-attention, its attention pooling and the encoder's cross-attention:

- `gradient`, the one shown: each tile gets a weight in every cross-attention of the encoder, 1 if nothing is changed;
  the attribution is the derivative of a token's log-probability by the logarithm of that weight. Gradients through
  attention, as in Chefer et al. 2021 (https://arxiv.org/abs/2103.15679). Of a phrase: the sum.
- `attention`, for comparison: attention rollout (Abnar & Zuidema 2020, https://arxiv.org/abs/2005.00928). It shows
  where the model attends, not what changes its tokens.

The deletion test asks whether a map is faithful to the model: without the tenth of the tiles of highest attribution,
the phrase must become less probable than without a random tenth. LOG.md has the comparison that chose `gradient`.

Shapes: N tiles of dimension C, T tokens of a caption (without begin and end token), n image tokens of dimension D.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from prism.attention import encode_weighted

from ..common.errors import UserError, say
from ..common.files import expand, write_atomically
from ..common.log import logger
from ..common.progress import progress
from ..common.visible import json_text, visible
from ..data.slides import Slide, open_case
from ..data.tile_reader import read_coords, read_tiles
from ..data.tokenizer import Tokenizer
from ..models.captioner import CaptionDecoder
from ..pages.chinese import reasons_in_words
from ..pages.html import render
from .captioner import Captioner
from .memory import memory_errors
from .model_facts import ModelFacts
from .nearest import TrainingSlides, judge_of
from .options import InferenceOptions
from .records import CUT
from .tile_maps import Layout, heatmap_png, lay_out, open_thumbnail, page_data

_REMOVED_FRACTION = 0.1  # of the tiles, removed in the deletion test
_DRAWS = 10  # random removals each phrase is compared with
_ENDS_PHRASE = set("，。；、：！？,.;:!?\n")
_TILES = 40_000  # of versions of a slide that are encoded together, 0.4 GB in float32; one version at least
_VERSIONS = 8  # most versions


@dataclass
class Attribution:
    """How much each tile of a slide contributes to each token of its caption.

    Attributes:
        gradient: (T, N) derivative of log p(token) by the log weight of each tile; a row sums to 0.
        attention: (T, N) rollout; a row sums to 1.
        log_probs: (T,) of the tokens.
        image_tokens: (n, D) as computed on the differentiable path.
    """

    gradient: Tensor
    attention: Tensor
    log_probs: Tensor
    image_tokens: Tensor


def attribute_tiles(captioner: Captioner, tiles: Tensor, ids: list[int]) -> Attribution:
    """Attribute each token of a caption to the tiles (N, C) of its slide. ids: [bos, token, ..., eos]."""
    model = captioner.model
    tiles = tiles.to(model.decoder.device, model.decoder.dtype)
    log_weights = tiles.new_zeros(len(tiles)).requires_grad_()
    gradients = []
    with torch.enable_grad():
        embedding, latents, rollout = encode_weighted(model.prism, tiles, log_weights)
        num_image_tokens = model.image_tokens_shape[0]
        image_tokens = torch.cat([embedding.unsqueeze(0), latents])[:num_image_tokens]
        log_probs, attention = token_attention(model.decoder, image_tokens, ids)
        for log_prob in progress(log_probs[:-1], "explaining", len(log_probs) - 1, "token"):
            gradients += torch.autograd.grad(log_prob, log_weights, retain_graph=True)
    attention = attention[:-1] @ rollout[:num_image_tokens]
    return Attribution(torch.stack(gradients), attention / attention.sum(1, keepdim=True), log_probs[:-1].detach(),
                       image_tokens.detach())


def token_attention(decoder: CaptionDecoder, image_tokens: Tensor, ids: list[int]) -> tuple[Tensor, Tensor]:
    """Log-probabilities (T + 1,) of ids[1:], and how much each attends to the image tokens: (T + 1, n)."""
    text = torch.tensor([ids], device=image_tokens.device)
    inputs, labels = text[:, :-1], text[0, 1:]
    logits, attention = decoder.logits_and_attention(inputs, image_tokens=image_tokens.unsqueeze(0),
                                                     text_mask=torch.ones_like(inputs, dtype=torch.bool))
    log_probs = logits[0].float().log_softmax(-1).gather(1, labels[:, None]).squeeze(1)
    return log_probs, attention[0]


def token_texts(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    """The text of each token, which together are the caption.

    Where several byte-level tokens spell one character, the last of them gets it and the others nothing.
    """
    texts, done = [], ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:end])
        if end < len(ids):
            text = text.rstrip("\ufffd")  # bytes of a character that is not complete
        texts.append(text[len(done):] if text.startswith(done) else "")
        done = text if text.startswith(done) else done
    return texts


def phrases(pieces: list[str]) -> list[range]:
    """The tokens of each phrase, up to a punctuation mark; a token that is nothing but a mark belongs to none.

    Args:
        pieces: The text of each token.
    """
    spans, begin = [], 0
    for i, piece in enumerate([*pieces, "。"]):
        is_mark = piece.strip(" ") in _ENDS_PHRASE
        if is_mark or piece[-1:] in _ENDS_PHRASE:
            end = i if is_mark else i + 1
            if end > begin:
                spans.append(range(begin, end))
            begin = i + 1
    return spans


@torch.no_grad()
def log_probs_without(captioner: Captioner, tiles: Tensor, kept: Tensor, ids: list[int]) -> Tensor:
    """Log-probabilities of a caption's tokens if only some tiles are kept, by the ordinary encoder.

    Args:
        captioner: The model.
        tiles: (N, C)
        kept: bool (K, N), K versions of the slide.
        ids: [bos, token, ..., eos]

    Returns:
        (K, T)
    """
    model, rows = captioner.model, []
    tiles = tiles.to(model.decoder.device, model.decoder.dtype)
    versions = min(max(_TILES // len(tiles), 1), _VERSIONS)
    for mask in progress(kept.split(versions), "deletion test", math.ceil(len(kept) / versions), "batch"):
        image_tokens = model.image_tokens(tiles.expand(len(mask), -1, -1), mask.to(tiles.device))
        for tokens in image_tokens:
            rows.append(token_attention(model.decoder, tokens, ids)[0][:-1])
    return torch.stack(rows)


def deletion_test(captioner: Captioner, tiles: Tensor, ids: list[int], spans: list[range], attribution: Attribution,
                  seed: int = 0) -> list[dict[str, Any]]:
    """For each phrase its probability with all tiles, without its top tenth, and without random tenths.

    Args:
        captioner: The model.
        tiles: (N, C)
        ids: [bos, token, ..., eos]
        spans: The tokens of each phrase.
        attribution: Of the caption; the top tenth is removed by either method.
        seed: Of the random removals, which are the same for all phrases of a slide.

    Returns:
        A dict per phrase. `without_random`: geometric mean over the draws. `holds`: without_top < without_random;
        None if there are too few tiles.
    """
    count = max(1, round(_REMOVED_FRACTION * len(tiles)))
    if count >= len(tiles):
        return [{"removed": 0, "probability": _probability(attribution.log_probs, span), "holds": None}
                for span in spans]
    generator = torch.Generator().manual_seed(seed)
    removed = [torch.randperm(len(tiles), generator=generator)[:count] for _ in range(_DRAWS)]
    for span in spans:
        for weights in (attribution.gradient, attribution.attention):
            removed.append(_of_phrase(weights, span).topk(count).indices.cpu())
    kept = torch.ones(len(removed), len(tiles), dtype=torch.bool)
    kept.scatter_(1, torch.stack(removed), False)
    log_probs = log_probs_without(captioner, tiles, kept, ids).double()
    random, top_by_gradient, top_by_attention = log_probs[:_DRAWS], log_probs[_DRAWS::2], log_probs[_DRAWS + 1::2]
    results = []
    for span, by_gradient, by_attention in zip(spans, top_by_gradient, top_by_attention, strict=True):
        # compared as logarithms: the probability of a long phrase may underflow
        mean_random = random[:, span.start:span.stop].sum(1).mean()
        results.append({
            "removed": count,
            "probability": _probability(attribution.log_probs, span),
            "without_top": _probability(by_gradient, span),
            "without_random": mean_random.exp().item(),
            "without_top_by_attention": _probability(by_attention, span),
            "holds": bool(by_gradient[span.start:span.stop].sum() < mean_random),
        })
    return results


def _of_phrase(per_token: Tensor, span: range) -> Tensor:
    """Sum over the tokens of a phrase: (T, ...) -> (...)."""
    return per_token[span.start:span.stop].sum(0)


def _probability(log_probs: Tensor, span: range) -> float:
    return _of_phrase(log_probs.double(), span).exp().item()


def explain(captioner: Captioner, slide: Slide, caption: str) -> dict[str, Any]:
    """The explanation of a caption in plain types, weights as lists over the tiles in file order."""
    tokenizer = captioner.tokenizer
    token_ids = tokenizer.encode(caption)
    if not token_ids:
        raise UserError(slide.slide_id, "its caption is empty", "there is nothing to explain; train longer")
    ids = [tokenizer.bos_id, *token_ids, tokenizer.eos_id]
    pieces = token_texts(tokenizer, token_ids)
    spans = phrases(pieces)
    tiles = torch.from_numpy(np.array(read_tiles(slide))).to(captioner.precision.device)  # (N, C)
    attribution = attribute_tiles(captioner, tiles, ids)
    tests = deletion_test(captioner, tiles, ids, spans, attribution)
    tokens = []
    probabilities = attribution.log_probs.exp().tolist()
    for piece, probability, gradient in zip(pieces, probabilities, attribution.gradient, strict=True):
        tokens.append({"text": piece, "probability": probability, "weights": _positive_part(gradient)})
    explained_phrases = []
    for span, test in zip(spans, tests, strict=True):
        weights = _positive_part(_of_phrase(attribution.gradient, span))
        explained_phrases.append({"text": "".join(pieces[span.start:span.stop]), "tokens": list(span),
                                  "deletion_test": test, "weights": weights})
    return {"id": slide.slide_id, "caption": caption, "method": "gradient", "tiles": len(tiles), "tokens": tokens,
            "phrases": explained_phrases}


def _positive_part(gradient: Tensor) -> list[float]:
    """(N,) -> weights that sum to 1; tiles that speak against the token get 0."""
    positive = gradient.clamp(min=0).double()
    return (positive / positive.sum().clamp(min=1e-300)).tolist()


def run_explain(options: InferenceOptions) -> int:
    """Caption one slide; write explanation.json, a PNG per phrase and a page. Returns 0; raises UserError."""
    folder = expand(options.explain)
    thumbnail = open_thumbnail(expand(options.thumbnail)) if options.thumbnail else None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(folder, f"cannot be created ({error.strerror})", "give another folder to --explain") from None
    captioner = Captioner.from_options(options)
    captioner.judge = judge_of(captioner, TrainingSlides.load(options.checkpoint, captioner, searchable=False))
    slide = open_slide(captioner, expand(options.embeddings_file))
    record = captioner.describe([slide], [], options.generation(captioner.trained_length))[0]
    caption = record["caption"]
    thumbnail_size = thumbnail.size if thumbnail else None
    explanation, layout = explain_slide(captioner, slide, caption, thumbnail_size, options.thumbnail_scale)
    explanation |= {name: record.get(name) for name in ("finished", "confidence", "unusual", "unusual_reason")}
    try:
        _write_explanation(folder, explanation, layout, thumbnail, ModelFacts.of(captioner))
    except OSError as error:
        raise UserError(folder, f"cannot be written ({error.strerror})", "free some space") from None
    say(f"{visible(slide.slide_id)}\tcaption: {visible(caption)}{'' if record['finished'] else CUT}",
        *([f"\tunusual: {record['unusual_reason']}"] if record.get("unusual") else []))
    for phrase in explanation["phrases"]:
        say(f"\t{visible(phrase['text'])}\t{describe_test(phrase['deletion_test'])}")
    say(f"explanation.html, explanation.json and {len(explanation['phrases'])} PNG in {folder}")
    return 0


def _write_explanation(folder: Path, explanation: dict[str, Any], layout: Layout, thumbnail: Image.Image | None,
                       model: ModelFacts) -> None:
    write_atomically(folder / "explanation.json", json_text(explanation))
    for number, phrase in enumerate(explanation["phrases"], start=1):
        write_atomically(folder / f"phrase_{number}.png", heatmap_png(layout, phrase["weights"], thumbnail))
    page = render("explain.html", ("page.js", "tilemap.js", "explain.js"), banners=model.banners, model=model,
                  explanation=explanation, unusual_words=reasons_in_words(explanation["unusual_reason"] or ""),
                  data=page_data(explanation, layout, thumbnail))
    write_atomically(folder / "explanation.html", page)


def describe_test(test: dict[str, Any]) -> str:
    """The result of a deletion test as one line."""
    if test["holds"] is None:
        return f"probability {test['probability']:.5g}; too few tiles for a deletion test"
    line = (f"probability {test['probability']:.5g}; without its top {test['removed']} tiles "
            f"{test['without_top']:.5g}, without as many random tiles {test['without_random']:.5g}")
    return line if test["holds"] else f"{line}  (the deletion test fails: do not trust this map)"


def open_slide(captioner: Captioner, path: Path) -> Slide:
    """Open one file as the slide of its name. Raises UserError."""
    data = captioner.config.data
    return open_case(path.stem, [[str(path)]], data.h5_key, data.image_dim, data.wanted_encoder)


def explain_slide(captioner: Captioner, slide: Slide, caption: str, thumbnail_size: tuple[int, int] | None = None,
                  thumbnail_scale: float | None = None) -> tuple[dict[str, Any], Layout]:
    """Explain a caption and lay out its tiles, on a square where the file has no coordinates.

    Args:
        captioner: The model.
        slide: The opened slide.
        caption: Its caption.
        thumbnail_size: (width, height) in pixels.
        thumbnail_scale: Full-resolution slide pixels per thumbnail pixel.

    Raises:
        UserError: A model with Prism's own decoder, an empty caption, or out of memory.
    """
    if "attention" not in captioner.model.decoder.supports:
        raise UserError("--explain", "the captions are of Prism's own text decoder",
                        "explanations are for model.decoder=coca")
    coords = read_coords(slide)
    if coords is None:
        logger.warning("%s has no coordinates: its tiles are laid out as a square in file order", slide.slide_id)
    layout = lay_out(slide.num_tiles, coords, thumbnail_size, thumbnail_scale)
    with memory_errors(slide.slide_id, f"while its {slide.num_tiles} tiles are explained"):
        explanation = explain(captioner, slide, caption)
    explanation["unit"] = coords.unit if coords else None
    explanation["coordinates"] = coords.xy.tolist() if coords else None
    return explanation, layout
