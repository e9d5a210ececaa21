"""Folders of language models: what is found, hashed and refused, and which token ends a text."""

from __future__ import annotations

import json
import logging
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune.data.prepare import prepare_data
from finetune.data.tokenizer import tokenizer_from_dict
from finetune.models.build import build_model, decoder_tokenizer
from finetune.models.language_model import LanguageModel, language_model_tokenizer
from finetune.models.language_model_folder import find_language_model
from tests.helpers.files import random_tiles, refused, write_h5, write_json
from tests.helpers.language_models import CHAT, END, TEXTS, config_for, make_language_model, save_tokenizer

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_language_model(tmp_path_factory.mktemp("lm") / "qwen2")


@pytest.fixture
def folder(made, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(made, tmp_path / "lm")


def edit(path, **changes):
    data = json.loads(path.read_text(encoding="utf-8")) | changes
    write_json(path, {key: value for key, value in data.items() if value is not ...})


# --- refusals --------------------------------------------------------------------------------------------------------

def only_bin(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def remote_code(folder):
    edit(folder / "config.json", model_type="chatglm", auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})
    (folder / "modeling_evil.py").write_text(f"open({str(folder / 'canary')!r}, 'w')", encoding="utf-8")


def a_pointer(folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", encoding="utf-8")


def cut_off(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:len(data) // 2])


def a_weight_less(folder):
    state = load_file(folder / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def an_adapter(folder):
    (folder / "config.json").rename(folder / "adapter_config.json")


@pytest.mark.parametrize(("spoil", "words"), [
    (only_bin, ["pytorch_model.bin", "no safetensors", "can carry code"]),
    (remote_code, ["chatglm", "auto_map", "never run"]),
    (a_pointer, ["lm"]),
    (cut_off, ["lm"]),
    (a_weight_less, ["1 weights are missing", "layers.1.mlp.up_proj"]),
    (an_adapter, ["adapter", "merge it"]),
    (lambda f: (f / "config.json").unlink(), ["no config.json"]),
    (lambda f: (f / "config.json").write_text("{", encoding="utf-8"), ["config.json", "JSON"]),
    (lambda f: (f / "model.safetensors").unlink(), ["model.safetensors"]),
    (lambda f: edit(f / "config.json", model_type="t5"), ["t5", "not a causal language model"]),
    (lambda f: edit(f / "config.json", model_type="unheard_of"), ["unheard_of"]),
    (lambda f: edit(f / "config.json", quantization_config={"quant_method": "gptq"}), ["quantised"]),
    (lambda f: edit(f / "config.json", hidden_size=64), ["another shape"]),
    (lambda f: edit(f / "config.json", hidden_size="wide"), ["hidden_size"]),
    (lambda f: (f / "tokenizer.json").unlink(), ["no tokenizer"])])
def test_a_folder_that_cannot_be_used_is_refused_in_one_line(folder, spoil, words):
    spoil(folder)
    with refused(*words):
        config = config_for(folder)
        build_model(config, decoder_tokenizer(config))
    assert not (folder / "canary").exists()


def test_code_in_the_folder_of_a_known_architecture_is_never_run(folder):
    remote_code(folder)
    edit(folder / "config.json", model_type="qwen2")
    LanguageModel.load(str(folder))
    assert not (folder / "canary").exists()


@pytest.mark.parametrize(("kind", "settings", "words"), [
    ("bert", {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}, "not a causal model"),
    ("gemma2", {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8,
                "num_key_value_heads": 1, "final_logit_softcapping": 0.5}, "not the product of its head")])
def test_a_model_that_does_not_do_what_captioning_needs_is_refused(tmp_path, kind, settings, words):
    from transformers import AutoConfig, AutoModelForCausalLM

    save_tokenizer(tmp_path)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=400, initializer_range=0.5, **settings)).save_pretrained(tmp_path)
    with refused(words):
        LanguageModel.load(str(tmp_path))


def test_without_hub_or_transformers_the_way_out_is_named(made, monkeypatch):
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "1")
    with refused("model.decoder", "no such folder", "/no/such"):
        find_language_model("/no/such")
    with refused("model.decoder", "HF_ENDPOINT", "docs/language_model.md"):
        find_language_model("no-one/nothing-at-all")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with refused("model.decoder", "pip install 'transformers"):
        find_language_model(str(made))


# --- from the hub ----------------------------------------------------------------------------------------------------

def test_a_model_of_the_hub_is_taken_at_its_commit_and_without_its_bin(made, tmp_path, monkeypatch):
    commit, asked = "0123456789abcdef0123456789abcdef01234567", []
    cached = shutil.copytree(made, tmp_path / "models--a--b" / "snapshots" / commit)
    monkeypatch.setattr("prism.hub.ask_hub", lambda *_: None)

    def download(repo_id, name, revision, local_files_only):
        from huggingface_hub.errors import EntryNotFoundError

        asked.append((repo_id, name, revision))
        if not (cached / name).is_file():
            raise EntryNotFoundError(name)
        return str(cached / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    found = find_language_model("a/b@main")
    assert (found.path, found.revision, found.source) == (cached, commit, "a/b@main")
    assert asked[0] == ("a/b", "config.json", "main") and all(revision == commit for _, _, revision in asked[1:])
    names = {name for _, name, _ in asked}
    assert {"tokenizer.json", "generation_config.json", "README.md"} <= names and not any(n.endswith(".bin") for n in names)


# --- fingerprint and licence -----------------------------------------------------------------------------------------

def test_the_fingerprint_is_of_the_weights_and_not_of_their_files(made, folder, tmp_path):
    from transformers import AutoModelForCausalLM

    before = find_language_model(str(made)).sha256()
    model = AutoModelForCausalLM.from_pretrained(made)
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    save_tokenizer(tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert find_language_model(str(tmp_path / "shards")).sha256() == before
    state = load_file(folder / "model.safetensors")
    state["model.norm.weight"][0] += 1e-3
    save_file(state, folder / "model.safetensors")
    assert find_language_model(str(folder)).sha256() != before


@pytest.mark.parametrize(("files", "licence"), [
    ({"README.md": "---\nlicense: apache-2.0\n---\n"}, "apache-2.0"),
    ({"README.md": "---\nlicense: other\nlicense_name: qwen-research\n---\n"}, "qwen-research"),
    ({"README.md": "no head", "LICENSE": "\n  MIT License \n\nCopyright"}, "MIT License"), ({}, None)])
def test_the_licence_is_found_where_models_have_it(folder, files, licence):
    (folder / "README.md").unlink()
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    assert find_language_model(str(folder)).licence() == licence


# --- tokenizers ------------------------------------------------------------------------------------------------------

def end_of(folder) -> str:
    tokenizer = language_model_tokenizer(str(folder), False)
    again = tokenizer_from_dict(tokenizer.to_dict(), "c.pth")
    assert (again.eos_id, again.bos_id, again.pad_id) == (tokenizer.eos_id, tokenizer.bos_id, tokenizer.pad_id)
    return tokenizer._tokenizer.id_to_token(tokenizer.eos_id)


def test_a_text_ends_with_the_end_of_a_document_never_with_a_chat_marker(folder):
    assert end_of(folder) == END
    for special, end_ids in (({"eos_token": CHAT[1], "pad_token": END}, 2), ({"eos_token": CHAT[1]}, [2, 0]), ({"eos_token": CHAT[1]}, 2)):
        save_tokenizer(folder, **special)
        edit(folder / "config.json", eos_token_id=end_ids)
        assert end_of(folder) == END


def test_a_tokenizer_with_nothing_but_chat_markers_is_refused(folder):
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    (folder / "tokenizer.json").write_text(text.replace(END, "<|eot_id|>"), encoding="utf-8")
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": CHAT[1]})
    edit(folder / "config.json", model_type="llama", eos_token_id=[0, 2])
    with refused("model.decoder", "chat markers", "base model"):
        language_model_tokenizer(str(folder), False)


def test_a_model_without_pad_token_pads_with_its_end(folder):
    save_tokenizer(folder, eos_token=END)
    edit(folder / "config.json", model_type="llama")
    tokenizer = language_model_tokenizer(str(folder), False)
    assert tokenizer.pad_id == tokenizer.bos_id == tokenizer.eos_id == 0


def test_a_tokenizer_larger_than_the_model_is_refused_and_nothing_is_resized(tmp_path):
    folder = make_language_model(tmp_path / "lm", spare_rows=0)
    config = config_for(folder)
    rows = LanguageModel.load(str(folder)).model.get_input_embeddings().num_embeddings
    tokenizer = decoder_tokenizer(config)
    assert build_model(config, tokenizer).decoder.lm.get_input_embeddings().num_embeddings == rows == len(tokenizer)
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    data["added_tokens"].append({**data["added_tokens"][0], "id": rows, "content": "<|extra|>"})
    write_json(folder / "tokenizer.json", data)
    with refused("tokenizer", f"has {rows + 1} tokens", f"has {rows}"):
        build_model(config, language_model_tokenizer(str(folder), False))


def test_a_tokenizer_that_rewrites_texts_is_warned_about(folder, tmp_path, caplog):
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    data["normalizer"] = {"type": "Lowercase"}
    write_json(folder / "tokenizer.json", data)
    edit(folder / "config.json", model_type="llama")
    config = config_for(folder)
    config.data.labels_file = str(write_json(tmp_path / "labels.json", {f"s{i}": f"HER-2 {TEXTS[i % 3]}" for i in range(8)}))
    config.data.embeddings_dir = str(tmp_path / "h5")
    for i in range(8):
        write_h5(tmp_path / "h5" / f"s{i}.h5", random_tiles(3, 2560, i))
    with caplog.at_level(logging.WARNING):
        prepare_data(config.data, 0, decoder_tokenizer(config))
    assert any("7 of 7 training texts change when they are encoded" in message for message in caplog.messages)
