"""The keyword and embedding models of the REG2025 score: a Python function, or a model on this disk.

Nothing is downloaded. The challenge used scispaCy's `en_core_sci_lg` and `dmis-lab/biobert-v1.1`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..common.errors import UserError
from ..common.files import expand
from ..common.user_function import import_function, is_function_name
from .reg2025 import EmbeddingModel, KeywordModel, RegModels

_KEYWORDS, _EMBEDDING = "--reg_keywords", "--reg_embedding"
_MOST_TOKENS = 512  # of a text, as in the challenge


def load_reg_models(keywords: str | None, embedding: str | None) -> RegModels:
    """The models of the two flags; each may be None.

    Args:
        keywords: package.module:function (text -> keywords), or a spaCy pipeline: its folder or installed package.
        embedding: package.module:function (text -> vector), or an encoder of transformers: its folder, or its hub
            name if it is in the local cache.

    Raises:
        UserError: A model cannot be loaded.
    """
    return RegModels(keywords and load_keywords(keywords), embedding and load_embedding(embedding),
                     (keywords or "none", embedding or "none"))


def load_keywords(name: str) -> KeywordModel:
    """A function that lists the entities of a text. Raises UserError."""
    if is_function_name(name):
        return _checked(import_function(name, _KEYWORDS), name, _KEYWORDS, _are_texts, "a list of texts")
    spacy = _spacy()
    try:
        pipeline = spacy.load(_folder_or_name(name))
    except (OSError, ValueError, ImportError) as error:
        raise UserError(_KEYWORDS, f"{name} is no spaCy pipeline on this machine ({_first_line(error)})",
                        "give the folder of one, such as en_core_sci_lg; nothing is downloaded") from None
    return lambda text: [entity.text for entity in pipeline(text).ents]


def _checked(function: Callable[[str], Any], name: str, flag: str, is_right: Callable[[Any], bool],
             wanted: str) -> Callable[[str], Any]:
    """A function of the user that is tried at once, and whose errors are one line. Raises UserError."""
    def call(text: str) -> Any:
        try:
            answer = function(text)
        except Exception as error:  # whatever the user's function raises
            raise UserError(flag, f"{name} fails on a text of {len(text)} characters ({type(error).__name__}: {error})",
                            f"let it return {wanted} for any text") from None
        if not is_right(answer):
            raise UserError(flag, f"{name} returns {type(answer).__name__}", f"let it return {wanted} for any text")
        return answer

    call("Breast, core-needle biopsy; ductal carcinoma in situ")
    return call


def _are_texts(answer: Any) -> bool:
    return isinstance(answer, (list, tuple, set, frozenset)) and all(isinstance(keyword, str) for keyword in answer)


def _is_vector(answer: Any) -> bool:
    try:
        vector = np.asarray(answer, dtype=float)
    except (TypeError, ValueError):
        return False
    return vector.size > 1 and bool(np.isfinite(vector).all())


def _spacy() -> Any:
    try:
        import spacy
    except ImportError:
        raise UserError(_KEYWORDS, "spaCy is not installed",
                        "python -m pip install spacy, or give package.module:function") from None
    return spacy


def _folder_or_name(name: str) -> str:
    return str(expand(name)) if expand(name).is_dir() else name


def load_embedding(name: str) -> EmbeddingModel:
    """A function that embeds a text: the mean of the last hidden states of all its tokens. Raises UserError."""
    if is_function_name(name):
        return _checked(import_function(name, _EMBEDDING), name, _EMBEDDING, _is_vector, "a vector of numbers")
    try:
        import transformers
    except ImportError:
        raise UserError(_EMBEDDING, "transformers is not installed",
                        'python -m pip install ".[hf]", or give package.module:function') from None
    path = _folder_or_name(name)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        model = transformers.AutoModel.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise UserError(_EMBEDDING, f"{name} is no encoder on this machine ({_first_line(error)})",
                        "give the folder of one, such as biobert-v1.1; nothing is downloaded") from None
    return _embedder(tokenizer, model.eval())


def _embedder(tokenizer: Any, model: Any) -> EmbeddingModel:
    import torch

    @torch.no_grad()
    def embed(text: str) -> list[float]:
        inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=_MOST_TOKENS)
        return model(**inputs).last_hidden_state[0].mean(0).float().tolist()

    return embed


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
