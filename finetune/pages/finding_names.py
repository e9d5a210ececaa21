"""What the pages call a finding: in Chinese by its first Chinese phrase in the shipped dictionaries.

The dictionaries are read as data: `evaluation`, which reads texts by them, is no room that `pages` knows.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from ..common.errors import UserError
from ..config.yaml_file import load_plain_yaml

_DICTIONARIES = Path(__file__).resolve().parent.parent / "evaluation" / "dictionaries"
_CHINESE = re.compile("[\u4e00-\u9fff]")


def finding_label(name: str) -> tuple[str, str]:
    """(Chinese, English) of a finding; one of somebody's own dictionary has its own name."""
    return _chinese_names().get(name, name), name.replace("_", " ")


@cache
def _chinese_names() -> dict[str, str]:
    names: dict[str, str] = {}
    for path in sorted(_DICTIONARIES.glob("*.yaml")):
        for name, phrases in _phrases_of(path).items():
            chinese = [phrase for phrase in phrases if _CHINESE.search(phrase)]
            if chinese:
                names.setdefault(name, chinese[0].replace("…", ""))
    return names


def _phrases_of(path: Path) -> dict[str, list[str]]:
    """{finding: its phrases} of a dictionary; none of a damaged one."""
    try:
        entries = load_plain_yaml(path)
    except UserError:
        return {}
    return {name: entry["phrases"] for name, entry in entries.items() if isinstance(entry, dict)}
