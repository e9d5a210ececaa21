"""What a tokenizer of the `tokenizers` library may consist of, looked at before the library builds it.

A checkpoint may come from anywhere. Parts that replace text can multiply it, one after the other, until the memory is
gone, and a deeply nested pattern ends the process with a panic that no `except Exception` catches.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Iterator
from typing import Any

_MODELS = frozenset({"BPE", "Unigram", "WordLevel", "WordPiece"})
_PARTS = frozenset({
    # normalizers
    "BertNormalizer", "ByteLevel", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "Prepend",
    "Replace", "Sequence", "Strip", "StripAccents",
    # pre-tokenizers
    "BertPreTokenizer", "CharDelimiterSplit", "Digits", "FixedLength", "Metaspace", "Punctuation", "Split",
    "UnicodeScripts", "Whitespace", "WhitespaceSplit",
    # decoders
    "BPEDecoder", "ByteFallback", "CTC", "Fuse", "WordPiece"})
_PIPELINES = ("normalizer", "pre_tokenizer", "decoder")
_MAX_PARTS = 100  # in one pipeline; those of published tokenizers have up to ten
_MAX_GROWTH = 64  # times that a pipeline may lengthen a text: one letter of NFKC becomes up to 18
_MAX_ID = 10_000_000  # of a token; the model has a row for each
_MAX_PATTERN = 2000  # characters; the longest known one (o200k) has 350
_MAX_GROUPS = 100  # in a pattern; comments and sets that hold brackets are not told apart
_MAX_REPEAT = 1000  # product of its counted repeats, which the library unrolls
_MAX_DEPTH = 20  # of sequences in sequences
_REPEAT = re.compile(r"\{(\d+)?,?(\d+)?\}")
_ESCAPED = re.compile(r"\\.", re.DOTALL)
# How many times longer a part may make a text that others like it have lengthened; 1 for those not listed
_GROWTH = {"ByteLevel": 4, "BertNormalizer": 3, "Metaspace": 2, "WordPiece": 2, "BPEDecoder": 2, "CTC": 2}
# What a part adds between two letters if it is empty
_NOT_EMPTY = {"BPEDecoder": ("suffix",), "CTC": ("pad_token", "word_delimiter_token")}


def harmless(json_text: str) -> str:
    """A tokenizer's JSON without what is not used here: the post-processor (special tokens), padding, truncation.

    Raises:
        ValueError: It has a part of an unknown kind, may lengthen a text more than 64 times, or has a pattern or a
            vocabulary that the library or the model may not survive.
    """
    tokenizer = json.loads(json_text)
    model = tokenizer["model"]
    kind = model.get("type", "BPE")  # old files name none
    if kind not in _MODELS:
        raise ValueError(f"a model of the kind {kind!r}")
    _require_prefixed(model)
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict) and max(vocabulary.values(), default=0) > _MAX_ID:
        raise ValueError("an impossible id of a token")
    for name in _PIPELINES:
        _require_small(name, list(_flat(tokenizer.get(name))))
    return json.dumps(tokenizer | {"post_processor": None, "padding": None, "truncation": None}, ensure_ascii=False)


def _require_small(name: str, parts: list[dict[str, Any]]) -> None:
    """Check the parts of one pipeline together. Raises ValueError."""
    if len(parts) > _MAX_PARTS:
        raise ValueError(f"{len(parts)} parts in its {name}")
    growth = math.prod(map(_growth, parts))
    if growth > _MAX_GROWTH:
        raise ValueError(f"its {name} may lengthen a text {growth:g} times")
    for part in parts:
        _require_sound(part)


def _require_prefixed(model: dict[str, Any]) -> None:
    """The library cuts the prefix of continuing pieces off the second part of each merge, and panics without one."""
    prefix = model.get("continuing_subword_prefix") or ""
    for merge in (model.get("merges") or ()) if prefix else ():
        _, second = merge.split(" ") if isinstance(merge, str) else merge
        if not second.startswith(prefix):
            raise ValueError("a merge without the prefix of continuing pieces")


def _flat(part: Any, depth: int = 0) -> Iterator[dict[str, Any]]:
    """The parts of a pipeline, those in sequences one by one. Raises ValueError for an unknown kind."""
    if part is None:
        return
    if part["type"] not in _PARTS or depth > _MAX_DEPTH:
        raise ValueError(f"a part of the kind {part['type']!r}")
    yield part
    for members in ("normalizers", "pretokenizers", "decoders"):
        for member in part.get(members, ()):
            yield from _flat(member, depth + 1)


def _growth(part: dict[str, Any]) -> float:
    """How many times longer a part may make a text of at least one character."""
    if part["type"] == "Replace":
        return max(1, len(part["content"]))
    if part["type"] == "Prepend":
        return 1 + len(part["prepend"])
    if part["type"] == "Precompiled":
        return max(1, _longest_replacement(base64.b64decode(part["precompiled_charsmap"])) / 2)
    return _GROWTH.get(part["type"], 1)


def _longest_replacement(charsmap: bytes) -> int:
    """Bytes of the longest text in SentencePiece's table of replacements: a trie, then texts that end in NUL."""
    trie_bytes = int.from_bytes(charsmap[:4], "little")
    return max(map(len, charsmap[4 + trie_bytes:].split(b"\0")), default=0)


def _require_sound(part: dict[str, Any]) -> None:
    """Check a part alone. Raises ValueError."""
    if any(part.get(name) == "" for name in _NOT_EMPTY.get(part["type"], ())):
        raise ValueError(f"a {part['type']} of empty text")
    if part["type"] == "FixedLength" and part["length"] < 1:
        raise ValueError("pieces of length 0")
    pattern = part.get("pattern")
    if isinstance(pattern, dict) and "Regex" in pattern:
        _require_simple(pattern["Regex"])


def _require_simple(pattern: str) -> None:
    """Raises ValueError for a pattern that is nested, repeated or long beyond what tokenizers need."""
    repeats = math.prod(max(map(int, filter(None, match.groups())), default=1) for match in _REPEAT.finditer(pattern))
    num_groups = _ESCAPED.sub("", pattern).count("(")
    if len(pattern) > _MAX_PATTERN or num_groups > _MAX_GROUPS or repeats > _MAX_REPEAT:
        raise ValueError(f"a pattern of {len(pattern)} characters that is nested or repeated too often")
