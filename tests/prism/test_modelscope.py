"""Names on ModelScope: a client of this test with the real one's signature, and the real one where it is installed."""

from __future__ import annotations

import fnmatch
import inspect
import json
import shutil
import sys
import types
from pathlib import Path

import pytest

from finetune.config.schema import Config, apply_overrides
from finetune.data.tokenizer import build_tokenizer
from finetune.models.build import decoder_tokenizer
from finetune.models.language_model_folder import find_language_model
from prism import PrismWeightsError, load_prism, load_tokenizer
from prism.modelscope_hub import fetch_from_modelscope
from tests.helpers.files import refused
from tests.helpers.language_models import make_language_model
from tests.helpers.prism import put
from tests.parity.prism_weights import small_state


class Client:
    """ModelScope as its client shows it: a repository, and a cache that a download fills."""

    def __init__(self, monkeypatch, repository: Path, cache: Path) -> None:
        self.repository, self.cache, self.calls, self.failure = repository, cache, [], None
        monkeypatch.setitem(sys.modules, "modelscope", types.SimpleNamespace(snapshot_download=self.snapshot_download))

    def snapshot_download(self, model_id, revision=None, local_files_only=False, allow_patterns=None):
        self.calls.append((model_id, revision, local_files_only))
        if local_files_only:
            if not self.cache.exists():
                raise ValueError("Cannot find cached snapshot")
            return str(self.cache)
        if self.failure:
            raise self.failure
        self.cache.mkdir(parents=True, exist_ok=True)
        for path in (p for p in self.repository.rglob("*") if p.is_file()):
            name = path.relative_to(self.repository).as_posix()
            if any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                (self.cache / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, self.cache / name)
        return str(self.cache)

    @property
    def downloads(self) -> int:
        return sum(not only_local for _, _, only_local in self.calls)


@pytest.fixture
def client(tmp_path, monkeypatch) -> Client:
    return Client(monkeypatch, tmp_path / "repository", tmp_path / "cache" / "models" / "owner--name" / "snapshots" / "master")


def test_prism_comes_from_modelscope_once_and_then_from_its_cache(client):
    put(client.repository, small_state())
    (client.repository / "pytorch_model.bin").write_bytes(b"the same again, for others")
    encoder = load_prism("ms:owner/name", "v1")
    assert client.calls[-1] == ("owner/name", "v1", False) and encoder.source == "ms:owner/name" and encoder.revision is None
    assert encoder.sha256 == load_prism(client.repository).sha256
    assert not (client.cache / "pytorch_model.bin").exists(), "gigabytes that nobody reads"
    client.failure = ConnectionError("no network")
    assert load_prism("ms:owner/name@v2").sha256 == encoder.sha256 and client.calls[-1] == ("owner/name", "v2", True)
    assert client.downloads == 1


def test_a_repository_with_a_bin_alone_is_read_too(client):
    put(client.repository, small_state(), "pytorch_model.bin")
    assert load_prism("ms:owner/name").sha256 == load_prism(client.repository).sha256


def test_prisms_tokenizer_comes_along(client):
    put(client.repository, small_state())
    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a</w>": 4}
    (client.repository / "biogpt").mkdir()
    (client.repository / "biogpt" / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (client.repository / "biogpt" / "merges.txt").write_text("", encoding="utf-8")
    assert len(load_tokenizer("ms:owner/name")) == 5


def test_a_download_that_was_cut_off_is_not_taken_for_a_model(client):
    put(client.repository, small_state())
    client.cache.mkdir(parents=True)
    shutil.copy(client.repository / "config.json", client.cache)
    shard = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (client.cache / "model.safetensors.index.json").write_text(json.dumps(shard), encoding="utf-8")
    (client.cache / "model-00001-of-00002.safetensors").write_bytes(b"")
    load_prism("ms:owner/name")
    assert client.downloads == 1


def test_a_language_model_and_its_tokenizer_come_from_modelscope(client):
    make_language_model(client.repository)
    config = apply_overrides(Config(), ["model.decoder=ms:owner/name", "model.lora_rank=4"])
    assert config.model.language_model == "ms:owner/name"
    assert len(decoder_tokenizer(config)) == len(build_tokenizer(f"hf:{client.repository}", [], False))
    folder = find_language_model("ms:owner/name")
    assert folder.path == client.cache and folder.revision is None and folder.source == "ms:owner/name"
    assert folder.sha256() == find_language_model(str(client.repository)).sha256() and client.downloads == 1


def test_a_tokenizer_alone_is_downloaded_without_weights(client):
    make_language_model(client.repository)
    tokenizer = build_tokenizer("ms:owner/name", [], False)
    assert tokenizer.encode("胃腺癌") == build_tokenizer(f"hf:{client.repository}", [], False).encode("胃腺癌")
    assert not list(client.cache.glob("*.safetensors"))


@pytest.mark.parametrize("use", [lambda: load_prism("ms:owner/name"), lambda: fetch_from_modelscope("ms:owner/name")])
def test_without_the_client_its_pip_command_is_named(monkeypatch, use):
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(PrismWeightsError, match="ms:owner/name: needs ModelScope's client; python -m pip install modelscope"):
        use()
    with refused("model.decoder", "needs ModelScope's client", "pip install modelscope"):
        find_language_model("ms:owner/name")
    with refused("data.tokenizer", "needs ModelScope's client", "pip install modelscope"):
        build_tokenizer("ms:owner/name", [], False)


def test_what_modelscope_cannot_serve_is_one_line(client):
    client.failure = ConnectionError("[E1020] Connection failed\nand much more")
    with pytest.raises(PrismWeightsError, match=r"^ms:owner/name: ModelScope cannot serve it \(ConnectionError: \[E1020\] Connection failed\); .*local folder$"):
        load_prism("ms:owner/name")
    with refused("model.decoder", "ModelScope cannot serve it", "local folder"):
        find_language_model("ms:owner/name")


def test_a_repository_without_weights_and_a_wrong_name_are_refused(client):
    client.repository.mkdir()
    (client.repository / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(PrismWeightsError, match=r"holds none of model\.safetensors"):
        load_prism("ms:owner/name")
    for wrong in ("ms:name", "ms:owner/name/x", "ms:./folder", "ms:"):
        with pytest.raises(PrismWeightsError, match="not a name on ModelScope"):
            load_prism(wrong)


def test_the_real_client_takes_what_it_is_given():
    modelscope = pytest.importorskip("modelscope", reason="pip install modelscope")
    parameters = inspect.signature(modelscope.snapshot_download).parameters
    assert next(iter(parameters)) in ("model_id", "repo_id")
    assert set(inspect.signature(Client.snapshot_download).parameters) - {"self"} <= set(parameters)


def test_the_real_client_without_a_cache_is_no_folder(tmp_path, monkeypatch):
    pytest.importorskip("modelscope", reason="pip install modelscope")
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path))
    from prism.modelscope_hub import find_in_modelscope_cache

    assert find_in_modelscope_cache("ms:owner/name") is None
