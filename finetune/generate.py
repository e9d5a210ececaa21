"""Decoding: greedy, beam search and sampling over CoCa's key/value cache, under Hugging Face's option names.

Own code on purpose: captioners built on another library's `generate` broke with its releases (open_clip #575, #1129).
"""

from __future__ import annotations

import torch

from coca_pytorch import CoCa

from .config import GenerationOptions

_NEVER = float("-inf")


@torch.no_grad()
def generate(coca: CoCa, image_tokens: torch.Tensor, options: GenerationOptions, *, bos_id: int, eos_id: int,
             pad_id: int) -> list[list[int]]:
    """Captions of B slides as ids, without begin and end token.

    image_tokens: (B, n, image width), what CoCa was trained on. A slide's greedy or beam caption does not depend on the
    other slides of its batch.
    """
    _, pooled = coca.embed_image(image_tokens=image_tokens)  # (B, q, dim)
    search = _beam_search if options.num_beams > 1 else _one_by_one
    return search(coca, pooled, options, bos_id, eos_id, pad_id)


def _one_by_one(coca: CoCa, pooled: torch.Tensor, options: GenerationOptions, bos_id: int, eos_id: int,
                pad_id: int) -> list[list[int]]:
    """Greedy search or sampling: one token after another, until every slide has its end token."""
    generator = torch.Generator(pooled.device).manual_seed(options.seed)
    ids = torch.full((len(pooled), 1), bos_id, device=pooled.device)
    finished = torch.zeros(len(pooled), dtype=torch.bool, device=pooled.device)
    cache = coca.start_decoding(pooled)
    while ids.shape[1] < options.max_length and not finished.all():
        logits = process_logits(coca.decode_step(ids[:, -1:], cache).float(), ids, options, (bos_id, pad_id), eos_id)
        if options.do_sample:
            token = torch.multinomial(warp_logits(logits, options).softmax(-1), 1, generator=generator).squeeze(1)
        else:
            token = logits.argmax(-1)
        ids = torch.cat([ids, token.masked_fill(finished, pad_id).unsqueeze(1)], dim=1)
        finished |= token == eos_id
    return [_words(row, eos_id) for row in ids[:, 1:].tolist()]


def _beam_search(coca: CoCa, pooled: torch.Tensor, options: GenerationOptions, bos_id: int, eos_id: int,
                 pad_id: int) -> list[list[int]]:
    """Beam search, one cache for all beams of all slides: the sequence of highest log-probability / length ** penalty.

    A slide is done when its worst kept hypothesis beats the best its running beams stand for (Hugging Face's
    `early_stopping=False`). Length counts the generated tokens, the end token among them.
    """
    slides, beams, device = len(pooled), options.num_beams, pooled.device
    ids = torch.full((slides * beams, 1), bos_id, device=device)
    scores = torch.full((slides, beams), _NEVER, device=device)
    scores[:, 0] = 0.0  # at first all beams are equal: let one of them branch
    kept: list[list[tuple[float, list[int]]]] = [[] for _ in range(slides)]
    done = [False] * slides
    cache = coca.start_decoding(pooled)
    cache.repeat(beams)
    first = torch.arange(slides, device=device).unsqueeze(1) * beams
    while ids.shape[1] < options.max_length and not all(done):
        length = ids.shape[1]  # of the new token among the generated ones, from 1
        log_probs = coca.decode_step(ids[:, -1:], cache).float().log_softmax(-1)
        log_probs = process_logits(log_probs, ids, options, (bos_id, pad_id), eos_id)
        totals = (scores.view(-1, 1) + log_probs).view(slides, -1)
        # twice as many as beams: if all beams could end here, as many can still go on
        totals, flat = totals.topk(min(2 * beams, totals.shape[1]), dim=1)
        source, token = flat // log_probs.shape[1], flat % log_probs.shape[1]
        ends = token == eos_id
        for slide in (s for s in range(slides) if not done[s]):
            for rank in ends[slide, :beams].nonzero().flatten().tolist():
                words = ids[slide * beams + int(source[slide, rank]), 1:].tolist()
                kept[slide].append((float(totals[slide, rank]) / length**options.length_penalty, words))
            kept[slide] = sorted(kept[slide], key=lambda h: -h[0])[:beams]
            best_running = float(totals[slide].masked_fill(ends[slide], _NEVER).max()) / length**options.length_penalty
            done[slide] = len(kept[slide]) == beams and kept[slide][-1][0] >= best_running
        # the best beams that go on, in order of score
        going = totals.masked_fill(ends, _NEVER).topk(beams, dim=1)
        scores = going.values
        rows = (first + source.gather(1, going.indices)).flatten()
        ids = torch.cat([ids[rows], token.gather(1, going.indices).view(-1, 1)], dim=1)
        cache.reorder(rows)
    for slide in (s for s in range(slides) if not done[s]):  # out of length: unfinished beams count as they are
        for beam in range(beams):
            length = ids.shape[1] - 1
            kept[slide].append((float(scores[slide, beam]) / length**options.length_penalty,
                                ids[slide * beams + beam, 1:].tolist()))
    return [max(hypotheses, key=lambda h: h[0])[1] for hypotheses in kept]


def process_logits(logits: torch.Tensor, ids: torch.Tensor, options: GenerationOptions, banned: tuple[int, ...],
                   eos_id: int) -> torch.Tensor:
    """Rules on the next token, as in Hugging Face's logits processors. logits (B, V), ids so far (B, t)."""
    if options.repetition_penalty != 1.0:
        seen = logits.gather(1, ids)
        seen = torch.where(seen < 0, seen * options.repetition_penalty, seen / options.repetition_penalty)
        logits = logits.scatter(1, ids, seen)
    logits[:, list(banned)] = _NEVER
    size = options.no_repeat_ngram_size
    if size and ids.shape[1] >= size:
        windows = ids.unfold(1, size, 1)  # (B, positions, size)
        tail = ids[:, ids.shape[1] - size + 1:].unsqueeze(1)
        repeats = (windows[..., :-1] == tail).all(-1) & (windows[..., -1] != eos_id)
        logits = logits.masked_fill(torch.zeros_like(logits).scatter_add(
            1, windows[..., -1], repeats.to(logits.dtype)) > 0, _NEVER)
    return logits


def warp_logits(logits: torch.Tensor, options: GenerationOptions) -> torch.Tensor:
    """Temperature, then top-k, then top-p (nucleus, arXiv 1904.09751), as in Hugging Face. logits (B, V)."""
    logits = logits / options.temperature
    if 0 < options.top_k < logits.shape[1]:
        logits = logits.masked_fill(logits < logits.topk(options.top_k).values[:, -1:], _NEVER)
    if options.top_p < 1:
        values, order = logits.sort(dim=1, descending=True)
        before = values.softmax(-1).cumsum(-1) - values.softmax(-1)  # probability of the more probable tokens
        cut = torch.zeros_like(before, dtype=torch.bool).scatter(1, order, before >= options.top_p)
        logits = logits.masked_fill(cut, _NEVER)
    return logits


def _words(ids: list[int], eos_id: int) -> list[int]:
    return ids[: ids.index(eos_id)] if eos_id in ids else ids
