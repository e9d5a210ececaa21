"""Decoding with cached keys and values against recomputing the whole text for every token."""

import pytest
import torch

from coca_pytorch import CoCa
from coca_pytorch.decoding import PackedLinears
from tests.parity.coca_weights import reference, small_coca

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture
def model():
    return small_coca().eval()


@pytest.fixture
def tokens():
    return reference()["image_tokens"]


def recomputed(model, text, tokens):
    """Logits (b, vocabulary) of the token after text, from a full forward pass."""
    with torch.no_grad():
        return model(text, image_tokens=tokens)[:, -1]


def started(model, tokens):
    return model.start_decoding(model.embed_image(image_tokens=tokens)[1])


@pytest.mark.parametrize("prompt", [1, 2, 5, 9])
def test_a_cached_step_equals_recomputing_all(model, tokens, prompt):
    text, cache = reference()["text"], started(model, tokens)
    logits = model.decode_step(text[:, :prompt], cache)
    torch.testing.assert_close(logits, recomputed(model, text[:, :prompt], tokens), **CLOSE)
    for end in range(prompt + 1, 10):
        logits = model.decode_step(text[:, end - 1:end], cache)
        torch.testing.assert_close(logits, recomputed(model, text[:, :end], tokens), **CLOSE)
    assert cache.length == 9


def test_several_tokens_at_once_may_follow_a_prompt(model, tokens):
    text, cache = reference()["text"], started(model, tokens)
    model.decode_step(text[:, :3], cache)
    torch.testing.assert_close(model.decode_step(text[:, 3:7], cache), recomputed(model, text[:, :7], tokens), **CLOSE)


def test_greedy_ids_are_those_without_a_cache_past_every_growth_of_it(model, tokens):
    cache, ids = started(model, tokens), torch.full((3, 1), 2)
    logits = model.decode_step(ids, cache)
    for _ in range(150):
        # a random model soon repeats itself; every word may come once in 20 steps, so that argmax stays a question
        banned = ids[:, -20:]
        token = logits.scatter(1, banned, -1e9).argmax(-1, keepdim=True)
        again = recomputed(model, ids, tokens).scatter(1, banned, -1e9).argmax(-1, keepdim=True)
        assert token.equal(again)
        ids = torch.cat([ids, token], dim=1)
        logits = model.decode_step(token, cache)


def test_repeat_gives_each_slide_its_beams_and_reorder_moves_them(model, tokens):
    text, cache = reference()["text"], started(model, tokens)
    model.decode_step(text[:, :4], cache)
    cache.repeat(2)
    text, tokens = text[:, :4].repeat_interleave(2, 0), tokens.repeat_interleave(2, 0)
    for order, step in (([1, 1, 2, 3, 5, 4], 0), ([0, 0, 3, 2, 4, 4], 6), ([5, 3, 1, 0], 12)):
        word = (torch.arange(len(text)) + 10 + step).unsqueeze(1)  # another word for each beam
        text = torch.cat([text, word], dim=1)
        torch.testing.assert_close(model.decode_step(word, cache), recomputed(model, text, tokens), **CLOSE)
        cache.reorder(torch.tensor(order))
        text, tokens = text[order], tokens[order]
    word = torch.full((4, 1), 50)
    torch.testing.assert_close(
        model.decode_step(word, cache), recomputed(model, torch.cat([text, word], 1), tokens), **CLOSE)


def test_repeat_before_the_prompt_equals_repeat_after_it(model, tokens):
    text, early, late = reference()["text"], started(model, tokens), started(model, tokens)
    early.repeat(3)
    expected = model.decode_step(text, late).repeat_interleave(3, 0)
    torch.testing.assert_close(model.decode_step(text.repeat_interleave(3, 0), early), expected, **CLOSE)


def test_under_bfloat16_autocast_the_cache_changes_no_more_than_rounding(model, tokens):
    text = reference()["text"]
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        cache = started(model, tokens)
        for end in range(1, 10):
            cached = model.decode_step(text[:, end - 1:end], cache)
        whole = recomputed(model, text, tokens)
    assert (cached - whole).norm() < 0.02 * whole.norm()


def test_a_cache_for_other_slides_is_refused(model, tokens):
    with pytest.raises(ValueError, match="2 sequences of tokens for a cache of 3"):
        model.decode_step(torch.zeros(2, 1, dtype=torch.long), started(model, tokens))


def test_weights_packed_for_bfloat16_give_what_plain_ones_give_and_are_used(monkeypatch):
    torch.manual_seed(0)
    coca = CoCa(dim=64, num_tokens=50, unimodal_depth=2, multimodal_depth=2, image_dim=32, num_img_queries=4).eval()
    ids = torch.randint(1, 50, (3, 6))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        _, pooled = coca.embed_image(image_tokens=torch.randn(3, 7, 32))
        packed = coca.start_decoding(pooled)
        monkeypatch.setattr(PackedLinears, "suit", lambda device: False)
        plain = coca.start_decoding(pooled)
        for t in range(6):
            a, b = coca.decode_step(ids[:, t:t + 1], packed), coca.decode_step(ids[:, t:t + 1], plain)
            torch.testing.assert_close(a, b, atol=0.05, rtol=0.02)
    assert isinstance(packed.packed, PackedLinears) == torch.backends.mkldnn.is_available()
    assert not isinstance(plain.packed, PackedLinears)
