"""Every way to get Prism weights, and every way it must be refused."""

import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import save_file

from prism import PrismWeightsError, fingerprint, hub, load_prism
from tests.helpers.files import ROOT
from tests.helpers.prism import play_hub
from tests.parity.prism_weights import SMALL_CONFIG, small_state

REFERENCE = {k: torch.from_numpy(v) for k, v in np.load(ROOT / "tests" / "parity" / "prism_small.npz").items()}
FIRST = "image_resampler.perceiver.layers.1.xattn.ff.norm.bias"
ALIAS = FIRST.replace("layers.1", "layers.2")


def put(folder: Path, state: dict, name: str = "model.safetensors", config: bool = True) -> Path:
    """A local model folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if config:
        (folder / "config.json").write_text(json.dumps({"perceiver_config": SMALL_CONFIG}), encoding="utf-8")
    save_file(state, folder / name) if name.endswith(".safetensors") else torch.save(state, folder / name)
    return folder


def refusal(weights, **kwargs) -> str:
    with pytest.raises(PrismWeightsError) as error:
        load_prism(weights, **kwargs)
    assert "\n" not in str(error.value) and "weights_only=False" not in str(error.value)
    return str(error.value)


def prefixed(prefix: str) -> dict:
    return {prefix + key: value for key, value in small_state().items()}


FORMS = {
    "safetensors, shared once": (small_state(repeated=False), "model.safetensors"),
    "safetensors, repeated": (small_state(), "model.safetensors"),
    "bin, shared once": (small_state(repeated=False), "pytorch_model.bin"),
    "bin, repeated": (small_state(), "pytorch_model.bin"),
    "with the text side": (small_state(text=True), "model.safetensors"),
    "of DataParallel": (prefixed("module."), "model.safetensors"),
    "of torch.compile in DataParallel": (prefixed("module._orig_mod."), "pytorch_model.bin"),
    "named by an alias": (
        {ALIAS if k == FIRST else k: v for k, v in small_state(repeated=False).items()},
        "model.safetensors",
    ),
    "float64": ({k: v.double() for k, v in small_state().items()}, "model.safetensors"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_checkpoint_gives_the_reference_numbers(tmp_path, form):
    encoder = load_prism(put(tmp_path, *FORMS[form]))
    out = encoder.slide_representations(REFERENCE["tile_embeddings"], REFERENCE["tile_mask"])
    torch.testing.assert_close(out["image_embedding"], REFERENCE["image_embedding"], atol=1e-5, rtol=0)
    torch.testing.assert_close(out["image_latents"], REFERENCE["image_latents"], atol=1e-5, rtol=0)
    assert encoder.frozen and encoder.source == str(tmp_path) and encoder.revision is None
    assert (encoder.tile_dim, encoder.image_dim) == (20, 48)


def test_fingerprint_is_the_same_for_all_formats_and_changes_with_a_weight(tmp_path):
    once = load_prism(put(tmp_path / "a", small_state(repeated=False)))
    repeated = load_prism(put(tmp_path / "b", small_state(text=True), "pytorch_model.bin"))
    assert once.sha256 == repeated.sha256 == fingerprint(once) and len(once.sha256) == 64
    once.image_resampler.cls_norm.bias[3] += 1e-6
    assert fingerprint(once) != repeated.sha256


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_checkpoints_become_float32(tmp_path, dtype):
    state = {k: v.to(dtype) for k, v in small_state().items()}
    for key, value in load_prism(put(tmp_path, state)).state_dict().items():
        assert torch.equal(value, state[key].float())


@pytest.mark.parametrize("name", ["model.safetensors", "x.safetensors", "x.bin", "x.pt"])
def test_a_file_is_taken_with_the_config_beside_it(tmp_path, name):
    assert load_prism(put(tmp_path, small_state(), name) / name).image_dim == 48


@pytest.mark.parametrize("suffix", ["model.safetensors", "pytorch_model.bin"])
def test_shards_are_put_together(tmp_path, suffix):
    keys, state = sorted(small_state()), small_state()
    parts = {f"part-{i}.{suffix.split('.')[1]}": keys[i::2] for i in range(2)}
    for name, part in parts.items():
        put(tmp_path, {key: state[key] for key in part}, name)
    index = {"weight_map": {key: name for name, part in parts.items() for key in part}}
    (tmp_path / f"{suffix}.index.json").write_text(json.dumps(index), encoding="utf-8")
    whole = load_prism(put(tmp_path / "whole", state))
    assert load_prism(tmp_path).sha256 == whole.sha256
    (tmp_path / next(iter(parts))).unlink()
    assert next(iter(parts)) in refusal(tmp_path)


def test_shards_outside_the_folder_are_refused(tmp_path):
    folder = put(tmp_path / "m", {}, "pytorch_model.bin")
    (folder / "pytorch_model.bin").unlink()
    for name in ("../x.safetensors", 3):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}), encoding="utf-8")
        assert repr(name) in refusal(folder)


def test_safetensors_go_before_bin(tmp_path):
    put(tmp_path, small_state())
    (tmp_path / "pytorch_model.bin").write_bytes(b"rubbish")
    assert load_prism(tmp_path).image_dim == 48


def test_other_architecture_is_refused_with_the_first_three_of_each_kind(tmp_path):
    state = small_state(repeated=False)
    for key in [k for k in state if "to_q" in k or "to_out" in k]:
        del state[key]
    state |= {f"image_resampler.extra.{i}": torch.zeros(1) for i in range(5)}
    state["image_resampler.cls_norm.bias"] = torch.zeros(49)
    text = refusal(put(tmp_path, state))
    assert "4 missing (image_resampler.perceiver.layers.0.xattn.xattn.to_q.weight, " in text and "..." in text
    assert "5 unexpected (image_resampler.extra.0, image_resampler.extra.1, image_resampler.extra.2, ...)" in text
    assert "1 wrong shape (image_resampler.cls_norm.bias (49,) instead of (48,))" in text


def test_no_config_means_the_published_architecture(tmp_path):
    text = refusal(put(tmp_path, small_state(), config=False))
    assert "instead of (513, 1280)" in text and "perceiver_config" in text


def test_aliases_that_differ_are_refused(tmp_path):
    state = small_state()
    state[ALIAS] = state[ALIAS] + 1
    assert FIRST in (text := refusal(put(tmp_path, state))) and ALIAS in text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights_are_refused_by_name(tmp_path, value):
    state = small_state(repeated=False)
    state[FIRST][5] = value
    assert f"non-finite values in {FIRST}" in refusal(put(tmp_path, state))


def test_weights_that_are_not_floating_point_are_refused(tmp_path):
    state = small_state(repeated=False)
    state[FIRST] = state[FIRST].to(torch.complex64)
    assert f"{FIRST} is torch.complex64" in refusal(put(tmp_path, state, "pytorch_model.bin"))


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    assert "none of its 1 keys" in refusal(put(tmp_path, {"fc.weight": torch.zeros(2)}))


IMPOSTORS = {
    "empty file": b"",
    "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "web page": b"\n<!DOCTYPE html><html>Log in</html>",
    "not a readable": b"\x80\x02rubbish" * 20,
}


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("kind", IMPOSTORS)
def test_impostors_are_named(tmp_path, name, kind):
    put(tmp_path, {}, name)
    (tmp_path / name).write_bytes(IMPOSTORS[kind])
    assert kind in (text := refusal(tmp_path)) and name in text


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("keep", [10, 0.5, -1])
def test_files_cut_off_are_refused(tmp_path, name, keep):
    path = put(tmp_path, small_state(), name) / name
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    assert "cut off" in refusal(tmp_path)


class Bomb:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("bare", [True, False])
def test_code_in_a_pickle_is_not_run(tmp_path, bare):
    put(tmp_path, {}, "pytorch_model.bin")
    with (tmp_path / "pytorch_model.bin").open("wb") as file:
        bomb = {"a": Bomb(tmp_path / "canary")}
        pickle.dump(bomb, file, protocol=2) if bare else torch.save(bomb, file)
    assert "other Python objects" in refusal(tmp_path)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"state_dict": {}}, {"epoch": 3}, {1: torch.zeros(1)}])
def test_a_bin_that_is_no_state_dict_is_refused(tmp_path, content):
    assert "need a mapping of names to tensors" in refusal(put(tmp_path, content, "pytorch_model.bin"))


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ("{", "not readable JSON"),
        ("[]", "not a mapping"),
        ('{"perceiver_config": [1]}', "not a mapping"),
        ('{"perceiver_config": {"xattn_heads": 2}}', "xattn_heads is 2"),
    ],
)
def test_bad_config_is_refused_by_file_and_field(tmp_path, config, word):
    put(tmp_path, small_state())
    (tmp_path / "config.json").write_text(config, encoding="utf-8")
    assert word in (text := refusal(tmp_path)) and "config.json" in text


def test_unknown_fields_of_transformers_in_the_config_are_let_be(tmp_path):
    put(tmp_path, small_state())
    config = {"perceiver_config": {**SMALL_CONFIG, "return_dict": True}, "auto_map": {"AutoModel": "code.py"}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert load_prism(tmp_path).image_dim == 48


def no_hub(*_, **__):
    raise AssertionError("the hub was asked")


@pytest.mark.parametrize("weights", ["./a/b", "../a", "~/nowhere/b", "/nowhere/b", "a/b.safetensors", "a/B.BIN", "a"])
def test_a_missing_local_path_never_becomes_a_hub_id(tmp_path, monkeypatch, weights):
    monkeypatch.setattr("prism.weights.fetch", no_hub)
    monkeypatch.chdir(tmp_path)
    assert "no such file or folder" in refusal(weights)


def test_a_local_folder_wins_over_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.setattr("prism.weights.fetch", no_hub)
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "paige-ai" / "Prism", small_state())
    assert load_prism("paige-ai/Prism").source == "paige-ai/Prism"


def test_folder_without_weights_and_file_of_another_kind_are_refused(tmp_path):
    assert "holds none of model.safetensors" in refusal(tmp_path)
    (tmp_path / "a.txt").write_text("x", encoding="utf-8")
    assert "not a file of weights" in refusal(tmp_path / "a.txt")


def test_random_is_the_same_every_time_and_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = load_prism("random-tiny")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert load_prism("random-tiny").sha256 == first.sha256
    assert (first.tile_dim, first.image_dim, first.source) == (2560, 1280, "random-tiny")


def test_random_tiny_tells_slides_apart():
    encoder = load_prism("random-tiny")
    generator = torch.Generator().manual_seed(0)
    centre = torch.randn(2, 1, 2560, generator=generator)
    a, b = (centre[i] + torch.randn(200, 2560, generator=generator) for i in range(2))
    out = encoder(torch.stack([a[:100], a[100:], b[:100]]))["image_embedding"]
    same, other = torch.cosine_similarity(out[:1], out[1:])
    assert other < 0.5 < same


# The hub, without one: `huggingface_hub`'s two functions play it from a folder.

COMMIT = "0123456789abcdef0123456789abcdef01234567"




def http_error(kind, status):
    response = SimpleNamespace(headers={}, status_code=status, request=None)  # whichever HTTP library is installed
    return kind("Client error\nhttps://...", response=response)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_hub_files_are_all_of_one_commit_which_is_kept(tmp_path, monkeypatch, name):
    asked = play_hub(monkeypatch, put(tmp_path / "snapshots" / COMMIT, small_state(), name))
    encoder = load_prism("paige-ai/Prism", revision="main")
    assert (encoder.source, encoder.revision) == ("paige-ai/Prism", COMMIT)
    assert asked[0] == ("config.json", "main") and {revision for _, revision in asked[1:]} == {COMMIT}


def test_shards_come_from_the_hub_too(tmp_path, monkeypatch):
    folder = put(tmp_path / "snapshots" / COMMIT, small_state(), "part.safetensors")
    index = {"weight_map": dict.fromkeys(small_state(), "part.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    asked = play_hub(monkeypatch, folder)
    assert load_prism("a/b").revision == COMMIT
    assert asked[-1] == ("part.safetensors", COMMIT)


def test_cached_files_are_used_when_the_hub_does_not_answer(tmp_path, monkeypatch):
    play_hub(monkeypatch, put(tmp_path / "snapshots" / COMMIT, small_state()), ask=ConnectionError("down"))
    assert load_prism("a/b").revision == COMMIT


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (errors.OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set"),
        (http_error(errors.GatedRepoError, 403), "access refused"),
        (http_error(errors.RepositoryNotFoundError, 401), "access refused"),
        (http_error(errors.RepositoryNotFoundError, 404), "no such repository"),
        (http_error(errors.RevisionNotFoundError, 404), "no revision 'v9'"),
        (http_error(errors.HfHubHTTPError, 503), "HTTP 503"),
        (ConnectionError("Name or service not known\nmore"), "Name or service not known"),
    ],
)
def test_the_refusal_of_the_hub_is_reported_with_the_fix(tmp_path, monkeypatch, error, cause):
    play_hub(monkeypatch, tmp_path, ask=error)
    text = refusal("paige-ai/Prism", revision="v9")
    for word in ("paige-ai/Prism: ", cause, "huggingface.co/paige-ai/Prism", "HF_TOKEN", "HF_ENDPOINT", "local folder"):
        assert word in text


def test_a_repository_without_weights_is_refused(tmp_path, monkeypatch):
    play_hub(monkeypatch, tmp_path)
    assert "holds none of" in refusal("a/b")


def test_a_hub_that_never_answers_is_given_up(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_ETAG_TIMEOUT", raising=False)
    monkeypatch.setattr(hub, "ANSWER_WITHIN_S", 0.1)
    play_hub(monkeypatch, tmp_path)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_, **__: time.sleep(30))
    start = time.monotonic()
    assert "no answer in 0.1 s; HF_HUB_ETAG_TIMEOUT" in refusal("a/b")
    assert time.monotonic() - start < 5


@pytest.mark.full
@pytest.mark.parametrize("env", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": ""}])
def test_R08_really_offline_fails_within_five_seconds(tmp_path, env):
    code = """if True:
        import time, torch
        from prism import load_prism, PrismWeightsError
        start = time.monotonic()
        try:
            load_prism("paige-ai/Prism")
        except PrismWeightsError as error:
            print(error)
            print(time.monotonic() - start)
    """
    env = {**os.environ, "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1", **env}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    message, seconds = done.stdout.splitlines()
    assert message.startswith("paige-ai/Prism: ") and float(seconds) < 5
