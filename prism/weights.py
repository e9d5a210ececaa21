"""From a name or a path to a frozen model with checked weights: `load_prism`, and what `Prism.from_pretrained` shares.

Every source yields a mapping of names to tensors, which goes through one check (`complete_state`) and is loaded
strictly. Random weights are used only where they are asked for by name.
"""

import logging
import math
import re
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .config import BioGptConfig, PerceiverConfig, PrismConfig
from .errors import PrismWeightsError
from .files import ENCODER, SUFFIXES, find_weights, read_config, read_weights
from .hub import commit_of, fetch, fetch_vocabulary
from .modelscope_hub import PREFIX, fetch_from_modelscope
from .slide_encoder import PrismSlideEncoder, fingerprint
from .tokenizer import VOCABULARY_FILES, BioGptTokenizer, find_tokenizer, letters_tokenizer

# Random models: the published architecture, and a small one for the demo and the tests, with the widths of the
# published encoder, so that every default fits.
RANDOM = {
    "random": PrismConfig(),
    "random-tiny": PrismConfig(
        PerceiverConfig(latent_seq=32, perceiver_depth=1, transformer_depth=1),
        BioGptConfig(vocab_size=256, hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=128),
        dim_latents=64),
}
SEED = 0
_VOCABULARY = (*VOCABULARY_FILES, *(f"biogpt/{name}" for name in VOCABULARY_FILES))  # where `find_tokenizer` looks
_FIRST_TEMPERATURE = math.log(1 / 0.07)  # as CLIP starts it (https://arxiv.org/abs/2103.00020)
Model = TypeVar("Model", bound=PrismSlideEncoder)

_log = logging.getLogger(__name__)


def load_prism(weights: str | Path, revision: str | None = None) -> PrismSlideEncoder:
    """Load the slide encoder: frozen, on CPU, float32, with `source`, `revision` and `sha256` set.

    Args:
        weights: `random` (published architecture) or `random-tiny`, both seeded and the same every time; or a local
            folder (`config.json`, `model.safetensors` or `pytorch_model.bin`) or file; or a hub id `owner/name`; or
            `ms:owner/name` on ModelScope.
            A local path goes before a hub id of the same name. Shared tensors may be repeated under every name or
            be there once; the text side of a full checkpoint is not read.
        revision: Branch, tag or commit on the hub; of no meaning for other sources.

    Raises:
        PrismWeightsError: Nothing there, no access, an unreadable file, or weights of another architecture.
    """
    source = str(weights)
    if source in RANDOM:
        encoder = empty_model(PrismSlideEncoder, RANDOM[source].perceiver_config)
        load_state(encoder, random_state(encoder), source, None)
    else:
        path, commit = locate(source, revision)
        encoder = empty_model(PrismSlideEncoder, read_config(path.parent))
        state, total = read_weights(path, ENCODER)
        if not state:
            raise PrismWeightsError(f"{path}: none of its {total} keys starts with '{ENCODER}'; not a Prism checkpoint")
        load_state(encoder, complete_state(encoder, state, str(path)), source, commit)
    _log.info("Prism slide encoder from %s, sha256 %s", source, encoder.sha256)
    return encoder.freeze()


def load_tokenizer(weights: str | Path, revision: str | None = None) -> BioGptTokenizer | None:
    """The tokenizer that `Prism.from_pretrained` gives its model, without the model. Raises PrismWeightsError."""
    if str(weights) in RANDOM:
        return letters_tokenizer()
    return tokenizer_beside(*locate(str(weights), revision))


def tokenizer_beside(path: Path, commit: str | None) -> BioGptTokenizer | None:
    """The tokenizer in the folder of a file of weights, else of microsoft/biogpt; None if neither can be had.

    Args:
        commit: Of the weights on the hub; None = they are local, and the hub is not asked.
    """
    tokenizer = find_tokenizer(path.parent)
    if tokenizer is not None:
        return tokenizer
    vocabulary = fetch_vocabulary(online=commit is not None)
    return None if vocabulary is None else find_tokenizer(vocabulary)


def locate(source: str, revision: str | None) -> tuple[Path, str | None]:
    """The file of weights, and the commit if it came from the hub. Raises PrismWeightsError."""
    path = Path(source).expanduser()
    if path.exists():
        return find_weights(path), None
    if source.startswith(PREFIX):
        return find_weights(fetch_from_modelscope(source, revision, others=_VOCABULARY)), None
    if not is_hub_id(source):
        raise PrismWeightsError(
            f"{source}: no such file or folder ({path.absolute()}); give a local folder or file, a hub id owner/name, "
            "ms:owner/name on ModelScope or, for a demo, 'random-tiny'"
        )
    folder = fetch(source, revision)
    return find_weights(folder), commit_of(folder)


def is_hub_id(source: str) -> bool:
    """owner/name; what looks like a local path never is one."""
    looks_local = Path(source).is_absolute() or source.startswith((".", "~", "/")) or source.lower().endswith(SUFFIXES)
    return not looks_local and re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None


def empty_model(kind: type[Model], config: Any) -> Model:
    """A model without memory for its weights, to be filled by `load_state`."""
    with torch.device("meta"):
        return kind(config)


def load_state(model: PrismSlideEncoder, state: dict[str, Tensor], source: str, commit: str | None) -> None:
    """Give an empty model its tensors, its origin and the fingerprint of its slide encoder."""
    # assign: the empty model is on the meta device; its parameters become these tensors. Strict by default.
    model.load_state_dict(state, assign=True)
    model.source, model.revision = source, commit
    model.sha256 = fingerprint(model, ENCODER)


def random_state(model: nn.Module) -> dict[str, Tensor]:
    """Seeded weights: norms 1 and 0, biases 0, latents N(0, 0.02), matrices N(0, 1 / fan_in); keeps unit variance.

    The global random state is neither used nor changed.
    """
    generator = torch.Generator().manual_seed(SEED)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    state = {}
    for first, names in _shared_names(model).items():
        tensor = _random_tensor(first, shapes[first], generator)
        state.update(dict.fromkeys(names, tensor))
    return state


def _random_tensor(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    if name.endswith("norm.weight"):
        return torch.ones(shape)
    if name.endswith("bias"):
        return torch.zeros(shape)
    if name == "temperature":
        return torch.tensor(_FIRST_TEMPERATURE)
    std = 0.02 if name.endswith("latents") else shape[-1] ** -0.5
    return torch.empty(shape).normal_(0, std, generator=generator)


def complete_state(model: nn.Module, given: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """The full state dict of `model`: `given`, checked, in float32 and under every name of a shared tensor.

    Args:
        given: Emptied on the way, so that not all tensors are in memory twice (4 GB).
        where: The file, for messages.

    Raises:
        PrismWeightsError: Missing or unknown names, other shapes, no finite floats, shared weights that differ.
    """
    _check_names_and_shapes(model, given, where)
    state: dict[str, Tensor] = {}
    for names in _shared_names(model).values():
        present = [name for name in names if name in given]
        tensor = _checked_tensor(given, present, where)
        for name in present:
            del given[name]
        state.update(dict.fromkeys(names, tensor))
    return state


def _shared_names(model: nn.Module) -> dict[str, list[str]]:
    """First name of every tensor -> all names it has in the state dict."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return {names[0]: names for names in groups.values()}


def _check_names_and_shapes(model: nn.Module, given: dict[str, Tensor], where: str) -> None:
    wanted = dict(model.named_parameters(remove_duplicate=False))
    missing = [first for first, names in _shared_names(model).items() if given.keys().isdisjoint(names)]
    unexpected = [name for name in given if name not in wanted]
    wrong = _wrong_shapes(wanted, given)
    if missing or unexpected or wrong:
        raise PrismWeightsError(
            f"{where}: not the weights of this architecture: {_first_three('missing', missing)}; "
            f"{_first_three('unexpected', unexpected)}; {_first_three('wrong shape', wrong)}; "
            "check perceiver_config in the config.json beside it"
        )


def _wrong_shapes(wanted: dict[str, nn.Parameter], given: dict[str, Tensor]) -> list[str]:
    wrong = []
    for name, parameter in wanted.items():
        if name in given and given[name].shape != parameter.shape:
            wrong.append(f"{name} {tuple(given[name].shape)} instead of {tuple(parameter.shape)}")
    return wrong


def _checked_tensor(given: dict[str, Tensor], names: list[str], where: str) -> Tensor:
    """One shared tensor: the same under all its names, floating, finite; a float32 copy free of the file."""
    tensor = given[names[0]]
    for alias in names[1:]:
        if not torch.equal(tensor, given[alias]):
            raise PrismWeightsError(f"{where}: {names[0]} and {alias} share weights in Prism but differ in the file")
    if not tensor.is_floating_point():
        raise PrismWeightsError(f"{where}: {names[0]} is {tensor.dtype}; need floating-point weights")
    copy = tensor.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    if not copy.isfinite().all():
        raise PrismWeightsError(f"{where}: non-finite values in {names[0]}; the file is damaged")
    return copy


def _first_three(what: str, items: list[str]) -> str:
    if not items:
        return f"0 {what}"
    return f"{len(items)} {what} ({', '.join(items[:3])}{', ...' if len(items) > 3 else ''})"
