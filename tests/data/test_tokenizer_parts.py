"""Tokenizers in checkpoints of strangers: what multiplies text or breaks the library is refused, what is published is not."""

from __future__ import annotations

import base64
import json

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from finetune.data.tokenizer import tokenizer_from_dict
from finetune.data.tokenizer_parts import harmless
from tests.helpers.files import refused

QWEN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
        r"\s+(?!\S)|\s+")
SPECIAL = {"pad": 0, "bos": 1, "eos": 2, "unk": None}


def tokenizer_json(**parts: object) -> str:
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate("abcdefgh胃癌")}, []))
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return tokenizer.to_str()


def charsmap(*texts: str) -> str:
    return base64.b64encode((0).to_bytes(4, "little") + b"\0".join(text.encode() for text in texts) + b"\0").decode()


def with_normalizer(*parts: dict) -> str:
    tokenizer = json.loads(tokenizer_json())
    tokenizer["normalizer"] = {"type": "Sequence", "normalizers": list(parts)}
    return json.dumps(tokenizer)


def with_merge(merge: list[str], prefix: str) -> str:
    tokenizer = json.loads(tokenizer_json())
    tokenizer["model"] |= {"merges": [merge], "continuing_subword_prefix": prefix}
    return json.dumps(tokenizer)


def load(json_text: str):
    return tokenizer_from_dict({"type": "hf", "version": 1, "json": json_text, "special": SPECIAL}, "best_model.pth")


@pytest.mark.parametrize("parts", [
    {"normalizer": normalizers.BertNormalizer(), "pre_tokenizer": pre_tokenizers.BertPreTokenizer(),
     "decoder": decoders.WordPiece()},
    {"pre_tokenizer": pre_tokenizers.ByteLevel(), "decoder": decoders.ByteLevel()},
    {"normalizer": normalizers.NFC(), "decoder": decoders.ByteLevel(), "pre_tokenizer": pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)])},
    {"normalizer": normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
     "decoder": decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                   decoders.Strip(" ", 1, 0)])},
    {"normalizer": normalizers.Replace(Regex(r" {2,}"), " "), "pre_tokenizer": pre_tokenizers.Metaspace()},
    {"pre_tokenizer": pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.Punctuation()])},
], ids=["BERT", "GPT-2", "Qwen", "Llama", "T5", "digits"])
def test_parts_of_published_tokenizers_are_accepted(parts):
    harmless(tokenizer_json(**parts))
    assert load(tokenizer_json(**parts)).encode("abc")


def test_the_replacements_of_sentencepiece_are_accepted_and_a_long_one_is_not():
    usual = {"type": "Precompiled", "precompiled_charsmap": charsmap("kg", "صلى الله عليه وسلم")}
    harmless(with_normalizer(usual))
    with pytest.raises(ValueError, match="lengthen"):
        harmless(with_normalizer({"type": "Precompiled", "precompiled_charsmap": charsmap("a" * 1000)}))


BOMBS = {
    "ten times eight": with_normalizer(*[{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 8}] * 10),
    "one long text": with_normalizer({"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100_000}),
    "many that prepend": with_normalizer(*[{"type": "Prepend", "prepend": "aa"}] * 90),
    "a nested pattern": with_normalizer({"type": "Replace", "pattern": {"Regex": "(" * 5000 + "a" + ")" * 5000},
                                         "content": ""}),
    "a deep pattern": with_normalizer({"type": "Replace", "pattern": {"Regex": "(" * 500 + "a" + ")" * 500},
                                       "content": ""}),
    "repeats of repeats": with_normalizer({"type": "Replace", "pattern": {"Regex": "(a{999}){999}"}, "content": ""}),
    "a merge without its prefix": with_merge(["ab", "c"], "##longer"),
    "bytes of bytes": with_normalizer(*[{"type": "ByteLevel"}] * 60),
    "spaces around spaces": json.dumps(json.loads(tokenizer_json()) | {"decoder": {
        "type": "Sequence", "decoders": [{"type": "BPEDecoder", "suffix": "</w>"}] * 20}}),
    "an empty suffix": json.dumps(json.loads(tokenizer_json()) | {"decoder": {"type": "BPEDecoder", "suffix": ""}}),
    "an empty delimiter": json.dumps(json.loads(tokenizer_json()) | {"decoder": {
        "type": "CTC", "pad_token": "a", "word_delimiter_token": "", "cleanup": True}}),
    "pieces of length 0": json.dumps(json.loads(tokenizer_json()) | {
        "pre_tokenizer": {"type": "FixedLength", "length": 0}}),
    "groups behind a comment": with_normalizer({"type": "Replace", "pattern": {
        "Regex": "(?#[)" + "(" * 500 + "a" + ")" * 500 + "(?#])"}, "content": ""}),
    "an id of four thousand million": json.dumps(json.loads(tokenizer_json()) | {
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 4_294_967_295}, "merges": []}}),
    "many parts": with_normalizer(*[{"type": "NFC"}] * 200),
    "a new part": with_normalizer({"type": "Exec", "command": "true"}),
}


@pytest.mark.parametrize("name", BOMBS)
def test_parts_that_take_the_memory_or_end_the_process_are_refused(name):
    with pytest.raises(ValueError):
        harmless(BOMBS[name])
    with refused("best_model.pth: its tokenizer is not usable"):
        load(BOMBS[name])


def test_padding_to_a_length_of_the_file_is_dropped():
    tokenizer = Tokenizer.from_str(tokenizer_json())
    tokenizer.enable_padding(length=1000, pad_id=0, pad_token="a")
    tokenizer.enable_truncation(1)
    assert len(load(tokenizer.to_str()).encode("abc")) == 3


def test_a_post_processor_that_repeats_the_text_is_dropped():
    repeated = json.loads(tokenizer_json())
    repeated["post_processor"] = {"type": "TemplateProcessing", "special_tokens": {}, "pair": [],
                                  "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 1000}
    assert len(load(json.dumps(repeated)).encode("abc")) == 3


@pytest.mark.parametrize("parts", [
    {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a|a|aa)+$"}, "behavior": "Isolated", "invert": False}},
    {"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "c": 2}, "unk_token": "zz"}},
], ids=["a pattern without end", "an unknown token that is none"])
def test_what_the_library_raises_or_panics_with_is_one_line(parts):
    tokenizer = load(json.dumps(json.loads(tokenizer_json()) | parts))
    with refused("tokenizer: cannot encode a text"):
        tokenizer.encode("a" * 60 + "x")
