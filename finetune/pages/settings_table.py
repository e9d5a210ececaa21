"""Settings, data, model and versions of a run as the tables at the end of report.html."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config.schema import Config
from .chinese import ABOUT, ABOUT_VALUES
from .held_out import Text
from .run_state import without_folders

_PATH_KEYS = re.compile(r"_(dir|file|cache)$|^weights$")  # of places on this disk: a report is made to be passed on


def settings(config: Config | None) -> list[tuple[str, list[tuple[str, str, bool]]]]:
    """[(section, [(key, value, whether it is not the default)])]; empty without a config."""
    if config is None:
        return []
    values, sections = config.to_dict(), []
    for section, defaults in Config().to_dict().items():
        rows = []
        for key, default in defaults.items():
            value = values[section][key]
            rows.append((key, _shown_value(key, value), value != default))
        sections.append((section, rows))
    return sections


def _shown_value(key: str, value: Any) -> str:
    """A config value as text, without the folders of this disk."""
    if not isinstance(value, str):
        return json.dumps(value)
    if _PATH_KEYS.search(key):
        return Path(value).name
    if key == "tokenizer":  # hf:FOLDER
        return without_folders(value)
    return value


def about_rows(about: Mapping[str, Any]) -> list[tuple[Text, Text]]:
    """[(key, value)] of what the last start says; a key without a Chinese name keeps its own."""
    rows = []
    for key, value in about.items():
        english = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        chinese = english
        for word, translation in ABOUT_VALUES.items():
            chinese = chinese.replace(word, translation)
        rows.append(((ABOUT.get(key, key), key), (chinese, english)))
    return rows
