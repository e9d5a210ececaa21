"""Caption scores against values counted by hand."""

from __future__ import annotations

import pytest

from finetune.metrics import distinct_share, exact_match, most_common_share, phrase_accuracy, phrases

REFERENCES = ["胃腺癌，低分化，可见坏死。", "胃腺癌，高分化，未见坏死。",
              "乳腺癌，高分化，未见坏死。", "胃腺癌，低分化，可见坏死。"]
CAPTIONS = ["胃腺癌，低分化，可见坏死。", "胃腺癌，低分化，可见坏死。", "乳腺癌，高分化", ""]


def test_exact_match_counts_whole_texts():
    assert exact_match(CAPTIONS, REFERENCES) == 1 / 4
    assert exact_match(REFERENCES, REFERENCES) == 1


def test_phrases_are_scored_by_their_place():
    # first: yes yes yes no; second: yes no yes no; third: yes no no (missing) no
    assert phrase_accuracy(CAPTIONS, REFERENCES) == [3 / 4, 2 / 4, 1 / 4]


def test_a_right_phrase_in_the_wrong_place_does_not_count():
    assert phrase_accuracy(["b，a，c"], ["a，b，c"]) == [0, 0, 1]


def test_references_without_a_common_template_have_no_phrase_score():
    assert phrase_accuracy(["a", "b"], ["a，b", "a"]) is None


def test_the_dullest_captioner_says_the_most_frequent_reference():
    assert most_common_share(REFERENCES) == 2 / 4
    assert most_common_share(["a", "b", "c"]) == 1 / 3


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
        exact_match(["a"], ["a", "b"])
    with pytest.raises(ValueError):
        phrase_accuracy(["a"], ["a", "b"])
