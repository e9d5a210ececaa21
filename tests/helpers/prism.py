"""Prism folders as the hub has them, and a hub of this test."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub
import torch
from huggingface_hub import errors
from safetensors.torch import save_file

from tests.parity.prism_weights import WHOLE_CONFIG


def put(folder: Path, state: dict, name: str = "model.safetensors") -> Path:
    """A model folder as the hub has it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**WHOLE_CONFIG, "model_type": "prism", "biogpt_frozen_weights": True, "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(state, folder / name) if name.endswith(".safetensors") else torch.save(state, folder / name)
    return folder


def play_hub(monkeypatch, folder: Path, ask=None) -> list:
    """`ask`: the error that one request for the repository meets. Returns the downloads asked for."""
    asked = []

    def metadata(url, **_):
        if ask:
            raise ask

    def download(repo_id, name, revision=None, local_files_only=False):
        asked.append((name, revision))
        if not (folder / name).exists():
            raise errors.LocalEntryNotFoundError("not here") if local_files_only else errors.EntryNotFoundError("no")
        return str(folder / name)

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", metadata)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return asked
