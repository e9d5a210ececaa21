"""From a hub id to a local folder, with a quick and clear error if the hub is not available.

`huggingface_hub` reads HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE itself. It is imported on first use:
loading weights from disk does not need it.
"""

import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from .errors import PrismWeightsError
from .files import WEIGHT_FILES, shard_names
from .tokenizer import VOCABULARY_FILES

# Left alone, huggingface_hub 2.4 tries a dead network six times, 23 s in all [measured], and a firewall that drops
# packets costs its timeout for every address of the hub. One question with one deadline decides instead;
# HF_HUB_ETAG_TIMEOUT, huggingface_hub's own setting, prolongs it for slow links.
ANSWER_WITHIN_S = 4.0
# Prism was trained with the vocabulary of BioGPT, as of this commit
_VOCABULARY, _VOCABULARY_COMMIT = "microsoft/biogpt", "eb0d815e95434dc9e3b78f464e52b899bee7d923"

_log = logging.getLogger(__name__)


def fetch(repo_id: str, revision: str | None, weights: Sequence[str] = WEIGHT_FILES,
          others: Sequence[str] = ()) -> Path:
    """Folder with `config.json` (if the repository has one) and the weights; only these files are downloaded.

    What is in the hub's cache on this machine is used where the hub does not answer.

    Args:
        weights: Names of files of weights or of indices of shards, best first; the first that is there is taken.
        others: Names of further files to take where they are there.

    Raises:
        PrismWeightsError: No access, no network, no such repository or revision, no weights in it.
    """
    failure = ask_hub(repo_id, revision)
    cached_only = failure is not None
    try:
        folder = _download(repo_id, revision, cached_only, weights)
        for name in others if folder else ():
            _get_file(repo_id, name, commit_of(folder) or revision, cached_only)
    except Exception as error:  # httpx, requests, OS and its own errors, by version; all mean: no file
        raise explain(repo_id, revision, error) from error
    if folder is not None:
        return folder
    if failure is not None:
        raise explain(repo_id, revision, failure) from failure
    raise PrismWeightsError(f"{repo_id}: the repository holds none of {', '.join(weights)}")


def find_cached(repo_id: str, revision: str | None, weights: Sequence[str] = WEIGHT_FILES) -> Path | None:
    """The folder that `fetch` would give without a hub; None if the cache does not have all of it."""
    try:
        return _download(repo_id, revision, True, weights)
    except Exception:  # as in `fetch`
        return None


def fetch_vocabulary(online: bool) -> Path | None:
    """Folder with the two files of BioGPT's tokenizer, from the cache or, if `online`, the hub; None if they cannot be
    had there, with a warning that says why."""
    from huggingface_hub import hf_hub_download

    try:
        for name in VOCABULARY_FILES:
            path = hf_hub_download(_VOCABULARY, name, revision=_VOCABULARY_COMMIT, local_files_only=not online)
        return Path(path).parent
    except Exception as error:  # as in `fetch`
        if online:
            _log.warning("no tokenizer: %s", explain(_VOCABULARY, _VOCABULARY_COMMIT, error))
        return None


def ask_hub(repo_id: str, revision: str | None) -> Exception | None:
    """One request without retries: None if the hub would serve files of this repository, else why not."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    seconds = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or ANSWER_WITHIN_S)
    answer: list[Exception | None] = []

    def ask() -> None:
        try:
            get_hf_file_metadata(hf_hub_url(repo_id, "config.json", revision=revision), timeout=seconds)
            answer.append(None)
        except EntryNotFoundError:  # no config.json, but the hub answers
            answer.append(None)
        except Exception as error:
            answer.append(error)

    # A thread, because timeouts of the HTTP client bound neither the name lookup nor the sum over addresses.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answer[0] if answer else TimeoutError(f"no answer in {seconds:g} s; HF_HUB_ETAG_TIMEOUT=30 waits longer")


def _download(repo_id: str, revision: str | None, cached_only: bool, weights: Sequence[str]) -> Path | None:
    """Folder with the best weights that the repository has, all files of one commit; None if it has none."""
    config = _get_file(repo_id, "config.json", revision, cached_only)
    if config is not None:
        revision = commit_of(config.parent) or revision  # of one commit, also if the branch moves meanwhile
    for name in weights:
        path = _get_file(repo_id, name, revision, cached_only)
        if path is not None and _get_shards(repo_id, path, revision, cached_only):
            return path.parent
    return None


def _get_shards(repo_id: str, path: Path, revision: str | None, cached_only: bool) -> bool:
    """Whether all shards are on this disk, if `path` is an index of some."""
    if not path.name.endswith(".index.json"):
        return True
    return all(_get_file(repo_id, shard, revision, cached_only) for shard in shard_names(path))


def _get_file(repo_id: str, name: str, revision: str | None, cached_only: bool) -> Path | None:
    """A file of the repository on this disk; None if the repository, or with `cached_only` the cache, lacks it."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repo_id, name, revision=revision, local_files_only=cached_only))
    except EntryNotFoundError as error:
        if isinstance(error, LocalEntryNotFoundError) and not cached_only:
            raise  # the network went away in between: not the same as "the repository has no such file"
        return None


def commit_of(folder: Path) -> str | None:
    """Commit hash of a folder in the hub's cache (`.../snapshots/<commit>`), None for any other folder."""
    return folder.name if folder.parent.name == "snapshots" else None


def explain(repo_id: str, revision: str | None, error: Exception) -> PrismWeightsError:
    """What the hub's answer means and what to do."""
    if isinstance(error, PrismWeightsError):  # a broken index of shards explains itself
        return error
    return PrismWeightsError(
        f"{repo_id}: {_cause(revision, error)}; request access at https://huggingface.co/{repo_id} and set HF_TOKEN "
        "(HF_ENDPOINT names a mirror), or download it elsewhere and give the local folder; 'random-tiny' is for demos "
        "only"
    )


def _cause(revision: str | None, error: Exception) -> str:
    """Why the hub gave no file; the order matters, as some of these classes derive from others."""
    from huggingface_hub import constants, errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.HFValidationError):
        return "not a valid hub id"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "not in the local cache, and HF_HUB_OFFLINE is set"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"no revision {revision!r} in the repository"
    if isinstance(error, errors.GatedRepoError) or status in (401, 403):
        return "access refused (the repository is gated, private or does not exist)"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "no such repository"
    first_line = str(error).split("\n")[0] or type(error).__name__
    reason = f"HTTP {status}" if status else first_line
    return f"{constants.ENDPOINT} cannot serve it ({reason})"
