"""`load_prism`: from a name or a path to a frozen encoder with checked weights.

Every source yields a mapping of names to tensors, which goes through one check (`_complete`) and is loaded strictly.
Random weights are used only where they are asked for by name.
"""

import logging
import re
from pathlib import Path

import torch
from torch import Tensor

from .files import ENCODER, SUFFIXES, PrismWeightsError, find_weights, read_config, read_encoder
from .hub import commit_of, fetch
from .perceiver import PerceiverConfig
from .prism import PrismSlideEncoder, fingerprint

# Small, with the widths of the published model, so that every default fits: for the demo and the tests.
RANDOM_TINY = PerceiverConfig(latent_seq=32, perceiver_depth=1, transformer_depth=1)
SEED = 0

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
    if source in ("random", "random-tiny"):
        encoder = _empty(RANDOM_TINY if source == "random-tiny" else PerceiverConfig())
        state, commit = _random_state(encoder), None
    else:
        path, commit = _locate(source, revision)
        encoder = _empty(read_config(path.parent))
        state, total = read_encoder(path)
        if not state:
            raise PrismWeightsError(f"{path}: none of its {total} keys starts with '{ENCODER}'; not a Prism checkpoint")
        state = _complete(encoder, state, str(path))
    # assign: the empty encoder lies on the meta device; its parameters become these tensors. Strict by default.
    encoder.load_state_dict(state, assign=True)
    encoder.source, encoder.revision, encoder.sha256 = source, commit, fingerprint(encoder)
    _log.info("Prism slide encoder from %s, sha256 %s", source, encoder.sha256)
    return encoder.freeze()


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


def _empty(config: PerceiverConfig) -> PrismSlideEncoder:
    with torch.device("meta"):
        return PrismSlideEncoder(config)


def _names(encoder: PrismSlideEncoder) -> dict[str, list[str]]:
    """First name of every tensor -> all names it has in the state dict."""
    groups: dict[int, list[str]] = {}
    for name, parameter in encoder.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return {names[0]: names for names in groups.values()}


def _random_state(encoder: PrismSlideEncoder) -> dict[str, Tensor]:
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
        else:
            std = 0.02 if first.endswith("latents") else shapes[first][-1] ** -0.5
            tensor = torch.empty(shapes[first]).normal_(0, std, generator=generator)
        state.update(dict.fromkeys(names, tensor))
    return state


def _complete(encoder: PrismSlideEncoder, given: dict[str, Tensor], where: str) -> dict[str, Tensor]:
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
