"""Re-ranking: of its own caption and the training texts that the linear probe likes best, the one that the captioner
and the probe together find most probable.

Shapes: B slides, n image tokens of a slide, T text tokens, D width of the image tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from .captioner import CaptionDecoder
from .generation import token_log_probabilities
from .training_texts import SlideVectors, TrainingTexts

_CANDIDATES = 8  # training texts beside the own caption
MIN_PREDICTABLE = 40  # tokens: with fewer, texts of a template, the probe adds nothing to the captioner


@torch.no_grad()
def rerank(decoder: CaptionDecoder, image_tokens: torch.Tensor, captions: Sequence[list[int]], slides: SlideVectors,
           training: TrainingTexts, max_length: int) -> list[str | None]:
    """The training text that is better than a slide's own caption, None where the caption stays; of B slides.

    Args:
        image_tokens: (B, n, D), in the type that the decoder takes.
        captions: ids without begin and end token.
        slides: the vectors of the same slides.
        training: with a probe.
        max_length: most tokens of a text, begin and end token included; longer ones are no candidates.
    """
    tokenizer = training.tokenizer
    orders = np.argsort(-training.probe_scores(slides), axis=1, kind="stable")
    answers: list[str | None] = []
    for row, (caption, order) in enumerate(zip(captions, orders, strict=True)):
        chosen = [i for i in order[:_CANDIDATES].tolist() if len(training.candidate_ids[i]) <= max_length]
        texts = [[tokenizer.bos_id, *caption, tokenizer.eos_id], *(training.candidate_ids[i] for i in chosen)]
        log_likelihood = log_probabilities(decoder, image_tokens[row:row + 1], texts, tokenizer.pad_id)
        evidence = training.probe.text_scores(slides.latent_mean[row:row + 1], texts)[0]
        best = int(np.argmax(log_likelihood + evidence))  # the own caption where equal
        answers.append(training.candidates[chosen[best - 1]] if best else None)
    return answers


def log_probabilities(decoder: CaptionDecoder, image_tokens: torch.Tensor, texts: Sequence[list[int]],
                      pad_id: int) -> np.ndarray:
    """Log probability of each text [begin, ..., end] for one slide, summed over its tokens, (texts,).

    Args:
        image_tokens: (1, n, D).
    """
    found, _ = token_log_probabilities(decoder, image_tokens.expand(len(texts), -1, -1), texts, pad_id)
    return found.sum(1).cpu().numpy()
