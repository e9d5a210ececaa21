"""Explanation of a caption: which tiles of a slide each of its phrases goes by, and whether it goes by any.

A phrase is contrasted with its alternative (`explanation.contrast`), the log odds are attributed to the tiles
(`explanation.attribution`), and the deletion test (`explanation.effect`) decides whether the map is shown. Without an
effect, or without an alternative, there is no map: whatever is drawn is read. Nor is there one of an unusual slide: on
noise, too, some tiles decide what the model writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..common.errors import UserError, say
from ..common.files import expand, write_atomically
from ..common.log import logger
from ..common.visible import json_text, visible
from ..data.slides import Slide, open_case
from ..data.tile_coords import Coords
from ..data.tile_reader import read_coords, read_tiles
from ..explanation.attribution import attribute_tiles
from ..explanation.caption_tokens import KnownPhrases, phrases, read_caption
from ..explanation.contrast import Alternatives, Contrast
from ..explanation.effect import Effect, deletion_test
from ..pages.chinese import reasons_in_words
from ..pages.html import render
from .captioner import Captioner
from .memory import memory_errors
from .model_facts import ModelFacts
from .nearest import TrainingSlides, judge_of
from .options import InferenceOptions
from .records import CUT
from .tile_maps import (
    NO_ALTERNATIVE,
    NO_EFFECT,
    REASONS,
    TOO_FEW_TILES,
    UNUSUAL,
    Layout,
    heatmap_png,
    lay_out,
    open_thumbnail,
    page_data,
)

_PICTURE = re.compile(r"phrase_\d+\.png")


@torch.no_grad()
def explain(captioner: Captioner, slide: Slide, caption: str, finished: bool = True,
            training_texts: Iterable[str] = (), unusual: bool = False) -> dict[str, Any]:
    """The explanation of a caption in plain types, weights as lists over the tiles in file order.

    Args:
        captioner: The model.
        slide: The opened slide.
        caption: Its caption.
        finished: Whether the caption came to its end token.
        training_texts: Alternatives are phrases of these where possible.
        unusual: Whether the slide is unlike the training slides: there are no maps then, and nothing is tested.
    """
    model, tokenizer = captioner.model, captioner.tokenizer
    tokens = read_caption(tokenizer, caption, finished)
    if not tokens.pieces:
        raise UserError(slide.slide_id, "its caption is empty", "there is nothing to explain; train longer")
    tiles = torch.from_numpy(np.array(read_tiles(slide))).to(captioner.precision.device)  # (N, C)
    image_tokens = model.image_tokens(tiles.unsqueeze(0), torch.ones(1, len(tiles), dtype=torch.bool,
                                                                     device=tiles.device))[0]
    found = Alternatives(model.decoder, tokenizer, image_tokens.to(model.decoder.dtype), tokens,
                         KnownPhrases(training_texts, tokenizer))
    spans = phrases(tokens.pieces)
    contrasts = [None if unusual else found.of_phrase(place, span) for place, span in enumerate(spans)]
    untested = UNUSUAL if unusual else NO_ALTERNATIVE
    effects_and_weights = iter(_tested(captioner, tiles, [contrast for contrast in contrasts if contrast]))
    explained = []
    for span, contrast in zip(spans, contrasts, strict=True):
        effect, weights = next(effects_and_weights) if contrast else (None, None)
        phrase = {"text": "".join(tokens.pieces[span.start:span.stop]), "tokens": list(span)}
        explained.append(phrase | _as_record(contrast, effect, weights, untested))
    probabilities = found.token_log_probs.exp().tolist()  # that of the end token is left out
    return {"id": slide.slide_id, "caption": caption, "method": "integrated gradients", "tiles": len(tiles),
            "tokens": [{"text": text, "probability": probability}
                       for text, probability in zip(tokens.pieces, probabilities, strict=False)],
            "phrases": explained}


def _as_record(contrast: Contrast | None, effect: Effect | None, weights: list[float] | None,
               untested: str) -> dict[str, Any]:
    """What explanation.json says of a phrase. untested: why it has no effect."""
    reason = _why_no_map(effect) if effect else untested
    return {"alternative": contrast and contrast.text, "deletion_test": effect and asdict(effect), "no_map": reason,
            "weights": None if reason else weights}


def _tested(captioner: Captioner, tiles: Tensor, contrasts: list[Contrast]) -> list[tuple[Effect, list[float]]]:
    """The effect of each phrase and its weights (N,): not negative, with the sum 1."""
    if not contrasts:
        return []
    attribution = attribute_tiles(captioner.model, tiles, contrasts)
    effects = deletion_test(captioner.model, tiles, contrasts, attribution)
    positive = attribution.clamp(min=0).double()  # tiles that speak for the alternative get 0
    weights = positive / positive.sum(dim=1, keepdim=True).clamp(min=1e-300)
    return list(zip(effects, weights.tolist(), strict=True))


def _why_no_map(effect: Effect) -> str | None:
    if effect.holds is None:
        return TOO_FEW_TILES
    return None if effect.holds else NO_EFFECT


def run_explain(options: InferenceOptions) -> int:
    """Caption one slide; write explanation.json, a PNG per phrase and a page. Returns 0; raises UserError."""
    folder = expand(options.explain)
    thumbnail = open_thumbnail(expand(options.thumbnail)) if options.thumbnail else None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(folder, f"cannot be created ({error.strerror})", "give another folder to --explain") from None
    captioner = Captioner.from_options(options)
    training = TrainingSlides.load(options.checkpoint, captioner, searchable=False)
    captioner.judge = judge_of(captioner, training)
    slide = open_slide(captioner, expand(options.embeddings_file))
    record = captioner.describe([slide], [], options.generation(captioner.trained_length))[0]
    explanation, layout = explain_slide(captioner, slide, record["caption"], record["finished"], training,
                                        thumbnail, options.thumbnail_scale, record.get("unusual", False))
    explanation |= {name: record.get(name) for name in ("finished", "confidence", "unusual", "unusual_reason")}
    shown = sum(phrase["weights"] is not None for phrase in explanation["phrases"])
    try:
        _write_explanation(folder, explanation, layout, thumbnail, ModelFacts.of(captioner))
    except OSError as error:
        raise UserError(folder, f"cannot be written ({error.strerror})", "free some space") from None
    say(f"{visible(slide.slide_id)}\tcaption: {visible(record['caption'])}{'' if record['finished'] else CUT}",
        *([f"\tunusual: {record['unusual_reason']}"] if record.get("unusual") else []))
    for phrase in explanation["phrases"]:
        say(f"\t{visible(phrase['text'])}\t{describe_test(phrase)}")
    say(f"explanation.html, explanation.json and {shown} PNG in {folder}")
    return 0


def _write_explanation(folder: Path, explanation: dict[str, Any], layout: Layout, thumbnail: Image.Image | None,
                       model: ModelFacts) -> None:
    write_atomically(folder / "explanation.json", json_text(explanation))
    _write_pictures(folder, explanation["phrases"], layout, thumbnail)
    page = render("explain.html", ("page.js", "tilemap.js", "explain.js"), banners=model.banners, model=model,
                  explanation=explanation, unusual_words=reasons_in_words(explanation["unusual_reason"] or ""),
                  data=page_data(explanation, layout, thumbnail))
    write_atomically(folder / "explanation.html", page)


def _write_pictures(folder: Path, phrases: list[dict[str, Any]], layout: Layout, thumbnail: Image.Image | None) -> None:
    """A PNG for each phrase with a map."""
    for old in folder.iterdir():  # of another slide, which would be taken for maps of this one
        if _PICTURE.fullmatch(old.name):
            old.unlink()
    for number, phrase in enumerate(phrases, start=1):
        if phrase["weights"]:
            write_atomically(folder / f"phrase_{number}.png", heatmap_png(layout, phrase["weights"], thumbnail))


def describe_test(phrase: dict[str, Any]) -> str:
    """What the deletion test says of a phrase, as one line."""
    reason, test = phrase["no_map"], phrase["deletion_test"]
    if test is None:
        return REASONS[reason][1]
    against = f"against {visible(phrase['alternative'])}" if phrase["alternative"] else "against the end of the caption"
    line = f"log odds {test['log_odds']:.2f} {against}"
    if test["without_top"] is not None:
        line += f"; without its top {test['removed']} tiles {test['without_top']:.2f}"
    if test["without_random"] is not None:
        line += f", without as many random tiles {test['without_random']:.2f} ± {test['spread']:.2f}"
    return line if reason is None else f"{line}; {REASONS[reason][1]}"


def open_slide(captioner: Captioner, path: Path) -> Slide:
    """Open one file as the slide of its name. Raises UserError."""
    data = captioner.config.data
    return open_case(path.stem, [[str(path)]], data.h5_key, data.image_dim, data.wanted_encoder)


def explain_slide(captioner: Captioner, slide: Slide, caption: str, finished: bool = True,
                  training: TrainingSlides | None = None, thumbnail: Image.Image | None = None,
                  thumbnail_scale: float | None = None, unusual: bool = False) -> tuple[dict[str, Any], Layout]:
    """Explain a caption and lay out its tiles, on a square where the file has no coordinates.

    Args:
        captioner: The model.
        slide: The opened slide.
        caption: Its caption.
        finished: Whether the caption came to its end token.
        training: Its texts are where alternatives come from; without it they are what the decoder writes.
        thumbnail: A picture of the whole slide.
        thumbnail_scale: Full-resolution slide pixels per thumbnail pixel.
        unusual: Whether the slide is unlike the training slides: it has no maps then.

    Raises:
        UserError: An empty caption, or out of memory.
    """
    coords = read_coords(slide)
    if coords is None:
        logger.warning("%s has no coordinates: its tiles are laid out as a square in file order", slide.slide_id)
    layout = lay_out(slide.num_tiles, coords, thumbnail.size if thumbnail else None, thumbnail_scale)
    texts = training.all_texts() if training else []
    with memory_errors(slide.slide_id, f"while its {slide.num_tiles} tiles are explained"):
        explanation = explain(captioner, slide, caption, finished, texts, unusual)
    return explanation | _coordinates_of_tiles(coords), layout


def _coordinates_of_tiles(coords: Coords | None) -> dict[str, Any]:
    """What explanation.json says of them."""
    if coords is None:
        return {"unit": None, "coordinates": None}
    return {"unit": coords.unit, "coordinates": coords.xy.tolist()}
