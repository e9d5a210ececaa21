"""Tokenizers: text <-> ids. A vocabulary of our own, byte-level BPE, or one of Hugging Face.

`vocab`: one token per Chinese character, word, number or sign of the training texts. Tokens are pieces of the text
itself (a word keeps the space before it), so joining them gives the text back exactly. A word or number that the
training texts do not have is spelled with their single characters; only a character never seen becomes <unk>.
`bpe`, `bpe:SIZE`: byte-level byte-pair merges (https://arxiv.org/abs/1508.07909) of the training texts: any text can be
written, and comes back exactly. `hf:NAME_OR_FOLDER`: what AutoTokenizer loads, as its `tokenizers` JSON.
Each goes into the checkpoint whole, as plain JSON: inference needs neither the texts nor the hub.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from ..common.errors import UserError
from ..common.files import expand

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_PIECE = re.compile(rf" ?\d+(?:\.\d+)*| ?[^\W\d_{_CJK}]+| ?[{_CJK}]| ?[^\s\w]|\s|.", re.DOTALL)
_WIDE = f"{_CJK}\u3000-\u303f\uff00-\uffef"
_BETWEEN_CJK = re.compile(rf"(?<=[{_WIDE}]) | (?=[{_WIDE}])")
_BPE_SIZE = 8000  # tokens, bytes included; texts with fewer repeated pairs give fewer
_UNITS = {"mm": "mm|毫米", "cm": "cm|厘米|公分", "μm": "um|μm|微米"}
_UNIT = re.compile(r"(?<=\d)\s*(?:" + "|".join(f"({forms})" for forms in _UNITS.values()) + r")(?![a-wyz])", re.I)
_TIMES = re.compile(r"(?<=\d)((?:[cmμ]m)?)\s*[x×*]\s*(?=\d)", re.I)


class Tokenizer(Protocol):
    """Text <-> ids. Special ids come from here and nowhere else; two of them may be one (GPT-2 ends and pads alike).

    unk_id: of what cannot be written, None if everything can be.
    """

    pad_id: int
    bos_id: int
    eos_id: int
    unk_id: int | None

    def __len__(self) -> int: ...
    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: Iterable[int]) -> str: ...
    def to_dict(self) -> dict[str, Any]: ...


def build_tokenizer(kind: str, texts: Sequence[str], normalize: bool) -> Tokenizer:
    """The tokenizer that `data.tokenizer` names, from the training texts where it is made of them. Raises UserError.

    normalize: what it is given is first rewritten by `normalize_text`.
    """
    name, _, argument = kind.partition(":")
    if name == "hf":
        return FastTokenizer.from_hub(argument, normalize)
    texts = [normalize_text(text) for text in texts] if normalize else texts
    return VocabTokenizer.build(texts, normalize) if name == "vocab" else \
        FastTokenizer.train(texts, int(argument or _BPE_SIZE), normalize)


def tokenizer_from_dict(data: dict[str, Any], where: str) -> Tokenizer:
    """The tokenizer of a checkpoint, of any kind. Raises UserError."""
    kind, version = data.get("type"), data.get("version")
    if kind not in ("vocab", "bpe", "hf", "biogpt") or version != 1:
        raise UserError(where, f"tokenizer {kind!r} version {version!r} is unknown",
                        "use the version of this project that wrote it")
    try:
        if kind == "biogpt":  # of Prism's text side
            from prism import BioGptTokenizer  # torch: only where it is loaded anyway

            return BioGptTokenizer.from_dict(data)
        return (VocabTokenizer if kind == "vocab" else FastTokenizer).from_dict(data)
    except ImportError as error:
        raise UserError(where, f"its tokenizer needs the package {error.name}", f"pip install {error.name}") from None
    except Exception:  # `tokenizers` raises nothing narrower
        raise UserError(where, "its tokenizer is not usable", "use another checkpoint of the run") from None


def normalize_text(text: str) -> str:
    """Full-width letters, digits and signs as half-width ones (NFKC), lengths behind a number in one spelling, `×`
    between measures: `３．５ ＣＭ*2厘米` becomes `3.5cm×2cm`. Twice is the same as once."""
    text = unicodedata.normalize("NFKC", text)
    text = _UNIT.sub(lambda match: list(_UNITS)[match.lastindex - 1], text)
    return _TIMES.sub(r"\1×", text)


class VocabTokenizer:
    """Pieces of the training texts. The special ids are 0 to 3."""

    specials = ("<pad>", "<bos>", "<eos>", "<unk>")
    pad_id, bos_id, eos_id, unk_id = range(4)

    def __init__(self, pieces: Sequence[str], normalize: bool = False) -> None:
        """pieces: the vocabulary after the special tokens, in id order."""
        self.pieces, self.normalize = list(pieces), normalize
        self._ids = {piece: i for i, piece in enumerate(self.pieces, start=len(self.specials))}

    @classmethod
    def build(cls, texts: Iterable[str], normalize: bool = False) -> VocabTokenizer:
        """Vocabulary of `texts`: their pieces and single characters, most frequent first, ties by code point."""
        counts: Counter[str] = Counter()
        for text in texts:
            pieces = _PIECE.findall(text)
            counts.update(pieces)
            # the characters inside longer pieces, once per text: with them unseen words can be spelled
            counts.update({c for piece in pieces for c in piece if len(piece) > 1})
        return cls(sorted(counts, key=lambda piece: (-counts[piece], piece)), normalize)

    def __len__(self) -> int:
        return len(self.specials) + len(self.pieces)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without begin and end token."""
        ids: list[int] = []
        for piece in _PIECE.findall(normalize_text(text) if self.normalize else text):
            whole = self._ids.get(piece)
            ids += [whole] if whole is not None else [self._ids.get(c, self.unk_id) for c in piece]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`: special tokens are left out, <unk> shows as U+FFFD."""
        first = len(self.specials)
        return "".join("\ufffd" if i == self.unk_id else self.pieces[i - first] if i >= first else "" for i in ids)

    def to_dict(self) -> dict[str, Any]:
        return {"type": "vocab", "version": 1, "pieces": self.pieces} | ({"normalize": True} if self.normalize else {})

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> VocabTokenizer:
        """What `to_dict` gave. Raises ValueError for anything else."""
        pieces = data.get("pieces")
        if not isinstance(pieces, list) or not all(isinstance(p, str) for p in pieces):
            raise ValueError("no vocabulary")
        return cls(pieces, data.get("normalize") is True)


class FastTokenizer:
    """A tokenizer of the `tokenizers` library: trained here or loaded from the hub."""

    def __init__(self, kind: str, json_text: str, special: dict[str, int | None], normalize: bool) -> None:
        """json_text: as `tokenizers` writes it. special: ids of pad, bos, eos, unk; those behind its own are ours."""
        import tokenizers

        self.kind, self.json_text, self.special, self.normalize = kind, json_text, special, normalize
        self._tokenizer = tokenizers.Tokenizer.from_str(json_text)
        self._tokenizer.encode_special_tokens = True  # `</s>` in a report is text
        self._spaces_cjk = isinstance(self._tokenizer.decoder, tokenizers.decoders.WordPiece)
        self.pad_id, self.bos_id, self.eos_id, self.unk_id = (special[name] for name in ("pad", "bos", "eos", "unk"))
        self._own = {self.pad_id, self.bos_id, self.eos_id}

    @classmethod
    def train(cls, texts: Iterable[str], size: int, normalize: bool) -> FastTokenizer:
        """Byte-level BPE of `size` tokens. The same texts, in any order, give the same one."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        made = Tokenizer(models.BPE())
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        made.train_from_iterator(texts, trainers.BpeTrainer(
            vocab_size=size - 3, min_frequency=2, show_progress=False,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
        first = made.get_vocab_size()  # behind it: no text can be encoded to them
        return cls("bpe", made.to_str(), {"pad": first, "bos": first + 1, "eos": first + 2, "unk": None}, normalize)

    @classmethod
    def from_hub(cls, name: str, normalize: bool) -> FastTokenizer:
        """What AutoTokenizer makes of a hub name or a folder; no code of theirs runs. Raises UserError."""
        try:
            from transformers import AutoTokenizer
        except ImportError:
            raise UserError("data.tokenizer", "hf: needs the package transformers",
                            "pip install 'transformers>=5.3', or use vocab or bpe") from None
        from prism.hub import ask_hub

        folder = expand(name)
        cached_only = folder.is_dir() or ask_hub(name, None) is not None  # transformers tries a dead hub for 46 s
        try:
            loaded = AutoTokenizer.from_pretrained(str(folder) if folder.is_dir() else name, trust_remote_code=False,
                                                   local_files_only=cached_only)
        except Exception as error:  # any file there may be broken in any way
            raise UserError("data.tokenizer", f"{name} cannot be loaded ({str(error).strip().splitlines()[0][:90]})",
                            "give a folder that holds a tokenizer, or see HF_ENDPOINT in the guide") from None
        if (backend := getattr(loaded, "backend_tokenizer", None)) is None:
            raise UserError("data.tokenizer", f"{name} has no tokenizer.json and none can be made of it",
                            "choose a model with a fast tokenizer")

        def first(*names: str) -> int | None:
            return next((i for n in names if (i := getattr(loaded, f"{n}_token_id", None)) is not None), None)

        if (end := first("eos", "sep")) is None:
            raise UserError("data.tokenizer", f"{name} has no end token", "choose another tokenizer")
        special = {"pad": first("pad", "eos", "sep"), "bos": first("bos", "cls", "eos", "sep"), "eos": end}
        unknown = first("unk")  # GPT-2 names its end token
        backend.no_truncation()
        backend.no_padding()
        special["unk"] = None if unknown in special.values() else unknown
        return cls("hf", backend.to_str(), special, normalize)

    def __len__(self) -> int:
        return 1 + max(*self._own, self.unk_id or 0, *self._tokenizer.get_vocab().values())

    def __reduce__(self):  # other processes of a run get it by pickle
        return tokenizer_from_dict, (self.to_dict(), "tokenizer")

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without begin and end token."""
        text = normalize_text(text) if self.normalize else text
        return self._tokenizer.encode(text.encode("utf-8", "replace").decode(), add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids` without begin, end and padding; bytes that are no UTF-8 show as U+FFFD."""
        text = self._tokenizer.decode([i for i in ids if i not in self._own], skip_special_tokens=False)
        return _BETWEEN_CJK.sub("", text) if self._spaces_cjk else text

    def to_dict(self) -> dict[str, Any]:
        return {"type": self.kind, "version": 1, "json": self.json_text, "special": self.special,
                "normalize": self.normalize}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> FastTokenizer:
        """What `to_dict` gave. Raises ValueError or what `tokenizers` raises for anything else."""
        made = cls(data["type"], data["json"], data["special"], data.get("normalize") is True)
        ids = [made.pad_id, made.bos_id, made.eos_id, *([] if made.unk_id is None else [made.unk_id])]
        if not all(type(i) is int and 0 <= i <= made._tokenizer.get_vocab_size() + 3 for i in ids):
            raise ValueError("impossible ids")
        return made
