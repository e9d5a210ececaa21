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
_MAX_PATTERN = 2000  # characters; the longest known one (o200k) has 350
_MAX_DEPTH = 20  # of its groups
_MAX_REPEAT = 1000  # product of its counted repeats, which the library unrolls
_REPEAT = re.compile(r"\{(\d+)?,?(\d+)?\}")
_ESCAPED = re.compile(r"\\.|\[[^\]]*\]", re.DOTALL)


def require_harmless(json_text: str) -> None:
    """Check a tokenizer's JSON.

    Raises:
        ValueError: It has a part of an unknown kind, may lengthen a text more than 64 times, or has a pattern that the
            library may not survive.
    """
    tokenizer = json.loads(json_text)
    kind = tokenizer["model"].get("type", "BPE")  # old files name none
    if kind not in _MODELS:
        raise ValueError(f"a model of the kind {kind!r}")
    _require_prefixed(tokenizer["model"])
    for name in _PIPELINES:
        _require_small(name, list(_flat(tokenizer.get(name))))


def _require_small(name: str, parts: list[dict[str, Any]]) -> None:
    """Check the parts of one pipeline together. Raises ValueError."""
    if len(parts) > _MAX_PARTS:
        raise ValueError(f"{len(parts)} parts in its {name}")
    growth = math.prod(map(_growth, parts))
    if growth > _MAX_GROWTH:
        raise ValueError(f"its {name} may lengthen a text {growth:g} times")
    for part in parts:
        _require_simple(part.get("pattern"))


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
    return 1


def _longest_replacement(charsmap: bytes) -> int:
    """Bytes of the longest text in SentencePiece's table of replacements: a trie, then texts that end in NUL."""
    trie_bytes = int.from_bytes(charsmap[:4], "little")
    return max(map(len, charsmap[4 + trie_bytes:].split(b"\0")), default=0)


def _require_simple(pattern: Any) -> None:
    if not isinstance(pattern, dict) or "Regex" not in pattern:
        return
    text = pattern["Regex"]
    repeats = math.prod(max(map(int, filter(None, match.groups())), default=1) for match in _REPEAT.finditer(text))
    if len(text) > _MAX_PATTERN or _depth(text) > _MAX_DEPTH or repeats > _MAX_REPEAT:
        raise ValueError(f"a pattern of {len(text)} characters that is nested or repeated too often")


def _depth(pattern: str) -> int:
    """How deep its groups are nested; what is escaped or in a set of characters is no group."""
    depth = deepest = 0
    for character in _ESCAPED.sub("", pattern):
        depth += (character == "(") - (character == ")")
        deepest = max(deepest, depth)
    return deepest
