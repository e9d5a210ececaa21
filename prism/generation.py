"""Greedy search, sampling and beam search over a decoder with a key/value cache, under Hugging Face's option names.

Own code on purpose: captioners built on another library's `generate` broke with its releases (open_clip #575, #1129).
A decoder is a step, (token ids (B, t), cache) -> logits (B, V) of the word that follows, and a cache that can `repeat`
and `reorder` its sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

_NEVER = float("-inf")
Step = Callable[[torch.Tensor, Any], torch.Tensor]


@dataclass
class SearchOptions:
    """Names, meanings and defaults as in Hugging Face's GenerationConfig; `seed` is of sampling."""

    max_length: int = 20
    num_beams: int = 1
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    length_penalty: float = 1.0
    seed: int = 0


@torch.no_grad()
def search(step: Step, cache: Any, prompt: torch.Tensor, options: SearchOptions, *, eos_id: int, pad_id: int,
           banned: tuple[int, ...] = ()) -> list[list[int]]:
    """What is written after each prompt (B, t), without the end token; shorter than `max_length` - t if it ended.

    cache: of B sequences, holding what stands before the prompt. banned: ids never written. A greedy or beam result
    does not depend on the other rows of its batch.
    """
    return (_beam_search if options.num_beams > 1 else _one_by_one)(
        step, cache, prompt, options, eos_id, pad_id, banned)


def _one_by_one(step: Step, cache: Any, ids: torch.Tensor, options: SearchOptions, eos_id: int, pad_id: int,
                banned: tuple[int, ...]) -> list[list[int]]:
    """Greedy search or sampling: one token after another, until every row has its end token."""
    generator = torch.Generator(ids.device).manual_seed(options.seed)
    finished = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    first, new = ids.shape[1], ids
    while ids.shape[1] < options.max_length and not finished.all():
        logits = process_logits(step(new, cache).float(), ids, options, banned, eos_id)
        if options.do_sample:
            token = torch.multinomial(warp_logits(logits, options).softmax(-1), 1, generator=generator).squeeze(1)
        else:
            token = logits.argmax(-1)
        new = token.masked_fill(finished, pad_id).unsqueeze(1)
        ids = torch.cat([ids, new], dim=1)
        finished |= token == eos_id
    return [_words(row, eos_id) for row in ids[:, first:].tolist()]


def _beam_search(step: Step, cache: Any, ids: torch.Tensor, options: SearchOptions, eos_id: int, pad_id: int,
                 banned: tuple[int, ...]) -> list[list[int]]:
    """Beam search, one cache for all beams of all slides: the sequence of highest log-probability / length ** penalty.

    A slide is done when its worst kept hypothesis beats the best its running beams stand for (Hugging Face's
    `early_stopping=False`). Length counts the generated tokens, the end token among them.
    """
    slides, beams, device, first = len(ids), options.num_beams, ids.device, ids.shape[1]
    ids = ids.repeat_interleave(beams, 0)
    scores = torch.full((slides, beams), _NEVER, device=device)
    scores[:, 0] = 0.0  # at first all beams are equal: let one of them branch
    kept: list[list[tuple[float, list[int]]]] = [[] for _ in range(slides)]
    done = [False] * slides
    cache.repeat(beams)
    row_of = torch.arange(slides, device=device).unsqueeze(1) * beams
    new = ids
    while ids.shape[1] < options.max_length and not all(done):
        length = ids.shape[1] - first + 1  # of the new token among the generated ones, from 1
        log_probs = step(new, cache).float().log_softmax(-1)
        log_probs = process_logits(log_probs, ids, options, banned, eos_id)
        totals = (scores.view(-1, 1) + log_probs).view(slides, -1)
        # twice as many as beams: if all beams could end here, as many can still go on
        totals, flat = totals.topk(min(2 * beams, totals.shape[1]), dim=1)
        source, token = flat // log_probs.shape[1], flat % log_probs.shape[1]
        ends = token == eos_id
        for slide in (s for s in range(slides) if not done[s]):
            for rank in ends[slide, :beams].nonzero().flatten().tolist():
                words = ids[slide * beams + int(source[slide, rank]), first:].tolist()
                kept[slide].append((float(totals[slide, rank]) / length**options.length_penalty, words))
            kept[slide] = sorted(kept[slide], key=lambda h: -h[0])[:beams]
            best_running = float(totals[slide].masked_fill(ends[slide], _NEVER).max()) / length**options.length_penalty
            done[slide] = len(kept[slide]) == beams and kept[slide][-1][0] >= best_running
        # the best beams that go on, in order of score
        going = totals.masked_fill(ends, _NEVER).topk(beams, dim=1)
        scores = going.values
        rows = (row_of + source.gather(1, going.indices)).flatten()
        new = token.gather(1, going.indices).view(-1, 1)
        ids = torch.cat([ids[rows], new], dim=1)
        cache.reorder(rows)
    for slide in (s for s in range(slides) if not done[s]):  # out of length: unfinished beams count as they are
        for beam in range(beams):
            length = ids.shape[1] - first
            kept[slide].append((float(scores[slide, beam]) / length**options.length_penalty,
                                ids[slide * beams + beam, first:].tolist()))
    return [max(hypotheses, key=lambda h: h[0])[1] for hypotheses in kept]


def process_logits(logits: torch.Tensor, ids: torch.Tensor, options: SearchOptions, banned: tuple[int, ...],
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


def warp_logits(logits: torch.Tensor, options: SearchOptions) -> torch.Tensor:
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
