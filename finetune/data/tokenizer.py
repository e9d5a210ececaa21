"""Tokenizers: text <-> token ids. Our own vocabulary, byte-level BPE, or a Hugging Face tokenizer.

`vocab`: one token per Chinese character, word, number or sign of the training texts. Tokens are pieces of the text
itself (a word keeps the space before it), so joining them gives the text back exactly. A word or number that is not in
the training texts is spelled with their single characters; only a character never seen becomes <unk>.
`bpe`, `bpe:SIZE`: byte-level byte-pair merges (https://arxiv.org/abs/1508.07909) of the training texts: any text can be
encoded, and is decoded exactly. `hf:NAME_OR_FOLDER`, `ms:NAME`: what AutoTokenizer loads, as its `tokenizers` JSON.
Each is fully stored in the checkpoint, as plain JSON: inference needs neither the texts nor the hub.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..common.errors import UserError
from ..common.files import expand
from .tokenizer_parts import harmless

# What a folder of a Hugging Face tokenizer may hold.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
                   "vocab.json", "merges.txt", "tokenizer.model")
_VERSION = 1
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_PIECE = re.compile(rf" ?\d+(?:\.\d+)*| ?[^\W\d_{_CJK}]+| ?[{_CJK}]| ?[^\s\w]|\s|.", re.DOTALL)
_WIDE = f"{_CJK}\u3000-\u303f\uff00-\uffef"
_BETWEEN_CJK = re.compile(rf"(?<=[{_WIDE}]) | (?=[{_WIDE}])")
_BPE_SIZE = 8000  # tokens, bytes included; texts with fewer repeated pairs give fewer
_UNITS = {"mm": "mm|毫米", "cm": "cm|厘米|公分", "μm": "um|μm|微米"}
_UNIT = re.compile(r"(?<=\d)\s*(?:" + "|".join(f"({forms})" for forms in _UNITS.values()) + r")(?![a-wyz])", re.I)
# Turns and roles of a chat: in a base model the embeddings of these tokens are hardly trained, in a chat model they
# mean the end of an answer. `<|endoftext|>`, `</s>` and their kin end a document in both.
_CHAT = re.compile(r"im_(start|end|sep)|turn|role|eot|eom|inst\b|<\|end\|>|user|assistant|system|observation|call|tool",
                   re.I)
_DOCUMENT_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
_TIMES = re.compile(r"(?<=\d)((?:[cmμ]m)?)\s*[x×*]\s*(?=\d)", re.I)


class Tokenizer(Protocol):
    """Text <-> token ids. All special ids come from here; some may be equal (GPT-2 has one for all).

    Attributes:
        pad_id, bos_id, eos_id: Ids of the padding, begin and end token.
        unk_id: Id of the unknown token; None if any text can be encoded.
    """

    pad_id: int
    bos_id: int
    eos_id: int
    unk_id: int | None

    def __len__(self) -> int: ...

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without begin and end token."""

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, without special tokens."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, from which `tokenizer_from_dict` restores the tokenizer."""


def build_tokenizer(kind: str, texts: Sequence[str], normalize: bool) -> Tokenizer:
    """Load or train a tokenizer.

    Args:
        kind: Value of `data.tokenizer`: vocab, bpe, bpe:SIZE, hf:NAME_OR_FOLDER or ms:NAME.
        texts: The training texts; ignored by hf and ms.
        normalize: Rewrite every text with `normalize_text` first.

    Raises:
        UserError: It cannot be loaded.
    """
    name, _, argument = kind.partition(":")
    if name == "hf":
        return FastTokenizer.from_hub(argument, normalize)
    if name == "ms":
        return FastTokenizer.from_hub(str(_fetch_from_modelscope(kind)), normalize)
    if normalize:
        texts = [normalize_text(text) for text in texts]
    if name == "vocab":
        return VocabTokenizer.build(texts, normalize)
    return FastTokenizer.train(texts, int(argument or _BPE_SIZE), normalize)


def extend_tokenizer(tokenizer: Tokenizer, texts: Sequence[str]) -> Tokenizer:
    """A tokenizer with the same ids that also has what `texts` have and it lacks, under further ids.

    Itself if it lacks nothing, and if it is of byte-level merges or of a pretrained model: these encode any text.
    """
    if not isinstance(tokenizer, VocabTokenizer):
        return tokenizer
    if tokenizer.normalize:
        texts = [normalize_text(text) for text in texts]
    known = set(tokenizer.pieces)
    new = [piece for piece in VocabTokenizer.build(texts).pieces if piece not in known]
    return VocabTokenizer([*tokenizer.pieces, *new], tokenizer.normalize) if new else tokenizer


def tokenizer_from_dict(data: dict[str, Any], where: str) -> Tokenizer:
    """Restore a tokenizer of any kind.

    Args:
        data: What its `to_dict` gave.
        where: The checkpoint, for messages.

    Raises:
        UserError: It is damaged, of an unknown kind or version, or needs a package that is not installed.
    """
    kind, version = data.get("type"), data.get("version")
    if kind not in ("vocab", "bpe", "hf", "biogpt") or version != _VERSION:
        raise UserError(where, f"tokenizer {kind!r} version {version!r} is unknown",
                        "use the version of this project that wrote it")
    # a checkpoint may come from anywhere: any fault in it is one line for the user
    try:
        if kind == "vocab":
            return VocabTokenizer.from_dict(data)
        if kind == "biogpt":  # of Prism's text decoder
            from prism import BioGptTokenizer  # imports torch: only where it is loaded anyway

            return BioGptTokenizer.from_dict(data)
        return FastTokenizer.from_dict(data)
    except ImportError as error:
        raise UserError(where, f"its tokenizer needs the package {error.name}", f"pip install {error.name}") from None
    except Exception:  # `tokenizers` raises nothing narrower
        raise UserError(where, "its tokenizer is not usable", "use another checkpoint of the run") from None


def normalize_text(text: str) -> str:
    """Write letters, digits and signs half-width (NFKC), units of length in one spelling, `×` between measures.

    `３．５ ＣＭ*2厘米` becomes `3.5cm×2cm`. Normalizing twice is the same as once.
    """
    text = unicodedata.normalize("NFKC", text)
    text = _UNIT.sub(lambda match: list(_UNITS)[match.lastindex - 1], text)
    return _TIMES.sub(r"\1×", text)


class VocabTokenizer:
    """A vocabulary of pieces of the training texts. The special ids are 0 to 3."""

    specials = ("<pad>", "<bos>", "<eos>", "<unk>")
    pad_id, bos_id, eos_id, unk_id = range(4)

    def __init__(self, pieces: Sequence[str], normalize: bool = False) -> None:
        """
        Args:
            pieces: The vocabulary after the special tokens, in id order.
            normalize: Rewrite every text with `normalize_text` first.
        """
        self.pieces, self.normalize = list(pieces), normalize
        self._ids = {piece: i for i, piece in enumerate(self.pieces, start=len(self.specials))}

    @classmethod
    def build(cls, texts: Iterable[str], normalize: bool = False) -> VocabTokenizer:
        """Vocabulary of `texts`: their pieces and single characters, most frequent first, ties by code point."""
        counts: Counter[str] = Counter()
        for text in texts:
            pieces = _PIECE.findall(text)
            counts.update(pieces)
            # the characters of longer pieces, once per text: unseen words can be spelled with them
            counts.update({character for piece in pieces if len(piece) > 1 for character in piece})
        return cls(sorted(counts, key=lambda piece: (-counts[piece], piece)), normalize)

    def __len__(self) -> int:
        return len(self.specials) + len(self.pieces)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without begin and end token."""
        if self.normalize:
            text = normalize_text(text)
        ids: list[int] = []
        for piece in _PIECE.findall(text):
            if piece in self._ids:
                ids.append(self._ids[piece])
            else:
                ids += [self._ids.get(character, self.unk_id) for character in piece]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids` without special tokens; <unk> becomes U+FFFD."""
        num_specials = len(self.specials)
        text = ""
        for i in ids:
            if i == self.unk_id:
                text += "\ufffd"
            elif i >= num_specials:
                text += self.pieces[i - num_specials]
        return text

    def to_dict(self) -> dict[str, Any]:
        """The tokenizer as plain JSON."""
        data = {"type": "vocab", "version": _VERSION, "pieces": self.pieces}
        if self.normalize:  # not written otherwise: checkpoints stay equal to those from before there was this option
            data["normalize"] = True
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> VocabTokenizer:
        """The tokenizer that `to_dict` wrote. Raises ValueError for anything else."""
        pieces = data.get("pieces")
        if not isinstance(pieces, list) or not all(isinstance(p, str) for p in pieces):
            raise ValueError("no vocabulary")
        return cls(pieces, data.get("normalize") is True)


class _LibraryErrors:
    """Raises UserError for what `tokenizers` raises: plain exceptions, and panics, which no `except` can name."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if kind is Exception or (kind is not None and kind.__name__ == "PanicException"):
            raise UserError("tokenizer", f"cannot {self._what} a text ({error})"[:200],
                            "use another tokenizer or checkpoint") from None


class FastTokenizer:
    """A tokenizer of the `tokenizers` library: trained here or loaded from the hub."""

    def __init__(self, kind: str, json_text: str, special: dict[str, int | None], normalize: bool) -> None:
        """
        Args:
            kind: bpe or hf.
            json_text: As `tokenizers` writes it.
            special: Ids of pad, bos, eos and unk; ids beyond the vocabulary are ours and stand for no text.
            normalize: Rewrite every text with `normalize_text` first.

        Raises:
            ValueError: It has parts that are refused.
        """
        import tokenizers

        self.kind, self.json_text, self.special, self.normalize = kind, json_text, special, normalize
        self._tokenizer = tokenizers.Tokenizer.from_str(harmless(json_text))
        self._tokenizer.encode_special_tokens = True  # `</s>` in a report is text
        self._spaces_cjk = isinstance(self._tokenizer.decoder, tokenizers.decoders.WordPiece)
        self.pad_id, self.bos_id, self.eos_id, self.unk_id = (special[name] for name in ("pad", "bos", "eos", "unk"))
        self._not_text = {self.pad_id, self.bos_id, self.eos_id}

    @classmethod
    def train(cls, texts: Iterable[str], size: int, normalize: bool) -> FastTokenizer:
        """Byte-level BPE of `size` tokens. The same texts, in any order, give the same one."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        bpe.train_from_iterator(texts, trainers.BpeTrainer(
            vocab_size=size - 3, min_frequency=2, show_progress=False,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
        pad = bpe.get_vocab_size()  # special ids beyond the vocabulary: no text can be encoded to them
        return cls("bpe", bpe.to_str(), {"pad": pad, "bos": pad + 1, "eos": pad + 2, "unk": None}, normalize)

    @classmethod
    def from_hub(cls, name: str, normalize: bool) -> FastTokenizer:
        """The tokenizer that AutoTokenizer loads from a hub name or folder. Raises UserError."""
        loaded = _load_from_hub(name, "data.tokenizer")
        end = _first_id(loaded, "eos", "sep")
        if end is None:
            raise UserError("data.tokenizer", f"{name} has no end token", "choose another tokenizer")
        return cls._of_loaded(loaded, end, normalize)

    @classmethod
    def of_language_model(cls, folder: Path, normalize: bool, end_ids: Sequence[int]) -> FastTokenizer:
        """The tokenizer in the folder of a language model, with a document's end as end token, never a chat marker.

        Args:
            end_ids: End tokens that the model's own configs name.

        Raises:
            UserError: It cannot be loaded, or has chat markers as its only end tokens.
        """
        loaded = _load_from_hub(str(folder), "model.decoder")
        vocabulary = loaded.get_vocab()
        named = [_first_id(loaded, "eos"), *end_ids, _first_id(loaded, "pad"), _first_id(loaded, "bos"),
                 *(vocabulary.get(text) for text in _DOCUMENT_ENDS)]
        for token_id in named:
            text = None if token_id is None else loaded.convert_ids_to_tokens(token_id)
            if text and not _CHAT.search(text):
                return cls._of_loaded(loaded, token_id, normalize)
        raise UserError("model.decoder", f"the tokenizer in {folder} has only chat markers to end a text with",
                        "choose the base model (without Instruct or Chat in its name)")

    @classmethod
    def _of_loaded(cls, loaded: Any, end: int, normalize: bool) -> FastTokenizer:
        """Of what AutoTokenizer has loaded. A missing begin or padding token is the end token."""
        special = {"pad": _first_id(loaded, "pad"), "bos": _first_id(loaded, "bos", "cls"), "eos": end}
        special = {name: end if token_id is None else token_id for name, token_id in special.items()}
        unknown = _first_id(loaded, "unk")
        special["unk"] = None if unknown in special.values() else unknown  # GPT-2 gives its end token
        backend = loaded.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        try:
            return cls("hf", backend.to_str(), special, normalize)
        except ValueError as error:  # what is trained must be loaded again
            raise UserError("tokenizer", f"{error}, which no checkpoint may have", "choose another one") from None

    def __len__(self) -> int:
        return 1 + max(*self._not_text, self.unk_id or 0, *self._tokenizer.get_vocab().values())

    @property
    def special_ids(self) -> set[int]:
        """Ids of all special tokens of the library's tokenizer: roles and turns of chats among them."""
        added = self._tokenizer.get_added_tokens_decoder()
        return {token_id for token_id, token in added.items() if token.special} | self._not_text

    def __reduce__(self) -> tuple[Any, ...]:  # other processes of a run get it by pickle
        return tokenizer_from_dict, (self.to_dict(), "tokenizer")

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without begin and end token."""
        text = normalize_text(text) if self.normalize else text
        text = text.encode("utf-8", "replace").decode()
        with _LibraryErrors("encode"):
            return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids` without begin, end and padding; bytes that are not UTF-8 become U+FFFD."""
        with _LibraryErrors("decode"):
            text = self._tokenizer.decode([i for i in ids if i not in self._not_text], skip_special_tokens=False)
        return _BETWEEN_CJK.sub("", text) if self._spaces_cjk else text

    def to_dict(self) -> dict[str, Any]:
        """The tokenizer as plain JSON."""
        return {"type": self.kind, "version": _VERSION, "json": self.json_text, "special": self.special,
                "normalize": self.normalize}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> FastTokenizer:
        """The tokenizer that `to_dict` wrote. Raises ValueError or what `tokenizers` raises for anything else."""
        tokenizer = cls(data["type"], data["json"], data["special"], data.get("normalize") is True)
        ids = [tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id]
        if tokenizer.unk_id is not None:
            ids.append(tokenizer.unk_id)
        largest = tokenizer._tokenizer.get_vocab_size() + 3  # with three special ids of ours
        if not all(type(i) is int and 0 <= i <= largest for i in ids):
            raise ValueError("impossible ids")
        return tokenizer


def _load_from_hub(name: str, key: str) -> Any:
    """What AutoTokenizer makes of a hub name or a folder; no code from there runs. Raises UserError naming `key`."""
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise UserError(key, "hf: needs the package transformers",
                        "pip install 'transformers>=5.3', or use vocab or bpe") from None
    from prism.hub import ask_hub

    is_folder = expand(name).is_dir()
    cached_only = is_folder or ask_hub(name, None) is not None  # transformers tries a hub that is down for 46 s
    try:
        loaded = AutoTokenizer.from_pretrained(str(expand(name)) if is_folder else name, trust_remote_code=False,
                                               local_files_only=cached_only)
    except Exception as error:  # any file there may be broken in any way
        reason = str(error).strip().splitlines()[0][:90]
        raise UserError(key, f"{name} cannot be loaded ({reason})",
                        "give a folder that holds a tokenizer, or see HF_ENDPOINT in the guide") from None
    if getattr(loaded, "backend_tokenizer", None) is None:
        raise UserError(key, f"{name} has no tokenizer.json and none can be made of it",
                        "choose a model with a fast tokenizer")
    return loaded


def _fetch_from_modelscope(source: str) -> Path:
    """The folder of a tokenizer on ModelScope. Raises UserError."""
    from prism import PrismWeightsError  # torch: only where it is asked for
    from prism.modelscope_hub import fetch_from_modelscope

    try:
        return fetch_from_modelscope(source, None, (), TOKENIZER_FILES)
    except PrismWeightsError as error:
        what, _, fix = str(error).partition("; ")
        raise UserError("data.tokenizer", what, fix or "give the folder of a tokenizer") from None


def _first_id(tokenizer: Any, *names: str) -> int | None:
    """The id of the first of these special tokens that a Hugging Face tokenizer has."""
    for name in names:
        token_id = getattr(tokenizer, f"{name}_token_id", None)
        if token_id is not None:
            return token_id
    return None
