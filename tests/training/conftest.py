"""Fixtures of the tests of training."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import kill_runs


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The working folder, beside the data of `kill_runs.SETTINGS`; Prism is a tiny one."""
    kill_runs.make_data(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("finetune.models.build.load_prism", kill_runs.tiny_prism)
    return tmp_path / "here"
