"""Caption generation with a key/value cache (`prism.search`), and the confidence of captions.

Shapes: B slides, n image tokens of a slide, T text tokens, D width of the image tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prism import GenerationOptions, search

from .captioner import CaptionDecoder


@torch.no_grad()
def generate(decoder: CaptionDecoder, image_tokens: torch.Tensor, options: GenerationOptions, *, bos_id: int,
             eos_id: int, pad_id: int, names: Sequence[str] | None = None) -> list[list[int]]:
    """Captions of B slides as ids, without begin and end token.

    A slide's caption does not depend on the other slides of its batch.

    Args:
        image_tokens: (B, n, D), in the type that the decoder takes.
        names: Ids of the slides: a sample depends on the seed and its slide's id; None numbers them.
    """
    _, context = decoder.embed_image(image_tokens=image_tokens)
    prompt = torch.full((len(context), 1), bos_id, device=context.device)
    banned = tuple({bos_id, pad_id, *decoder.never_generated} - {eos_id})  # some of these ids may be equal
    return search(decoder.decode_step, decoder.start_decoding(context), prompt, options, eos_id=eos_id, pad_id=pad_id,
                  banned=banned, names=names)


def has_ended(caption: Sequence[int], max_length: int) -> bool:
    """Whether a caption of `generate` came to its end token before `max_length` cut it."""
    return 1 + len(caption) < max_length  # the begin token counts


@torch.no_grad()
def confidences(decoder: CaptionDecoder, image_tokens: torch.Tensor, captions: list[list[int]], max_length: int, *,
                bos_id: int, eos_id: int, pad_id: int, temperature: float = 1.0) -> list[float]:
    """Mean probability of a caption's tokens, of each of B captions; see `caption_log_probabilities`."""
    found, mask = caption_log_probabilities(decoder, image_tokens, captions, max_length, bos_id=bos_id, eos_id=eos_id,
                                            pad_id=pad_id, temperature=temperature)
    return mean_probabilities(found, mask)


def mean_probabilities(log_probabilities: torch.Tensor, mask: torch.Tensor) -> list[float]:
    """Mean probability of the tokens of each of B captions; log probabilities and mask (B, T)."""
    return (log_probabilities.exp().where(mask, 0).sum(1) / mask.sum(1)).tolist()


@torch.no_grad()
def caption_log_probabilities(decoder: CaptionDecoder, image_tokens: torch.Tensor, captions: list[list[int]],
                              max_length: int, *, bos_id: int, eos_id: int, pad_id: int,
                              temperature: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Log probability of each token of B captions, the end token included unless `max_length` cut it, and which are
    not padding, both (B, T).

    One pass over the finished captions, so that it is the same for greedy search, beams and sampling, whose own rules
    move probabilities.

    Args:
        image_tokens: (B, n, D).
        captions: Ids as `generate` gives them.
        temperature: From calibration; logits are divided by it.
    """
    rows = []
    for caption in captions:
        row = [bos_id, *caption]
        if has_ended(caption, max_length):
            row.append(eos_id)
        rows.append(row)
    return token_log_probabilities(decoder, image_tokens, rows, pad_id, temperature)


def token_log_probabilities(decoder: CaptionDecoder, image_tokens: torch.Tensor, texts: Sequence[list[int]],
                            pad_id: int, temperature: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Log probability of each token of texts [begin, ..., end] after the first, and which are not padding, both (B, T).

    Args:
        image_tokens: (B, n, D).
        temperature: Logits are divided by it.
    """
    longest = max(map(len, texts))
    ids = torch.tensor([text + [pad_id] * (longest - len(text)) for text in texts], device=image_tokens.device)
    lengths = torch.tensor([[len(text) - 1] for text in texts], device=ids.device)
    mask = torch.arange(longest - 1, device=ids.device) < lengths
    inputs = ids[:, :-1].masked_fill(~mask, pad_id)  # as in training: no end token stands before padding
    found = decoder.label_log_probabilities(inputs, ids[:, 1:], image_tokens=image_tokens, text_mask=mask,
                                            temperature=temperature)
    return found, mask
