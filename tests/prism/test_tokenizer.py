"""BioGPT's tokenizer against `transformers.BioGptTokenizer` 5.24.0, whose results are in parity/biogpt_tokenizer.json."""

import json
import pickle
import string
import sys
from pathlib import Path

import pytest

from prism import BioGptTokenizer, PrismWeightsError
from prism.tokenizer import SPECIALS, letters_tokenizer

RECORDED = json.loads((Path(__file__).parents[1] / "parity" / "biogpt_tokenizer.json").read_text(encoding="utf-8"))


@pytest.fixture
def tokenizer() -> BioGptTokenizer:
    letters = [chr(c) for c in range(33, 127)]
    merged = ["".join(pair) for pair in RECORDED["merges"]]
    pieces = dict.fromkeys([*SPECIALS, *letters, *(letter + "</w>" for letter in letters), *merged])
    return BioGptTokenizer({piece: i for i, piece in enumerate(pieces)}, RECORDED["merges"])


@pytest.mark.parametrize(("text", "ids", "with_specials", "plain"), RECORDED["cases"])
def test_ids_and_texts_equal_those_of_transformers(tokenizer, text, ids, with_specials, plain):
    assert tokenizer.encode(text) == ids[1:-1]
    assert tokenizer.decode(ids, skip_special_tokens=False) == with_specials
    assert tokenizer.decode(ids) == plain


def test_an_end_token_in_a_text_is_text(tokenizer):
    assert tokenizer.eos_id not in tokenizer.encode("tumor </s> tumor")


def test_saved_files_give_the_same_tokenizer_back(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    again = BioGptTokenizer.from_folder(tmp_path)
    assert (again.vocabulary, again.merges) == (tokenizer.vocabulary, tokenizer.merges)
    tokenizer.encode("now it has its Moses")
    assert pickle.loads(pickle.dumps(tokenizer)).encode("newer tumor") == tokenizer.encode("newer tumor")


@pytest.mark.parametrize("vocabulary", ["[1]", "{}", '{"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 2}', "nothing",
                                        '{"<s>": "0", "<pad>": "1", "</s>": "2", "<unk>": "3"}',
                                        '{"<s>": -1, "<pad>": 1, "</s>": 2, "<unk>": 3}'])
def test_other_files_are_refused(tmp_path, vocabulary):
    (tmp_path / "vocab.json").write_text(vocabulary, encoding="utf-8")
    (tmp_path / "merges.txt").write_text("a b\n", encoding="utf-8")
    with pytest.raises(PrismWeightsError, match=r"vocab\.json"):
        BioGptTokenizer.from_folder(tmp_path)


def test_letters_spell_every_ascii_word():
    tokenizer = letters_tokenizer()
    ids = tokenizer.encode(string.printable)
    assert tokenizer.unk_id not in ids and len(tokenizer) < 255
    assert tokenizer.decode(tokenizer.encode("Grade 3, 50% positive.")) == "Grade 3, 50% positive."


def test_without_sacremoses_the_pip_command_is_named(tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "sacremoses", None)
    with pytest.raises(ValueError, match="pip install sacremoses"):
        tokenizer.encode("a")
