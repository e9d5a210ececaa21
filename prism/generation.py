"""Greedy search, sampling and beam search over a decoder with a key/value cache, under Hugging Face's option names.

Own code on purpose: captioners built on another library's `generate` broke with its releases (open_clip #575, #1129).
A decoder is a step, (token ids (B, T), cache) -> next-token logits (B, V), and a cache that can `repeat` and `reorder`
its sequences. `reorder` also leaves out slides with all their sequences: whenever half of a batch has ended, only the
rest is decoded further, so that a short caption is not computed to the length of the longest.
Shapes: B sequences, T tokens, V size of the vocabulary.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
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
           banned: tuple[int, ...] = (), names: Sequence[object] | None = None) -> list[list[int]]:
    """The continuation of each prompt, without the end token; shorter than `max_length` - T if it ended.

    A result does not depend on the other rows of its batch; a sample is drawn by the seed and the name of its row.

    Args:
        cache: Of B sequences, with what precedes the prompt.
        prompt: Ids (B, T), all of one length.
        banned: Ids never generated.
        names: Of the rows, such as slide ids; None numbers them.
    """
    if options.num_beams > 1:
        return _beam_search(step, cache, prompt, options, eos_id, banned)
    draws = None
    if options.do_sample:
        steps = max(options.max_length - prompt.shape[1], 0)
        draws = _draws(options.seed, range(len(prompt)) if names is None else names, steps).to(prompt.device)
    return _one_by_one(step, cache, prompt, options, eos_id, pad_id, banned, draws)


def _draws(seed: int, names: Sequence[object], steps: int) -> torch.Tensor:
    """Uniform random numbers (rows, steps), those of a row by the seed and its name alone."""
    rows = []
    for name in names:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode("utf-8", "surrogatepass")))
        rows.append(torch.rand(steps, generator=generator, dtype=torch.float64))
    return torch.stack(rows)


def _one_by_one(step: Step, cache: Any, ids: torch.Tensor, options: GenerationOptions, eos_id: int, pad_id: int,
                banned: tuple[int, ...], draws: torch.Tensor | None) -> list[list[int]]:
    """Greedy search or, with random numbers (B, steps), sampling, until every row has its end token."""
    finished = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    results: list[list[int]] = [[] for _ in ids]
    rows = torch.arange(len(ids), device=ids.device)  # of the prompt, that are still decoded
    first, new, running = ids.shape[1], ids, len(ids)
    while ids.shape[1] < options.max_length and running:
        logits = process_logits(step(new, cache).float(), ids, options, banned, eos_id)
        if draws is None:
            token = logits.argmax(-1)
        else:
            token = _sampled(warp_logits(logits, options).softmax(-1), draws[rows, ids.shape[1] - first])
        new = token.masked_fill(finished, pad_id).unsqueeze(1)
        ids = torch.cat([ids, new], dim=1)
        finished |= token == eos_id
        running = len(ids) - int(finished.sum())
        if 0 < running <= len(ids) // 2:
            _keep(results, rows, ids[:, first:])
            kept = (~finished).nonzero().flatten()
            rows, ids, new, finished = rows[kept], ids[kept], new[kept], finished[kept]
            cache.reorder(kept)
    _keep(results, rows, ids[:, first:])
    return [_before_end(row, eos_id) for row in results]


def _keep(results: list[list[int]], rows: torch.Tensor, ids: torch.Tensor) -> None:
    """Put the ids so far (B, T) of some rows into their places."""
    for row, row_ids in zip(rows.tolist(), ids.tolist(), strict=True):
        results[row] = row_ids


def _sampled(probabilities: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Tokens (B,) drawn from probabilities (B, V) by uniform numbers (B,): where the sum so far passes them.

    In double precision a draw stays below the total, so that no token of probability 0 is drawn.
    """
    sums = probabilities.double().cumsum(-1)
    return torch.searchsorted(sums, (draws * sums[:, -1]).unsqueeze(1), right=True).squeeze(1)


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
    beams, device, first = options.num_beams, ids.device, ids.shape[1]
    scores = torch.full((len(ids), beams), _NEVER, device=device)
    scores[:, 0] = 0.0  # at first all beams are equal: let one of them branch
    all_results = [_Hypotheses(beams) for _ in ids]
    results = all_results  # of the slides that are still decoded
    ids = ids.repeat_interleave(beams, 0)
    cache.repeat(beams)
    new = ids
    while ids.shape[1] < options.max_length and not all(result.done for result in results):
        slides = len(results)
        first_row = torch.arange(slides, device=device).unsqueeze(1) * beams
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
        rows, new = rows.gather(1, order), token.gather(1, order)  # (slides, beams)
        kept = [slide for slide, result in enumerate(results) if not result.done]
        if 0 < len(kept) <= slides // 2:
            results = [results[slide] for slide in kept]
            scores, rows, new = scores[kept], rows[kept], new[kept]
        rows, new = rows.flatten(), new.view(-1, 1)
        ids = torch.cat([ids[rows], new], dim=1)
        cache.reorder(rows)
    divisor = (ids.shape[1] - first) ** options.length_penalty
    for row, score in enumerate(scores.flatten().tolist()):
        result = results[row // beams]
        if not result.done:  # out of length: unfinished beams count as they are
            result.add(score / divisor, ids[row, first:].tolist())
    return [result.ranked[0][1] for result in all_results]


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
