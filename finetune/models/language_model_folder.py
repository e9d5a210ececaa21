"""The folder of a causal language model in Hugging Face's layout: found or downloaded, checked, and loaded.

A folder of the hub, of a mirror (HF_ENDPOINT) and of ModelScope look the same. Only safetensors are read, and only
architectures that the library transformers itself has: no code from a folder ever runs. Weights cannot be missing: the
library would fill the gaps with random numbers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prism import PrismWeightsError
from prism.hub import commit_of, fetch
from prism.modelscope_hub import PREFIX, fetch_from_modelscope

from ..common.errors import UserError
from ..common.files import expand, require_regular
from ..common.log import logger
from ..data.tokenizer import TOKENIZER_FILES

KEY = "model.decoder"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_OTHERS = ("generation_config.json", *TOKENIZER_FILES, "README.md", "LICENSE")
_TOKENIZERS = ("tokenizer.json", "vocab.json", "tokenizer.model")  # one of them is enough
_FIX = "download the whole model again; docs/language_model.md shows how"
_MOST_HEADER = 1 << 28  # bytes of a safetensors header; a model of 1000 layers has 1 MB
_BLOCK = 1 << 24  # bytes hashed at a time


@dataclass(frozen=True)
class LanguageModelFolder:
    """A checked folder.

    Attributes:
        path: On this disk; for a model of the hub in its cache.
        source: As the user gave it, without `hf:`; `ms:` stays.
        revision: Commit on the hub, None for a local folder.
        config: What its config.json holds.
    """

    path: Path
    source: str
    revision: str | None
    config: dict[str, Any]

    def end_ids(self) -> list[int]:
        """The end tokens that the model's own configs name, in their order."""
        ids: list[int] = []
        for config in (self.config, _read_json(self.path / "generation_config.json", missing={})):
            named = config.get("eos_token_id")
            ids += named if isinstance(named, list) else [named]
        return [i for i in dict.fromkeys(ids) if type(i) is int]

    def licence(self) -> str | None:
        """Its licence, from the head of README.md or the first line of LICENSE; None if neither says."""
        card = _read_text(self.path / "README.md")
        head = card.split("---")[1] if card.startswith("---") and card.count("---") > 1 else ""
        found = dict(re.findall(r"^(license(?:_name)?): *[\"']?([^\s\"']+)", head, re.MULTILINE))
        named = found.get("license_name") or found.get("license")
        if named:
            return named[:80]
        lines = [line.strip() for line in _read_text(self.path / "LICENSE").splitlines() if line.strip()]
        return lines[0][:80] if lines else None

    def sha256(self) -> str:
        """SHA-256 over name, type, shape and bytes of every tensor, sorted by name: the same however the weights are
        divided into files. Raises UserError for another kind of file."""
        digest = hashlib.sha256()
        for name, about, path, begin in sorted(_tensors(self.path)):
            digest.update(f"{name} {about}\n".encode())
            with open(path, "rb") as file:
                file.seek(begin[0])
                left = begin[1] - begin[0]
                while left:
                    block = file.read(min(left, _BLOCK))
                    if not block:
                        raise UserError(path, "is cut off", _FIX)
                    digest.update(block)
                    left -= len(block)
        return digest.hexdigest()


def find_language_model(source: str) -> LanguageModelFolder:
    """Find a model, on the hub if it is no folder, and check what can be checked without its weights.

    Args:
        source: Folder, hub name or hub name@revision, or the same on ModelScope with `ms:` before it.

    Raises:
        UserError: It cannot be had, or is not a causal language model that can be used here.
    """
    path, revision = expand(source), None
    if not path.is_dir():
        path, revision = _from_hub(source)
    config = _checked_config(path)
    _check_architecture(config, path)
    if not _has_one_of(path, WEIGHTS):
        raise _no_weights(path)
    if not _has_one_of(path, _TOKENIZERS):  # else the library would make an empty one
        raise UserError(path, f"has no tokenizer (none of {', '.join(_TOKENIZERS)})", _FIX)
    return LanguageModelFolder(path, source, revision, config)


def _has_one_of(folder: Path, names: Sequence[str]) -> bool:
    return any((folder / name).is_file() for name in names)


def _no_weights(folder: Path) -> UserError:
    """The error of a folder without weights of a kind that is read here."""
    others = sorted(file.name for file in folder.glob("*.bin"))
    if others:
        return UserError(folder, f"holds {others[0]} but no safetensors",
                         "convert it as docs/language_model.md shows: .bin can carry code and is not read")
    return UserError(folder, f"holds none of {', '.join(WEIGHTS)}", _FIX)


def _from_hub(source: str) -> tuple[Path, str | None]:
    """(folder in the hub's cache, commit)."""
    if source.startswith(PREFIX):
        return _from_modelscope(source), None
    name, _, revision = source.partition("@")
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name):
        raise UserError(KEY, f"{source}: no such folder ({expand(source)})",
                        "give the folder of a model or its name on the hub (inference.py: --language_model)")
    try:
        path = fetch(name, revision or None, WEIGHTS, _OTHERS)
    except PrismWeightsError as error:
        raise UserError(KEY, str(error).partition("; ")[0],
                        "give its folder (inference.py: --language_model) or set HF_ENDPOINT, see "
                        "docs/language_model.md") from None
    return path, commit_of(path)


def _from_modelscope(source: str) -> Path:
    try:
        return fetch_from_modelscope(source, None, WEIGHTS, _OTHERS)
    except PrismWeightsError as error:
        what, _, fix = str(error).partition("; ")
        raise UserError(KEY, what, fix or _FIX) from None


def _checked_config(path: Path) -> dict[str, Any]:
    if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
        raise UserError(path, "is an adapter (adapter_config.json), not a whole model",
                        "merge it into its base model and give that folder")
    config = _read_json(path / "config.json", missing=None)
    if config is None:
        raise UserError(path, "has no config.json: not a model folder of Hugging Face", _FIX)
    if config.get("quantization_config"):
        raise UserError(path, "is quantised (quantization_config)", "give the model in bf16 or fp32")
    return config


def _check_architecture(config: dict[str, Any], path: Path) -> None:
    """Raises UserError unless transformers itself has this architecture, as a causal language model."""
    transformers = _transformers()
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = config.get("model_type")
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return
    if config.get("auto_map"):
        raise UserError(path, f"model_type {kind!r} needs code from its own folder (auto_map), which is never run",
                        "choose a model that transformers has itself, such as Qwen2.5 or Qwen3")
    version = transformers.__version__
    raise UserError(path, f"model_type {kind!r} is not a causal language model of transformers {version}",
                    "choose another model, or update transformers")


def load_model(folder: LanguageModelFolder) -> nn.Module:
    """The model in the type its file has, without dropout. Raises UserError."""
    transformers = _transformers()
    config = _model_config(folder)
    try:
        with _quiet(transformers):
            model, report = transformers.AutoModelForCausalLM.from_pretrained(
                folder.path, config=config, dtype="auto", use_safetensors=True, local_files_only=True,
                trust_remote_code=False, output_loading_info=True, ignore_mismatched_sizes=True)
    except Exception as error:  # any file there may be broken in any way
        raise UserError(folder.path, f"cannot be loaded ({_reason(error)})", _FIX) from None
    lacking = sorted({*report["missing_keys"], *(str(names[0]) for names in report["mismatched_keys"])})
    if lacking:
        raise UserError(folder.path, f"{len(lacking)} weights are missing or have another shape, such as {lacking[0]}",
                        _FIX)
    return model


def empty_model(folder: LanguageModelFolder) -> nn.Module:
    """The model without weights, on torch's default device: for its names and shapes. Raises UserError."""
    transformers = _transformers()
    try:
        with _quiet(transformers):
            return transformers.AutoModelForCausalLM.from_config(_model_config(folder), trust_remote_code=False)
    except Exception as error:  # a config.json can hold anything
        raise UserError(folder.path, f"its config.json describes no model ({_reason(error)})", _FIX) from None


def new_cache(model: nn.Module) -> Any:
    """An empty key/value cache of a model."""
    from transformers import DynamicCache

    return DynamicCache(config=model.config)


def _model_config(folder: LanguageModelFolder) -> Any:
    """The library's config, with all dropout off: with it a caption loss would not be that of GradCache's first pass,
    and newer models have none."""
    transformers = _transformers()
    try:
        config = transformers.AutoConfig.from_pretrained(folder.path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # as above
        raise UserError(folder.path / "config.json", f"cannot be read ({_reason(error)})", _FIX) from None
    for name, value in config.to_dict().items():
        if ("dropout" in name or "pdrop" in name) and isinstance(value, float):
            setattr(config, name, 0.0)
    return config


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise UserError(KEY, "hf: needs the package transformers", "pip install 'transformers>=5.3'") from None
    return transformers


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """No progress bars and no warnings of the library: what matters of them is checked here."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _tensors(folder: Path) -> Iterator[tuple[str, str, Path, tuple[int, int]]]:
    """(name, type and shape, file, first and last byte there) of every tensor; read from the headers."""
    for path in _weight_files(folder):
        start, header = _header(path)
        for tensor, about in header.items():
            if tensor != "__metadata__":
                begin, end = about["data_offsets"]
                yield tensor, f"{about['dtype']} {about['shape']}", path, (start + begin, start + end)


def _weight_files(folder: Path) -> list[Path]:
    """The one file with all weights, or else those that the index names."""
    whole, index = (folder / name for name in WEIGHTS)
    if whole.is_file():
        return [whole]
    file_of_tensor = _read_json(index, missing={}).get("weight_map", {})
    names = {str(name) for name in file_of_tensor.values()}
    return [folder / Path(name).name for name in sorted(names)]


def _header(path: Path) -> tuple[int, dict[str, Any]]:
    """(where the tensors begin, the JSON before them) of a safetensors file. Raises UserError."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _MOST_HEADER:
                raise ValueError("no header")
            return 8 + length, json.loads(file.read(length))
    except OSError as error:
        raise UserError(path, f"cannot be read ({error.strerror})", _FIX) from None
    except ValueError:
        raise UserError(path, "is not a safetensors file (a Git LFS pointer, or cut off?)", _FIX) from None


def _read_json(path: Path, missing: Any) -> Any:
    """A JSON object, `missing` if there is no such file. Raises UserError for anything else."""
    if not path.is_file():
        return missing
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise UserError(path, "is not readable JSON", _FIX)
    return data


def _read_text(path: Path) -> str:
    try:
        require_regular(path)
        return path.read_text(encoding="utf-8", errors="replace")[:100_000]
    except OSError:
        return ""


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else type(error).__name__


def embedding_size(model: nn.Module) -> torch.Tensor:
    """Root mean square of the numbers that token embeddings consist of, a scalar."""
    table = model.get_input_embeddings()
    rows = torch.arange(0, table.num_embeddings, max(1, table.num_embeddings // 4096), device=table.weight.device)
    with torch.no_grad():
        return table(rows).float().square().mean().sqrt()


@torch.no_grad()
def check_model(model: nn.Module, folder: LanguageModelFolder) -> None:
    """Try what captioning relies on: that later tokens do not change earlier ones, that logits are the head's product
    with the last hidden state, and that the cache continues a text as if it had been read at once.

    Raises:
        UserError: One of these does not hold, as for BERT or for models that cap their logits.
    """
    ids = torch.tensor([[1, 2, 3], [1, 2, 4]]) % model.get_input_embeddings().num_embeddings
    try:
        embeds = model.get_input_embeddings()(ids)
        hidden = model.base_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        logits = model(inputs_embeds=embeds, use_cache=False).logits
        cache = new_cache(model)
        argument = cache_argument(model)
        model.base_model(inputs_embeds=embeds[:, :2], use_cache=True, **{argument: cache})
        last = model.base_model(inputs_embeds=embeds[:, 2:], use_cache=True, **{argument: cache}).last_hidden_state
        faults = {
            "earlier tokens see later ones: not a causal model": not _close(hidden[0, :2], hidden[1, :2], 1e-3),
            "its logits are not the product of its head and last hidden state":
                not _close(logits, model.get_output_embeddings()(hidden)),
            "its key/value cache does not continue a text": not _close(last[:, 0], hidden[:, 2]),
        }
    except Exception as error:  # an architecture with another interface
        faults = {f"it cannot be used as a decoder ({_reason(error)})": True}
    for fault, is_present in faults.items():
        if is_present:
            raise UserError(folder.path, fault, "choose another model, such as Qwen2.5 or Qwen3")
    logger.info("language model %s: %.0f M parameters, %s", folder.source,
                sum(p.numel() for p in model.parameters()) / 1e6, folder.licence() or "licence unknown")


def cache_argument(model: nn.Module) -> str:
    """The name that the model's `forward` gives its cache: transformers 5.20 renamed it."""
    import inspect

    names = inspect.signature(model.base_model.forward).parameters
    return "cache" if "cache" in names else "past_key_values"


def _close(one: torch.Tensor, other: torch.Tensor, tolerance: float = 0.05) -> bool:
    """Equal up to rounding, by default in bfloat16."""
    return bool((one - other).abs().max() <= tolerance * other.abs().max() + 1e-6)
