"""The vocabulary tokenizer: exact round trips, spelling of unseen words, special tokens that text cannot reach."""

from __future__ import annotations

import json
import random

import pytest

from finetune.tokenizer import VocabTokenizer
from tests.conftest import refused

TEXTS = [
    "（胃窦）中分化腺癌，Lauren分型：肠型；浸润至浆膜下层，脉管癌栓（＋），神经侵犯（－）。",
    "乳腺浸润性导管癌，Ⅱ级，大小3.5cm×2cm，ER(90%,强+)，PR(−)，HER-2(3+)，Ki-67约30%。",
    "Invasive ductal carcinoma, grade 2; pT2 N1a (3/12). Margins: negative,  closest 0.15 cm.\n\tSee note.",
    "淋巴结：０／１２　未见癌转移。 肿瘤最大径１２ｍｍ；α-SMA、β-catenin（+），p53: wild-type≥80%",
    "café Müller naïve – “quoted” ‘x’ … 5µm 37°C ①②③ <eos> <pad> [PAD] </s> <unk>",
    "第一行\r\n第二行\n\n  缩进\u3000全角空格\xa0不断行_下划线_ a_b __ 1_000",
    "かな カナ 漢字 𠀀𠮷 한국어 текст é e\u0301 \U0001f600 \u200b\u202e\x00\x1b[1m",
    "1.2.3 1.2. .5 3..4 10,000 1e-4 -5 +3 0x1F 12３4",
]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_known_text_comes_back_exactly(text):
    tokenizer = VocabTokenizer.build([text])
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert min(tokenizer.encode(text)) > 3, "no special or unknown token"


def test_any_text_of_known_characters_comes_back_exactly():
    tokenizer = VocabTokenizer.build(TEXTS)
    characters = sorted(set("".join(TEXTS)))
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choices(characters, k=rng.randrange(40)))
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_token_is_a_character_a_word_a_number_or_a_sign():
    text = "胃窦 grade 3.5cm，HER-2(3+) 癌_x"
    tokenizer = VocabTokenizer.build([text])
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode(text)]
    assert pieces == ["胃", "窦", " grade", " 3.5", "cm", "，", "HER", "-", "2", "(", "3", "+", ")", " 癌", "_", "x"]


def test_an_unseen_word_or_number_is_spelled_by_its_characters():
    tokenizer = VocabTokenizer.build(["tumor 12.5 mm", "cat"])
    ids = tokenizer.encode("matcor 21")
    assert [tokenizer.decode([i]) for i in ids] == ["m", "a", "t", "c", "o", "r", " ", "2", "1"]
    assert tokenizer.encode("tumor") != tokenizer.encode("t umor") and len(tokenizer.encode("tumor")) == 1


def test_only_a_character_never_seen_is_unknown():
    tokenizer = VocabTokenizer.build(["胃癌 grade"])
    ids = tokenizer.encode("肺癌grades")
    assert ids.count(tokenizer.unk_id) == 2 and tokenizer.decode(ids) == "\ufffd癌grade\ufffd"


@pytest.mark.parametrize("text", ["<eos>", "<pad><bos>", "a<eos>b", "<unk>", "[PAD]", "</s>", "\ufffd"])
def test_T02_special_tokens_inside_a_text_are_text(text):
    for tokenizer in (VocabTokenizer.build([text]), VocabTokenizer.build(["<eos> <pad><bos> a b <unk> [PAD] </s> \ufffd"])):
        ids = tokenizer.encode(text)
        assert min(ids) >= len(tokenizer.specials) and tokenizer.decode(ids) == text


def test_special_ids_are_fixed_and_left_out_of_the_text():
    tokenizer = VocabTokenizer.build(["癌"])
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id) == (0, 1, 2, 3)
    assert tokenizer.decode([1, 4, 2, 0, 0]) == "癌" and tokenizer.encode("") == [] and tokenizer.decode([]) == ""


def test_the_vocabulary_is_counted_by_hand_most_frequent_first():
    # pieces: 癌 3, b 2, a 1 + the characters of " cd" and "cd" once per text
    tokenizer = VocabTokenizer.build(["癌癌b cd", "癌b，cd"])
    counts = {"癌": 3, "b": 2, " cd": 1, "cd": 1, "，": 1, "c": 2, "d": 2, " ": 1}
    assert tokenizer.pieces == sorted(counts, key=lambda p: (-counts[p], p))
    assert len(tokenizer) == 4 + len(counts)


def test_the_vocabulary_does_not_depend_on_the_order_of_the_texts():
    assert VocabTokenizer.build(TEXTS).pieces == VocabTokenizer.build(TEXTS[::-1]).pieces
    assert len(set(VocabTokenizer.build(TEXTS).pieces)) == len(VocabTokenizer.build(TEXTS).pieces)


def test_a_saved_tokenizer_gives_the_same_ids():
    tokenizer = VocabTokenizer.build(TEXTS)
    again = VocabTokenizer.from_dict(json.loads(json.dumps(tokenizer.to_dict())), "c.pth")
    assert all(again.encode(t) == tokenizer.encode(t) for t in TEXTS) and len(again) == len(tokenizer)
    assert json.loads(json.dumps(tokenizer.to_dict())) == tokenizer.to_dict()


@pytest.mark.parametrize("data", [{}, {"type": "bpe", "version": 1, "pieces": []}, {"type": "vocab", "version": 2, "pieces": []}])
def test_K09_a_tokenizer_of_another_kind_or_version_is_refused(data):
    with refused("c.pth", repr(data.get("type")), repr(data.get("version"))):
        VocabTokenizer.from_dict(data, "c.pth")
