"""Caption scores against values counted by hand, the libraries' public functions, and brute force."""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from functools import cache

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF

from finetune.evaluation.text_metrics import (
    align_tokens,
    cider,
    distinct_share,
    language,
    longest_common_subsequence,
    phrase_accuracy,
    phrases,
    rouge_l,
    signature,
    text_statistics,
    token_alignment,
)

REFERENCES = ["胃腺癌，低分化，可见坏死。", "胃腺癌，高分化，未见坏死。",
              "乳腺癌，高分化，未见坏死。", "胃腺癌，低分化，可见坏死。"]
CAPTIONS = ["胃腺癌，低分化，可见坏死。", "胃腺癌，低分化，可见坏死。", "乳腺癌，高分化", ""]
ENGLISH = ["Poorly differentiated adenocarcinoma, HER2 (3+).", "Well differentiated tubular adenocarcinoma.", "No tumor."]


def scores(captions, references):
    several = [[r] if isinstance(r, str) else r for r in references]
    everyone = np.arange(len(captions))
    return {name: score(everyone) for name, score in text_statistics(captions, several).items()}


@pytest.mark.parametrize("texts", [REFERENCES, ENGLISH, ["癌", "胃癌", "无癌"]], ids=["zh", "en", "short"])
def test_identical_texts_score_one(texts):
    result = scores(texts, texts)
    assert all(v == pytest.approx(1) for k, v in result.items() if k not in ("cider", "distinct_share")), result
    assert texts is not REFERENCES or result["cider"] == pytest.approx(10)
    assert all(max(scores([text], [text])[f"bleu_{n}"] for n in range(1, 5)) <= 1 for text in texts), "not 1.0000000000000004"


@pytest.mark.parametrize("captions, references", [
    (CAPTIONS, REFERENCES), (ENGLISH[::-1], ENGLISH), (CAPTIONS, [[r, "胃癌。"] for r in REFERENCES])])
def test_bleu_and_chrf_are_sacrebleus_corpus_scores(captions, references):
    streams = [list(s) for s in zip(*([r] if isinstance(r, str) else r for r in references), strict=True)]
    tokenize, result = "13a" if references is ENGLISH else "zh", scores(captions, references)
    for n in range(1, 5):
        expected = BLEU(tokenize=tokenize, max_ngram_order=n, effective_order=True).corpus_score(captions, streams).score
        assert result[f"bleu_{n}"] == pytest.approx(expected / 100)
    assert result["chrf"] == pytest.approx(CHRF().corpus_score(captions, streams).score / 100)


def test_a_resample_scores_like_the_texts_it_drew():
    draw = np.array([0, 2, 2, 1])
    statistics = text_statistics(CAPTIONS, [[r] for r in REFERENCES])
    drawn = scores([CAPTIONS[i] for i in draw], [REFERENCES[i] for i in draw])
    for name in set(statistics) - {"cider"}:  # its IDF stays that of all references
        assert statistics[name](draw) == pytest.approx(drawn[name]), name


def test_unigram_precision_is_clipped_as_in_the_bleu_paper():
    assert scores(["the the the the the the the"], ["the cat is on the mat"])["bleu_1"] == pytest.approx(2 / 7)


@pytest.mark.parametrize("caption, expected", [("police kill the gunman", 3 / 4), ("the gunman kill police", 2 / 4)])
def test_rouge_l_as_in_its_paper(caption, expected):
    assert rouge_l(caption.split(), [["police", "killed", "the", "gunman"]]) == pytest.approx(expected)


def test_rouge_l_takes_the_best_precision_and_recall_with_beta_1_2():
    # LCS 2 of 2 and 2 of 4: P 1, R 0.5
    assert rouge_l(["a", "b"], [list("axbx"), ["c"]]) == pytest.approx((1 + 1.44) * 0.5 / (0.5 + 1.44))
    assert rouge_l([], [["a"]]) == 0


def test_the_bit_parallel_subsequence_is_the_usual_one():
    rng = random.Random(0)

    @cache
    def slow(a: str, b: str) -> int:
        if not a or not b:
            return 0
        return slow(a[1:], b[1:]) + 1 if a[0] == b[0] else max(slow(a[1:], b), slow(a, b[1:]))

    for _ in range(300):
        a, b = ("".join(rng.choices("abc", k=rng.randint(0, 9))) for _ in range(2))
        assert longest_common_subsequence(a, b) == slow(a, b)


def test_token_alignment_by_hand():
    reference = ["the", "cat", "sat", "on", "the", "mat"]
    # on the mat | sat | the cat: all 6 tokens in 3 chunks
    assert token_alignment(["on", "the", "mat", "sat", "the", "cat"], [["dog"], reference]) == pytest.approx(1 - 0.6 * (3 / 6) ** 0.2)
    # the cat: P 1, R 1/3, one chunk of two
    mean = 1 / 3 / (0.85 + 0.15 / 3)
    assert token_alignment(["the", "cat"], [reference]) == pytest.approx(mean * (1 - 0.6 * (1 / 2) ** 0.2))
    assert token_alignment(["dog"], [reference]) == token_alignment([], [reference]) == 0


def test_tokens_are_matched_as_often_as_both_have_them_in_runs_that_exist():
    rng = random.Random(0)
    for _ in range(300):
        a, b = (rng.choices("abcd", k=rng.randint(0, 12)) for _ in range(2))
        matches, chunks = align_tokens(a, b)
        assert matches == (Counter(a) & Counter(b)).total() and (chunks > 0) == (matches > 0) and chunks <= matches
    assert align_tokens(list("abcab"), list("abab")) == (4, 2)  # ab, then the other ab


def test_cider_by_hand():
    references = [[list("abcd")], [list("efgh")]]  # all n-grams are in one of two slides: equal weights
    same, changed, longer = list("abcd"), list("abcx"), list("abcdy")
    assert cider([same, list("efgh")], references) == pytest.approx([10, 10])
    assert cider([changed, []], references) == pytest.approx([10 * (3 / 4 + 2 / 3 + 1 / 2 + 0) / 4, 0])
    cosines = 4 / math.sqrt(20) + 3 / math.sqrt(12) + 2 / math.sqrt(6) + 1 / math.sqrt(2)
    assert cider([longer, same], references)[0] == pytest.approx(10 * cosines / 4 * math.exp(-1 / 72))
    assert cider([same, same], [[same], [same]]).tolist() == [0, 0], "these slides cannot be told apart"


def test_the_tokenization_follows_the_corpus_and_is_in_the_signature():
    assert language([[t] for t in REFERENCES]) == "zh" and language([[t] for t in ENGLISH]) == "13a"
    assert language([["胃癌"], ["癌", "cancer"]]) == "zh"
    said = signature([["胃癌"], ["癌", "肿瘤"]])
    assert "tok:zh|" in said and "nrefs:1-2|" in said and "sacrebleu-2" in said and "not METEOR" in said


def test_phrases_are_scored_by_their_place():
    # first: yes yes yes no; second: yes no yes no; third: yes no no (missing) no
    assert phrase_accuracy(CAPTIONS, REFERENCES) == [3 / 4, 2 / 4, 1 / 4]


def test_a_right_phrase_in_the_wrong_place_does_not_count():
    assert phrase_accuracy(["b，a，c"], ["a，b，c"]) == [0, 0, 1]


def test_references_without_a_common_template_have_no_phrase_score():
    assert phrase_accuracy(["a", "b"], ["a，b", "a"]) is None


def test_a_collapsed_model_has_few_distinct_captions():
    assert distinct_share(CAPTIONS) == 3 / 4
    assert distinct_share(["x"] * 5) == 1 / 5


@pytest.mark.parametrize(("text", "parts"), [
    ("胃腺癌，低分化；可见坏死。", ["胃腺癌", "低分化", "可见坏死"]),
    ("A, grade 2; no necrosis.\n", ["A", "grade 2", "no necrosis"]),
    ("一、二，，。", ["一", "二"]), ("大小3.5cm，无坏死.", ["大小3.5cm", "无坏死"]), ("。", []), ("", []),
])
def test_phrases_end_at_chinese_and_english_punctuation(text, parts):
    assert phrases(text) == parts


def test_lists_of_different_length_are_a_bug_not_a_score():
    with pytest.raises(ValueError):
        text_statistics(["a"], [["a"], ["b"]])
    with pytest.raises(ValueError):
        phrase_accuracy(["a"], ["a", "b"])


@pytest.mark.parametrize("words", [1, 2, 1000])
def test_A04_scores_of_texts_of_100_000_tokens_do_not_take_minutes_and_it_is_said(words, caplog):
    rng = random.Random(words)
    caption, reference = (" ".join(f"w{rng.randrange(words)}" for _ in range(100_000)) for _ in range(2))
    start = time.process_time()
    with caplog.at_level("WARNING", "prism_coca"):
        found = text_statistics([caption], [[reference]])["token_alignment"](np.array([0]))
    assert time.process_time() - start < 60
    assert "first 1000 tokens of 2 longer texts" in caplog.text
    assert found == token_alignment(caption.split()[:1000], [reference.split()[:1000]])


def test_texts_of_1000_tokens_are_compared_as_a_whole(caplog):
    text = " ".join(map(str, range(1000)))
    with caplog.at_level("WARNING", "prism_coca"):
        assert text_statistics([text], [[text]])["token_alignment"](np.array([0])) == 1.0
    assert not caplog.text
