"""From a name on ModelScope (`ms:owner/name`, `ms:owner/name@revision`) to a local folder, through ModelScope's client.

What is complete in the client's cache on this machine is used without asking the network. The client is imported on
first use; it reads MODELSCOPE_CACHE, MODELSCOPE_ENDPOINT and MODELSCOPE_API_TOKEN itself.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from .errors import PrismWeightsError
from .files import WEIGHT_FILES, shard_names

PREFIX = "ms:"


def fetch_from_modelscope(source: str, revision: str | None = None, weights: Sequence[str] = WEIGHT_FILES,
                          others: Sequence[str] = ()) -> Path:
    """A folder as `hub.fetch` gives it.

    Args:
        source: With its prefix.
        revision: Branch, tag or commit, if `source` names none.
        weights: Names of files of weights or of indices of shards, best first; those without
            code (safetensors) are asked for alone at first. None: the others are what is wanted.
        others: Names of further files to take where they are there.

    Raises:
        PrismWeightsError: No client, no access, no network, no such repository, no weights in it.
    """
    cached = find_in_modelscope_cache(source, revision, weights or others)
    return cached or _download_complete(source, revision, weights, others)


def find_in_modelscope_cache(source: str, revision: str | None = None,
                             wanted: Sequence[str] = WEIGHT_FILES) -> Path | None:
    """The folder in the client's cache; None if it holds none of `wanted`, or not all of its shards.

    Raises:
        PrismWeightsError: The client is not installed.
    """
    name, revision = _parsed(source, revision)
    snapshot_download = _client(source)
    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except Exception:  # the client's own classes, by version; all mean: not there
        return None
    return folder if _is_complete(folder, wanted) else None


def _download_complete(source: str, revision: str | None, weights: Sequence[str], others: Sequence[str]) -> Path:
    name, revision = _parsed(source, revision)
    wanted = weights or others
    for files in _in_turn(weights):
        folder = _download(source, name, revision, ["config.json", *others, *files])
        if _is_complete(folder, wanted):
            return folder
    raise PrismWeightsError(f"{source}: the repository holds none of {', '.join(wanted)}")


def _download(source: str, name: str, revision: str | None, patterns: list[str]) -> Path:
    snapshot_download = _client(source)
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:  # requests', the OS's and its own errors, by version; all mean: no files
        lines = str(error).split("\n")
        raise PrismWeightsError(
            f"{source}: ModelScope cannot serve it ({type(error).__name__}: {lines[0][:120]}); see that the name is "
            "right, set MODELSCOPE_API_TOKEN if it is gated, or download it elsewhere and give the local folder"
        ) from error


def _in_turn(weights: Sequence[str]) -> list[list[str]]:
    """Patterns of what to download first and, if that brings no weights, then: a repository may hold both kinds."""
    if not weights:
        return [[]]
    kinds = [[name for name in weights if kind in name] for kind in (".safetensors", ".bin")]
    shards = [["model-*.safetensors"], ["pytorch_model-*.bin"]]
    return [names + more for names, more in zip(kinds, shards, strict=True) if names]


def _is_complete(folder: Path, wanted: Sequence[str]) -> bool:
    """Whether one of `wanted` is there, with all its shards."""
    found = next((folder / name for name in wanted if (folder / name).is_file()), None)
    if found is None:
        return False
    return not found.name.endswith(".index.json") or all((folder / shard).is_file() for shard in shard_names(found))


def _parsed(source: str, revision: str | None) -> tuple[str, str | None]:
    match = re.fullmatch(rf"{PREFIX}([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w./-]+))?", source)
    if match is None:
        raise PrismWeightsError(f"{source}: not a name on ModelScope; write ms:owner/name or ms:owner/name@revision")
    return match[1], match[2] or revision


def _client(source: str) -> Callable[..., str]:
    try:
        from modelscope import snapshot_download
    except ImportError:
        raise PrismWeightsError(f"{source}: needs ModelScope's client; python -m pip install modelscope, or download "
                                "it and give the local folder") from None
    return snapshot_download
