"""Alternatives and log odds against a decoder whose probabilities are known, and against enumeration."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from finetune.data.tokenizer import build_tokenizer
from finetune.explanation.caption_tokens import KnownPhrases, phrases, read_caption, token_texts
from finetune.explanation.contrast import Alternatives, log_odds
from tests.helpers.planted import TEXTS, contrasts_of, planted


def test_the_alternative_is_what_the_model_could_have_written_and_the_odds_are_its_own():
    captioner, tiles, _ = planted()
    image_tokens, (first, second) = contrasts_of(captioner, tiles, "见坏死，组织好。")
    assert (first.text, second.text) == ("无坏死", "组织差")
    score = captioner.model.decoder.score(image_tokens[None]).item()
    assert score > 6
    assert log_odds(captioner.model.decoder, image_tokens, first).item() == pytest.approx(score, abs=1e-5)
    assert log_odds(captioner.model.decoder, image_tokens, second).item() == pytest.approx(3, abs=1e-5)


def test_a_phrase_that_nothing_else_can_stand_for_has_no_alternative():
    captioner, tiles, _ = planted(choices=False)
    assert contrasts_of(captioner, tiles, "见坏死，组织好。", TEXTS)[1] == [None, None]


class Bigrams:
    """A decoder without a slide: the next token depends on the last one alone."""

    never_generated, max_positions = (), None

    def __init__(self, log_probs):
        self.log_probs = log_probs

    def embed_image(self, *, image_tokens):
        return None, image_tokens

    def __call__(self, text, *, image_tokens, text_mask):
        return self.log_probs[text]

    def start_decoding(self, context):
        return None

    def decode_step(self, token_ids, cache):
        return self.log_probs[token_ids[:, -1]]


def bigrams(texts, rare=1e-4):
    """A decoder that has counted texts, with a little for all else."""
    tokenizer = build_tokenizer("vocab", texts, False)
    counts = torch.full((len(tokenizer), len(tokenizer)), rare)
    for text in texts:
        ids = [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]
        for a, b in itertools.pairwise(ids):
            counts[a, b] += 1
    return tokenizer, Bigrams((counts / counts.sum(1, keepdim=True)).log())


@pytest.mark.parametrize(("texts", "caption", "place", "expected"), [
    (["胃癌，高级。", "胃癌，低级。", "胃癌，低级。"], "胃癌，高级。", 1, "低级"),
    (["胃癌，高级。", "肺炎，高级。"], "胃癌，高级。", 0, "肺炎"),
    (["胃癌，坏死。", "胃癌。"], "胃癌，坏死。", 1, ""),  # the caption could have ended
    (["高级癌", "高级癌伴坏死"], "高级癌", 0, "高级癌伴坏死"),  # what goes on beyond the phrase
])
def test_phrases_of_the_training_texts_come_first(texts, caption, place, expected):
    tokenizer, decoder = bigrams(texts)
    tokens = read_caption(tokenizer, caption)
    found = Alternatives(decoder, tokenizer, torch.zeros(2, 3), tokens, KnownPhrases(texts, tokenizer))
    contrast = found.of_phrase(place, phrases(tokens.pieces)[place])
    assert contrast.text == expected
    by_hand = sum(decoder.log_probs[a, b].item() for a, b in itertools.pairwise([contrast.before[-1], *contrast.phrase]))
    by_hand -= sum(decoder.log_probs[a, b].item() for a, b in itertools.pairwise([contrast.before[-1], *contrast.alternative]))
    assert log_odds(decoder, torch.zeros(2, 3), contrast).item() == pytest.approx(by_hand, abs=1e-4)


def test_without_training_texts_it_is_the_most_probable_other_text_of_all():
    texts = ["甲乙。", "甲乙。", "甲丙。", "丁丙。"]
    tokenizer, decoder = bigrams(texts, rare=1e-6)
    tokens = read_caption(tokenizer, "甲乙。")
    found = Alternatives(decoder, tokenizer, torch.zeros(2, 3), tokens, KnownPhrases((), tokenizer)).of_phrase(0, range(2))
    ids = [tokenizer.encode(c)[0] for c in "甲乙丙丁"]
    end = tokenizer.encode("。")
    best = max((one for n in (1, 2, 3) for one in itertools.product(ids, repeat=n) if [*one] != tokenizer.encode("甲乙")),
               key=lambda one: sum(decoder.log_probs[a, b].item() for a, b in itertools.pairwise([tokenizer.bos_id, *one, *end])))
    assert tokenizer.encode(found.text) == [*best]


def test_a_cut_caption_is_not_compared_as_if_it_had_ended():
    captioner, tiles, _ = planted()
    _, (_, cut) = contrasts_of(captioner, tiles, "见坏死，组织", finished=False)
    assert cut is None or captioner.tokenizer.eos_id not in cut.phrase
    _, (_, whole) = contrasts_of(captioner, tiles, "见坏死，组织好。")
    assert captioner.tokenizer.decode(whole.phrase) == "，组织好。"


def test_phrases_end_at_punctuation_of_both_languages():
    assert phrases(list("胃腺癌，高分化。")) == [range(3), range(4, 7)]
    assert phrases(["invasive", " carcinoma", ",", " grade", " 2"]) == [range(2), range(3, 5)]
    assert phrases(["。", "，"]) == []
    assert phrases(["胃", "癌，", "", "分化。", "好"]) == [range(2), range(2, 4), range(4, 5)], "marks that end a longer token"


@pytest.mark.parametrize("kind", ["vocab", "bpe"])
def test_the_texts_of_the_tokens_are_the_caption_and_whole_characters(kind):
    tokenizer = build_tokenizer(kind, ["胃腺癌，grade 2。"], False)
    for text in ("胃腺癌，grade 2。", "肝癌 é🙂。"):
        ids = tokenizer.encode(text)
        texts = token_texts(tokenizer, ids)
        assert len(texts) == len(ids) and "".join(texts) == tokenizer.decode(ids)
        assert not any("\ufffd" in piece for piece in texts) or kind == "vocab"
    assert kind == "vocab" or "" in texts, "bytes of one character"


def test_known_phrases_have_their_place():
    tokenizer = build_tokenizer("vocab", ["癌，直径 1.5 cm。"], False)
    known = KnownPhrases(["癌，直径 1.5 cm。"], tokenizer)
    assert [known.rank(place, text) for place, text in [(0, "癌"), (1, "癌"), (1, "直径 1.5 cm"), (2, ""), (1, ""), (0, "炎")]] == [2, 1, 2, 2, -1, 0]
    assert KnownPhrases((), tokenizer).rank(0, "癌") == 0 and not math.isnan(known.BEST)
