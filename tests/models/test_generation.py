"""Decoding against exhaustive search and plain-loop versions, on a model whose logits are a table over prefixes."""

from __future__ import annotations

import itertools

import pytest
import torch

from finetune.models.generation import generate, has_ended
from prism import GenerationOptions
from prism.generation import process_logits, warp_logits

PAD, BOS, EOS, WORDS = 0, 1, 2, 6
NEVER = float("-inf")


class TableModel:
    """Stands in for CoCa: the logits after a prefix of a slide are fixed random numbers."""

    never_generated = ()

    def embed_image(self, image_tokens):
        return None, image_tokens  # (B, 1, 1): the slide's number

    def start_decoding(self, pooled):
        return TableCache([(int(n), ()) for n in pooled.flatten()])

    def decode_step(self, ids, cache):
        cache.prefixes = [(n, p + tuple(row)) for (n, p), row in zip(cache.prefixes, ids.tolist(), strict=True)]
        return torch.stack([table(n, p) for n, p in cache.prefixes])


class TableCache:
    def __init__(self, prefixes):
        self.prefixes = prefixes

    def repeat(self, times):
        self.prefixes = [p for p in self.prefixes for _ in range(times)]

    def reorder(self, rows):
        self.prefixes = [self.prefixes[r] for r in rows.tolist()]


def table(slide: int, prefix: tuple[int, ...]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(hash((slide, prefix)) % 2**31)
    return 2 * torch.randn(WORDS, generator=generator)


def write(slides: int | list[int], model: TableModel | None = None, **options) -> list[list[int]]:
    """slides: their number, or the numbers of those to write about."""
    numbers = list(range(slides)) if isinstance(slides, int) else slides
    images = torch.tensor(numbers, dtype=torch.float32).view(-1, 1, 1)
    return generate(model or TableModel(), images, GenerationOptions(**options), bos_id=BOS, eos_id=EOS, pad_id=PAD,
                    names=list(map(str, numbers)))


def log_probs(slide: int, prefix: tuple[int, ...]) -> torch.Tensor:
    return table(slide, prefix).log_softmax(-1)


def best_of_all(slide: int, max_length: int, penalty: float) -> list[int]:
    """The sequence of highest log-probability / length ** penalty among all sequences."""
    words = [w for w in range(WORDS) if w not in (PAD, BOS, EOS)]
    scored = []
    for count in range(max_length):
        for body in itertools.product(words, repeat=count):
            full = body if count == max_length - 1 else (*body, EOS)
            score = sum(float(log_probs(slide, (BOS, *full[:i]))[w]) for i, w in enumerate(full))
            scored.append((score / len(full) ** penalty, list(body)))
    return max(scored)[1]


def test_greedy_takes_the_most_probable_word_until_the_end_token():
    for slide, caption in enumerate(write(5, max_length=8)):
        prefix = (BOS,)
        while len(prefix) < 8:
            logits = table(slide, prefix)
            logits[[PAD, BOS]] = NEVER
            prefix += (int(logits.argmax()),)
            if prefix[-1] == EOS:
                break
        assert caption == [w for w in prefix[1:] if w != EOS]


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_a_beam_wide_enough_finds_the_best_of_all_sequences(penalty):
    assert write(6, max_length=5, num_beams=300, length_penalty=penalty) == [best_of_all(s, 5, penalty) for s in range(6)]


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "temperature": 1.5, "top_p": 0.9},
                                     {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2}])
def test_a_slide_is_decoded_alike_alone_and_in_a_batch(options):
    together = write(40, max_length=30, **options)
    assert together == [write([slide], max_length=30, **options)[0] for slide in range(40)]
    assert len(set(map(len, together))) > 3  # captions of different lengths, so that some leave the batch early
    assert write([7, 31, 2], max_length=30, **options) == [together[slide] for slide in (7, 31, 2)]


@pytest.mark.parametrize("beams", [1, 3])
def test_captions_that_have_ended_are_not_decoded_further(beams):
    model, computed = TableModel(), []
    step = model.decode_step
    model.decode_step = lambda ids, cache: computed.append(len(ids)) or step(ids, cache)
    longest = max(map(len, write(40, model, max_length=60, num_beams=beams))) + 1
    assert computed[0] == 40 * beams and computed[-1] <= 20 * beams
    assert sum(computed) < 0.6 * 40 * beams * longest


def test_a_caption_that_came_to_its_end_is_told_from_one_that_was_cut():
    for beams in (1, 4):
        full = write(20, max_length=60, num_beams=beams)
        assert all(has_ended(caption, 60) for caption in full)
        for length in (2, 3, 5, 8):
            for whole, caption in zip(full, write(20, max_length=length, num_beams=beams), strict=True):
                assert has_ended(caption, length) or len(caption) == length - 1
                if beams == 1:
                    assert caption == whole[:length - 1] and has_ended(caption, length) == (len(whole) < length - 1)


def test_sampling_follows_the_probabilities_and_its_seed():
    assert write(4, do_sample=True, seed=1) == write(4, do_sample=True, seed=1)
    images = torch.zeros(4000, 1, 1)
    first = [c[0] if c else EOS for c in generate(TableModel(), images, GenerationOptions(do_sample=True, max_length=2),
                                                  bos_id=BOS, eos_id=EOS, pad_id=PAD)]
    logits = table(0, (BOS,))
    logits[[PAD, BOS]] = NEVER
    shares = torch.bincount(torch.tensor(first), minlength=WORDS) / len(first)
    assert torch.allclose(shares, logits.softmax(-1), atol=0.03)


def test_top_k_and_top_p_keep_what_a_loop_over_sorted_words_keeps():
    logits = torch.randn(50, 30, generator=torch.Generator().manual_seed(0)) * 2
    kept = warp_logits(logits, GenerationOptions(top_k=7, temperature=0.7)) > NEVER
    assert all(set(row.nonzero().flatten().tolist()) == set(line.topk(7).indices.tolist())
               for row, line in zip(kept, logits, strict=True))
    warped = warp_logits(logits, GenerationOptions(top_p=0.8))
    for line, result in zip(logits, warped, strict=True):
        probabilities, wanted, total = line.softmax(-1), set(), 0.0
        for word in line.argsort(descending=True).tolist():
            if total >= 0.8:
                break
            wanted.add(word)
            total += float(probabilities[word])
        assert set((result > NEVER).nonzero().flatten().tolist()) == wanted


def test_no_ngram_is_written_twice_and_repetition_is_penalised():
    for size in (1, 2, 3):
        for caption in write(20, max_length=30, no_repeat_ngram_size=size):
            ngrams = [tuple(caption[i: i + size]) for i in range(len(caption) - size + 1)]
            assert len(ngrams) == len(set(ngrams))
    logits = torch.tensor([[1.0, -1.0, 2.0, -2.0]])
    ids = torch.tensor([[2, 3, 2]])
    result = process_logits(logits.clone(), ids, GenerationOptions(repetition_penalty=2.0), (), EOS)
    assert result.tolist() == [[1.0, -1.0, 1.0, -4.0]]
