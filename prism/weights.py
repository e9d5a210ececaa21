"""From a name or a path to a frozen model with checked weights: the slide encoder (`load_prism`) or all of Prism.

Every source yields a mapping of names to tensors, which goes through one check (`_complete`) and is loaded strictly.
Random weights are used only where they are asked for by name.
"""

import logging
import math
import re
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .biogpt import BioGptConfig
from .config import PrismConfig
from .errors import PrismWeightsError
from .files import ENCODER, SUFFIXES, find_weights, read_config, read_weights, read_whole_config
from .hub import commit_of, fetch, fetch_vocabulary
from .perceiver import PerceiverConfig
from .prism import Prism, PrismSlideEncoder, fingerprint
from .tokenizer import BioGptTokenizer, find_tokenizer, letters_tokenizer

# Small, with the widths of the published encoder, so that every default fits: for the demo and the tests.
RANDOM_TINY = PrismConfig(
    PerceiverConfig(latent_seq=32, perceiver_depth=1, transformer_depth=1),
    BioGptConfig(vocab_size=256, hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=128),
    dim_latents=64)
RANDOM = ("random", "random-tiny")
SEED = 0
Model = TypeVar("Model", bound=PrismSlideEncoder)

_log = logging.getLogger(__name__)


def load_prism(weights: str | Path, revision: str | None = None) -> PrismSlideEncoder:
    """Load the slide encoder: frozen, on CPU, float32, with `source`, `revision` and `sha256` set.

    Args:
        weights: `random` (published architecture) or `random-tiny`, both seeded and the same every time; or a local
            folder (`config.json`, `model.safetensors` or `pytorch_model.bin`) or file; or a hub id `owner/name`.
            A local path goes before a hub id of the same name. Shared tensors may be repeated under every name or
            stand once; the text side of a full checkpoint is not read.
        revision: branch, tag or commit on the hub; of no meaning for other sources.

    Raises:
        PrismWeightsError: nothing there, no access, an unreadable file, or weights of another architecture.
    """
    source = str(weights)
    if source in RANDOM:
        config = (RANDOM_TINY if source == "random-tiny" else PrismConfig()).perceiver_config
        encoder = _empty(PrismSlideEncoder, config)
        return _finish(encoder, _random_state(encoder), source, None)
    path, commit = _locate(source, revision)
    encoder = _empty(PrismSlideEncoder, read_config(path.parent))
    state, total = read_weights(path, ENCODER)
    if not state:
        raise PrismWeightsError(f"{path}: none of its {total} keys starts with '{ENCODER}'; not a Prism checkpoint")
    return _finish(encoder, _complete(encoder, state, str(path)), source, commit)


def load_whole_prism(weights: str | Path, revision: str | None = None) -> Prism:
    """Load all of Prism, as `load_prism` does its encoder, and its tokenizer.

    The tokenizer is read from `vocab.json` and `merges.txt` beside the weights or in a folder `biogpt` there, and for
    a hub id else from microsoft/biogpt. Random models have one that spells words with single letters.
    Raises PrismWeightsError also for a file of the slide encoder alone.
    """
    source = str(weights)
    if source in RANDOM:
        prism = _empty(Prism, RANDOM_TINY if source == "random-tiny" else PrismConfig())
        prism.tokenizer = letters_tokenizer()
        return _finish(prism, _random_state(prism), source, None)
    path, commit = _locate(source, revision)
    prism = _empty(Prism, read_whole_config(path.parent))
    state, total = read_weights(path, "")
    if state and all(name.startswith(ENCODER) for name in state):
        raise PrismWeightsError(f"{path}: its {total} keys are of the slide encoder alone; give the whole of Prism")
    prism.tokenizer = _tokenizer_beside(path, commit)
    if prism.tokenizer and len(prism.tokenizer) > prism.prism_config.biogpt_config.vocab_size:
        raise PrismWeightsError(f"{path.parent}: its vocabulary has {len(prism.tokenizer)} words, the weights have "
                                f"{prism.prism_config.biogpt_config.vocab_size}")
    special = prism.prism_config.biogpt_config.pad_token_id, prism.prism_config.biogpt_config.eos_token_id
    if prism.tokenizer and (prism.tokenizer.pad_id, prism.tokenizer.eos_id) != special:
        raise PrismWeightsError(f"{path.parent}: <pad> and </s> of its vocabulary are {prism.tokenizer.pad_id} and "
                                f"{prism.tokenizer.eos_id}, in its config.json {special[0]} and {special[1]}; use the "
                                "vocab.json of microsoft/biogpt")
    return _finish(prism, _complete(prism, state, str(path)), source, commit)


def load_tokenizer(weights: str | Path, revision: str | None = None) -> BioGptTokenizer | None:
    """The tokenizer that `load_whole_prism` gives its model, without the model. Raises PrismWeightsError as that."""
    if str(weights) in RANDOM:
        return letters_tokenizer()
    return _tokenizer_beside(*_locate(str(weights), revision))


def _tokenizer_beside(path: Path, commit: str | None) -> BioGptTokenizer | None:
    tokenizer = find_tokenizer(path.parent)
    if tokenizer is None and (vocabulary := fetch_vocabulary(online=commit is not None)):
        tokenizer = find_tokenizer(vocabulary)
    return tokenizer


def _finish(model: Model, state: dict[str, Tensor], source: str, commit: str | None) -> Model:
    """Give the empty model its tensors and its origin, and freeze it."""
    # assign: the empty model lies on the meta device; its parameters become these tensors. Strict by default.
    model.load_state_dict(state, assign=True)
    model.source, model.revision = source, commit
    model.sha256 = fingerprint(model.slide_encoder() if isinstance(model, Prism) else model)
    _log.info("Prism%s from %s, sha256 %s", "" if isinstance(model, Prism) else " slide encoder", source, model.sha256)
    return model.freeze()


def _locate(source: str, revision: str | None) -> tuple[Path, str | None]:
    """The file of weights, and the commit if it came from the hub."""
    path = Path(source).expanduser()
    if path.exists():
        return find_weights(path), None
    looks_local = path.is_absolute() or source.startswith((".", "~", "/")) or source.lower().endswith(SUFFIXES)
    if looks_local or not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise PrismWeightsError(
            f"{source}: no such file or folder ({path.absolute()}); give a local folder or file, a hub id owner/name "
            "or, for a demo, 'random-tiny'"
        )
    folder = fetch(source, revision)
    return find_weights(folder), commit_of(folder)


def _empty(kind: type[nn.Module], config: PerceiverConfig | PrismConfig) -> Any:
    with torch.device("meta"):
        return kind(config)


def _names(encoder: nn.Module) -> dict[str, list[str]]:
    """First name of every tensor -> all names it has in the state dict."""
    groups: dict[int, list[str]] = {}
    for name, parameter in encoder.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return {names[0]: names for names in groups.values()}


def _random_state(encoder: nn.Module) -> dict[str, Tensor]:
    """Seeded weights: norms 1 and 0, biases 0, latents N(0, 0.02), matrices N(0, 1 / fan_in); keeps unit variance.

    The global random state is neither used nor changed.
    """
    generator = torch.Generator().manual_seed(SEED)
    shapes = {name: parameter.shape for name, parameter in encoder.named_parameters()}
    state = {}
    for first, names in _names(encoder).items():
        if first.endswith("norm.weight"):
            tensor = torch.ones(shapes[first])
        elif first.endswith("bias"):
            tensor = torch.zeros(shapes[first])
        elif first == "temperature":
            tensor = torch.tensor(math.log(1 / 0.07))
        else:
            std = 0.02 if first.endswith("latents") else shapes[first][-1] ** -0.5
            tensor = torch.empty(shapes[first]).normal_(0, std, generator=generator)
        state.update(dict.fromkeys(names, tensor))
    return state


def _complete(encoder: nn.Module, given: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """`given`, checked, in float32 and under every name of a shared tensor: the full state dict of `encoder`."""
    groups = _names(encoder)
    present = {first: [name for name in names if name in given] for first, names in groups.items()}
    shapes = {name: tuple(parameter.shape) for name, parameter in encoder.named_parameters(remove_duplicate=False)}
    missing = [first for first, names in present.items() if not names]
    unexpected = [name for name in given if name not in shapes]
    wrong = [
        f"{name} {tuple(given[name].shape)} instead of {shape}"
        for name, shape in shapes.items()
        if name in given and tuple(given[name].shape) != shape
    ]
    if missing or unexpected or wrong:
        raise PrismWeightsError(
            f"{where}: not the weights of this architecture: {_first_three('missing', missing)}; "
            f"{_first_three('unexpected', unexpected)}; {_first_three('wrong shape', wrong)}; "
            "check perceiver_config in the config.json beside it"
        )
    state: dict[str, Tensor] = {}
    for first, names in groups.items():
        tensor = _checked(given, present[first], where)
        for name in present[first]:
            del given[name]  # checked tensors are copies: two of everything would be 4 GB
        state.update(dict.fromkeys(names, tensor))
    return state


def _checked(given: dict[str, Tensor], names: list[str], where: str) -> Tensor:
    """One shared tensor: the same under all its names, floating, finite; a float32 copy free of the file."""
    tensor = given[names[0]]
    for other in names[1:]:
        if not torch.equal(tensor, given[other]):
            raise PrismWeightsError(f"{where}: {names[0]} and {other} share weights in Prism but differ in the file")
    if not tensor.is_floating_point():
        raise PrismWeightsError(f"{where}: {names[0]} is {tensor.dtype}; need floating-point weights")
    copy = tensor.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    if not copy.isfinite().all():
        raise PrismWeightsError(f"{where}: non-finite values in {names[0]}; the file is damaged")
    return copy


def _first_three(what: str, items: list[str]) -> str:
    return f"{len(items)} {what}" + (f" ({', '.join(items[:3])}{', ...' if len(items) > 3 else ''})" if items else "")
