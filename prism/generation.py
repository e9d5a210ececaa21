"""Greedy search, sampling and beam search over a decoder with a key/value cache, under Hugging Face's option names.

Own code on purpose: captioners built on another library's `generate` broke with its releases (open_clip #575, #1129).
A decoder is a step, (token ids (B, T), cache) -> next-token logits (B, V), and a cache that can `repeat` and `reorder`
its sequences. Shapes: B sequences, T tokens, V size of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

_NEVER = float("-inf")
Step = Callable[[torch.Tensor, Any], torch.Tensor]


@dataclass
class GenerationOptions:
    """How to decode; names and meanings as in Hugging Face's GenerationConfig, and the seed of sampling.

    max_length counts the prompt and the end token. top_k=0: all tokens.
    """

    max_length: int = 100
    num_beams: int = 1
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    length_penalty: float = 1.0
    seed: int = 0


@torch.no_grad()
def search(step: Step, cache: Any, prompt: torch.Tensor, options: GenerationOptions, *, eos_id: int, pad_id: int,
           banned: tuple[int, ...] = ()) -> list[list[int]]:
    """The continuation of each prompt, without the end token; shorter than `max_length` - T if it ended.

    A greedy or beam result does not depend on the other rows of its batch.

    Args:
        cache: Of B sequences, with what precedes the prompt.
        prompt: Ids (B, T), all of one length.
        banned: Ids never generated.
    """
    if options.num_beams > 1:
        return _beam_search(step, cache, prompt, options, eos_id, banned)
    return _one_by_one(step, cache, prompt, options, eos_id, pad_id, banned)


def _one_by_one(step: Step, cache: Any, ids: torch.Tensor, options: GenerationOptions, eos_id: int, pad_id: int,
                banned: tuple[int, ...]) -> list[list[int]]:
    """Greedy search or sampling: one token after another, until every row has its end token."""
    generator = torch.Generator(ids.device).manual_seed(options.seed)
    finished = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    first, new = ids.shape[1], ids
    while ids.shape[1] < options.max_length and not finished.all():
        logits = process_logits(step(new, cache).float(), ids, options, banned, eos_id)
        if options.do_sample:
            probabilities = warp_logits(logits, options).softmax(-1)
            token = torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
        else:
            token = logits.argmax(-1)
        new = token.masked_fill(finished, pad_id).unsqueeze(1)
        ids = torch.cat([ids, new], dim=1)
        finished |= token == eos_id
    return [_before_end(row, eos_id) for row in ids[:, first:].tolist()]


def _before_end(ids: list[int], eos_id: int) -> list[int]:
    return ids[: ids.index(eos_id)] if eos_id in ids else ids


@dataclass
class _Hypotheses:
    """The best finished sequences of one slide, best first: (score, ids without prompt and end token)."""

    size: int
    ranked: list[tuple[float, list[int]]] = field(default_factory=list)
    done: bool = False

    def add(self, score: float, ids: list[int]) -> None:
        self.ranked.append((score, ids))
        self.ranked.sort(key=lambda hypothesis: -hypothesis[0])  # stable: of equal scores the earlier one stays first
        del self.ranked[self.size:]

    def close_if_beaten(self, best_running: float) -> None:
        """Done once the worst kept sequence beats the best score that the running beams have now."""
        self.done = len(self.ranked) == self.size and self.ranked[-1][0] >= best_running


def _beam_search(step: Step, cache: Any, ids: torch.Tensor, options: GenerationOptions, eos_id: int,
                 banned: tuple[int, ...]) -> list[list[int]]:
    """Beam search, one cache for all beams of all slides: the sequence of highest log-probability / length ** penalty.

    A slide is done as with Hugging Face's `early_stopping=False`. Length counts the generated tokens, the end token
    among them.
    """
    slides, beams, device, first = len(ids), options.num_beams, ids.device, ids.shape[1]
    ids = ids.repeat_interleave(beams, 0)
    scores = torch.full((slides, beams), _NEVER, device=device)
    scores[:, 0] = 0.0  # at first all beams are equal: let one of them branch
    results = [_Hypotheses(beams) for _ in range(slides)]
    first_row = torch.arange(slides, device=device).unsqueeze(1) * beams
    cache.repeat(beams)
    new = ids
    while ids.shape[1] < options.max_length and not all(result.done for result in results):
        divisor = (ids.shape[1] - first + 1) ** options.length_penalty  # length with the new token
        log_probs = step(new, cache).float().log_softmax(-1)
        log_probs = process_logits(log_probs, ids, options, banned, eos_id)
        totals = (scores.view(-1, 1) + log_probs).view(slides, -1)
        # twice as many as beams: even if all of these end here, enough candidates remain
        totals, flat = totals.topk(min(2 * beams, totals.shape[1]), dim=1)
        rows = first_row + flat // log_probs.shape[1]
        token = flat % log_probs.shape[1]
        ends = token == eos_id
        running = totals.masked_fill(ends, _NEVER)
        for slide, result in enumerate(results):
            if result.done:
                continue
            for rank in ends[slide, :beams].nonzero().flatten().tolist():
                result.add(float(totals[slide, rank]) / divisor, ids[rows[slide, rank], first:].tolist())
            result.close_if_beaten(float(running[slide].max()) / divisor)
        scores, order = running.topk(beams, dim=1)  # the best unfinished beams, in order of score
        rows = rows.gather(1, order).flatten()
        new = token.gather(1, order).view(-1, 1)
        ids = torch.cat([ids[rows], new], dim=1)
        cache.reorder(rows)
    divisor = (ids.shape[1] - first) ** options.length_penalty
    for row, score in enumerate(scores.flatten().tolist()):
        result = results[row // beams]
        if not result.done:  # out of length: unfinished beams count as they are
            result.add(score / divisor, ids[row, first:].tolist())
    return [result.ranked[0][1] for result in results]


def process_logits(logits: torch.Tensor, ids: torch.Tensor, options: GenerationOptions, banned: tuple[int, ...],
                   eos_id: int) -> torch.Tensor:
    """Rules on the next token, as in Hugging Face's logits processors. logits (B, V), ids so far (B, T)."""
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
        forbidden = torch.zeros_like(logits).scatter_add(1, windows[..., -1], repeats.to(logits.dtype)) > 0
        logits = logits.masked_fill(forbidden, _NEVER)
    return logits


def warp_logits(logits: torch.Tensor, options: GenerationOptions) -> torch.Tensor:
    """Temperature, then top-k, then top-p (nucleus, arXiv 1904.09751), as in Hugging Face. logits (B, V)."""
    logits = logits / options.temperature
    if 0 < options.top_k < logits.shape[1]:
        logits = logits.masked_fill(logits < logits.topk(options.top_k).values[:, -1:], _NEVER)
    if options.top_p < 1:
        values, order = logits.sort(dim=1, descending=True)
        probabilities = values.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities  # sum over the more probable tokens
        cut = torch.zeros_like(before, dtype=torch.bool).scatter(1, order, before >= options.top_p)
        logits = logits.masked_fill(cut, _NEVER)
    return logits
