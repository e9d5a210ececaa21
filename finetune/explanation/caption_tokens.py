"""The tokens of a caption: their texts, and which of them are a phrase."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from ..data.tokenizer import Tokenizer

MARKS = "，。；、：！？,.;:!?\n"
_BETWEEN_PHRASES = re.compile(r"[，。；、：！？,;:!?\n]|\.(?!\d)")  # 1.5 cm is no end


class CaptionTokens(NamedTuple):
    """A caption as the decoder has written it.

    Attributes:
        ids: [begin token, token, ...], and the end token unless the length limit cut the caption.
        pieces: The text of each token between them.
    """

    ids: list[int]
    pieces: list[str]


def read_caption(tokenizer: Tokenizer, caption: str, finished: bool = True) -> CaptionTokens:
    """The tokens of a caption. finished: whether it came to its end token."""
    token_ids = tokenizer.encode(caption)
    end = [tokenizer.eos_id] if finished else []
    return CaptionTokens([tokenizer.bos_id, *token_ids, *end], token_texts(tokenizer, token_ids))


def token_texts(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    """The text of each token, which together are the caption.

    Where several byte-level tokens spell one character, the last of them gets it and the others nothing.
    """
    texts, done = [], ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:end])
        if end < len(ids):
            text = text.rstrip("\ufffd")  # bytes of a character that is not complete
        texts.append(text[len(done):] if text.startswith(done) else "")
        done = text if text.startswith(done) else done
    return texts


def phrases(pieces: list[str]) -> list[range]:
    """The tokens of each phrase, up to a punctuation mark; a token that is nothing but a mark belongs to none.

    Args:
        pieces: The text of each token.
    """
    spans, begin = [], 0
    for i, piece in enumerate([*pieces, "。"]):
        if ends_phrase(piece):
            end = i if is_mark(piece) else i + 1
            if end > begin:
                spans.append(range(begin, end))
            begin = i + 1
    return spans


def is_mark(piece: str) -> bool:
    """Whether a token is a punctuation mark and nothing else."""
    return len(bare := piece.strip(" ")) == 1 and bare in MARKS


def ends_phrase(piece: str) -> bool:
    """Whether a token is, or ends with, a punctuation mark."""
    return is_mark(piece) or piece[-1:] in tuple(MARKS)


def bare(text: str) -> str:
    """A phrase without the marks and spaces around it."""
    return text.strip(MARKS + " ")


class KnownPhrases:
    """The phrases of training texts by their place: the first, the second, ... of its text."""

    BEST = 2  # the highest rank

    def __init__(self, texts: Iterable[str], tokenizer: Tokenizer) -> None:
        self._places: defaultdict[int, set[str]] = defaultdict(set)
        for text in set(texts):
            spelled = tokenizer.decode(tokenizer.encode(text))
            parts = [part for part in map(bare, _BETWEEN_PHRASES.split(spelled)) if part]
            for place, part in enumerate([*parts, ""]):  # "": the text could also have ended here
                self._places[place].add(part)
        self._anywhere = set().union(*self._places.values()) - {""}

    def rank(self, place: int, phrase: str) -> int:
        """2 for a phrase that is known at a place, 1 for one that is known elsewhere, 0 for any other, -1 for none."""
        if phrase in self._places[place]:
            return self.BEST
        return int(phrase in self._anywhere) if phrase else -1
