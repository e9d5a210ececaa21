"""BioGPT's tokenizer: Moses words (sacremoses), then byte-pair merges (https://arxiv.org/abs/1508.07909)."""

import itertools
import json
import string
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from .errors import PrismWeightsError

VOCABULARY_FILES = ("vocab.json", "merges.txt")
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
_END = "</w>"  # of a word: the mark on its last piece


class BioGptTokenizer:
    """Text <-> ids as in `transformers.BioGptTokenizer`, except that `</s>` in a text is text and no end token.

    Raises:
        ValueError: A special token is missing, a merge is not a pair, an id is a duplicate or not an integer
            of 0 or more.
    """

    def __init__(self, vocabulary: Mapping[str, int], merges: Iterable[Sequence[str]]) -> None:
        """vocabulary: piece -> id. merges: pairs of pieces, in the order in which they are joined."""
        self.vocabulary = dict(vocabulary)
        _check_vocabulary(self.vocabulary)
        self.merges = [(first, second) for first, second in merges]
        self.pieces = {number: piece for piece, number in self.vocabulary.items()}
        self.pad_id, self.eos_id, self.unk_id = (self.vocabulary[token] for token in SPECIALS[1:])
        self.bos_id = self.eos_id  # BioGPT begins a text with its end token
        self._rank = {pair: rank for rank, pair in enumerate(self.merges)}
        self._ids_of_word: dict[str, list[int]] = {}

    @classmethod
    def from_folder(cls, folder: Path) -> "BioGptTokenizer":
        """From `vocab.json` and `merges.txt`. Raises PrismWeightsError if they are not what their names say."""
        vocabulary, merges = (folder / name for name in VOCABULARY_FILES)
        try:
            lines = [line.split()[:2] for line in merges.read_text(encoding="utf-8").splitlines() if line.strip()]
            return cls(json.loads(vocabulary.read_text(encoding="utf-8")), lines)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise PrismWeightsError(f"{vocabulary}: not a BioGPT vocabulary with merges.txt beside it "
                                    f"({error})") from None

    def save(self, folder: Path) -> None:
        """Write the two files as `transformers` reads them."""
        (folder / VOCABULARY_FILES[0]).write_text(json.dumps(self.vocabulary, ensure_ascii=False), encoding="utf-8")
        merges = "".join(f"{first} {second}\n" for first, second in self.merges)
        (folder / VOCABULARY_FILES[1]).write_text(merges, encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for a checkpoint."""
        return {"type": "biogpt", "version": 1, "vocabulary": self.vocabulary,
                "merges": [f"{first} {second}" for first, second in self.merges]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "BioGptTokenizer":
        """What `to_dict` gave. Raises ValueError, TypeError or KeyError for anything else."""
        vocabulary, merges = data["vocabulary"], [pair.split(" ") for pair in data["merges"]]
        if data["version"] != 1:
            raise ValueError("not a BioGPT tokenizer of version 1")
        return cls(vocabulary, merges)

    def __len__(self) -> int:
        return max(self.pieces) + 1

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without begin and end token."""
        words = self._moses[0].tokenize(text, aggressive_dash_splits=True, return_str=False, escape=True)
        return [number for word in words for number in self._encode_word(word)]

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Text of `ids`."""
        pieces = [self.pieces.get(i, SPECIALS[3]) for i in ids]
        if skip_special_tokens:
            pieces = [p for p in pieces if p not in SPECIALS]
        return self._moses[1].detokenize("".join(pieces).replace(_END, " ").split())

    def _encode_word(self, word: str) -> list[int]:
        """Ids of one word: its letters, joined pair by pair, always the pair of lowest rank first."""
        if word in self._ids_of_word:
            return self._ids_of_word[word]
        pieces = [*word[:-1], word[-1] + _END]
        while len(pieces) > 1:
            best = min(itertools.pairwise(pieces), key=lambda pair: self._rank.get(pair, len(self._rank)))
            if best not in self._rank:
                break
            pieces = _join(pieces, best)
        ids = [self.vocabulary.get(piece, self.unk_id) for piece in pieces]
        self._ids_of_word[word] = ids
        return ids

    @cached_property
    def _moses(self) -> tuple[Any, Any]:
        try:
            from sacremoses import MosesDetokenizer, MosesTokenizer
        except ImportError:
            raise ValueError("BioGPT's tokenizer needs sacremoses; pip install sacremoses") from None
        return MosesTokenizer(lang="en"), MosesDetokenizer(lang="en")

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_moses"}


def _check_vocabulary(vocabulary: Mapping[str, int]) -> None:
    """Raises ValueError as `BioGptTokenizer`."""
    if any(type(number) is not int or number < 0 for number in vocabulary.values()):
        raise ValueError("an id of the vocabulary is not an integer of 0 or more")
    for token in SPECIALS:
        if token not in vocabulary:
            raise ValueError(f"the vocabulary has no {token}")
    if len(set(vocabulary.values())) != len(vocabulary):
        raise ValueError("the vocabulary has a duplicate id")


def _join(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    """The pieces with every occurrence of a pair of neighbours made one piece."""
    joined: list[str] = []
    for piece in pieces:
        if joined and (joined[-1], piece) == pair:
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


def letters_tokenizer() -> BioGptTokenizer:
    """For random models, which come without a vocabulary: every word is spelled in the letters of ASCII."""
    letters = string.punctuation + string.digits + string.ascii_letters
    pieces = [*SPECIALS, *letters, *(letter + _END for letter in letters)]
    return BioGptTokenizer({piece: number for number, piece in enumerate(pieces)}, [])


def find_tokenizer(folder: Path) -> BioGptTokenizer | None:
    """From the files beside the weights, or in `biogpt` there; None if there are none."""
    for place in (folder, folder / "biogpt"):
        if all((place / name).is_file() for name in VOCABULARY_FILES):
            return BioGptTokenizer.from_folder(place)
    return None
