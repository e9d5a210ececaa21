"""Vocabulary tokenizer: one token per Chinese character, word, number or sign; built from the training texts only.

Tokens are pieces of the text itself (a word keeps the space before it), so joining them gives the text back exactly.
A word or number that the training texts do not have is spelled with their single characters; only a character never
seen becomes <unk>.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from .errors import UserError

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_PIECE = re.compile(rf" ?\d+(?:\.\d+)*| ?[^\W\d_{_CJK}]+| ?[{_CJK}]| ?[^\s\w]|\s|.", re.DOTALL)


class Tokenizer(Protocol):
    """Text <-> ids. Special ids come from here and nowhere else."""

    pad_id: int
    bos_id: int
    eos_id: int
    unk_id: int

    def __len__(self) -> int: ...
    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: Iterable[int]) -> str: ...
    def to_dict(self) -> dict[str, Any]: ...


class VocabTokenizer:
    """Text <-> ids. Special ids come from here and nowhere else: pad 0, bos 1, eos 2, unk 3."""

    specials = ("<pad>", "<bos>", "<eos>", "<unk>")
    pad_id, bos_id, eos_id, unk_id = range(4)

    def __init__(self, pieces: Sequence[str]) -> None:
        """pieces: the vocabulary after the special tokens, in id order."""
        self.pieces = list(pieces)
        self._ids = {piece: i for i, piece in enumerate(self.pieces, start=len(self.specials))}

    @classmethod
    def build(cls, texts: Iterable[str]) -> VocabTokenizer:
        """Vocabulary of `texts`: their pieces and single characters, most frequent first, ties by code point."""
        counts: Counter[str] = Counter()
        for text in texts:
            pieces = _PIECE.findall(text)
            counts.update(pieces)
            # the characters inside longer pieces, once per text: with them unseen words can be spelled
            counts.update({c for piece in pieces for c in piece if len(piece) > 1})
        return cls(sorted(counts, key=lambda piece: (-counts[piece], piece)))

    def __len__(self) -> int:
        return len(self.specials) + len(self.pieces)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without begin and end token."""
        ids: list[int] = []
        for piece in _PIECE.findall(text):
            whole = self._ids.get(piece)
            ids += [whole] if whole is not None else [self._ids.get(c, self.unk_id) for c in piece]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`: special tokens are left out, <unk> shows as U+FFFD."""
        first = len(self.specials)
        return "".join("\ufffd" if i == self.unk_id else self.pieces[i - first] if i >= first else "" for i in ids)

    def to_dict(self) -> dict[str, Any]:
        return {"type": "vocab", "version": 1, "pieces": self.pieces}

    @classmethod
    def from_dict(cls, data: dict[str, Any], where: str) -> VocabTokenizer:
        if data.get("type") != "vocab" or data.get("version") != 1:
            raise UserError(where, f"tokenizer {data.get('type')!r} version {data.get('version')!r} is unknown",
                            "use the version of this project that wrote it")
        pieces = data.get("pieces")
        if not isinstance(pieces, list) or not all(isinstance(p, str) for p in pieces):
            raise UserError(where, "its tokenizer has no vocabulary", "use another checkpoint of the run")
        return cls(pieces)


def tokenizer_from_dict(data: dict[str, Any], where: str) -> Tokenizer:
    """The tokenizer of a checkpoint, of any kind. Raises UserError."""
    if data.get("type") != "biogpt":
        return VocabTokenizer.from_dict(data, where)
    from prism import BioGptTokenizer  # torch: only where it is loaded anyway

    try:
        return BioGptTokenizer.from_dict(data)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(where, "its tokenizer is not usable", "use another checkpoint of the run") from None
