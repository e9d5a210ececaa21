"""What events.jsonl says about a run: how it stands, how long it took, its warnings."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ..common.run_folder import Record
from .chinese import warning_in_chinese

_MAX_WARNINGS, _MAX_CHARACTERS = 50, 600
_FOLDERS = re.compile(r"(?<![\w./\\~])(?:[A-Za-z]:[/\\]|\\\\|~?/(?!/))"  # C:\, \\server\, / or ~/, no https://
                      r"(?:[^\s/\\:;]+(?: [^\s/\\:;]+)*[/\\])*(?=[^\s/\\])")


@dataclass(frozen=True)
class RunWarning:
    """A warning of the run in Chinese and English, and how often it came."""

    chinese: str
    english: str
    count: int


@dataclass(frozen=True)
class RunState:
    """How a run stands.

    Attributes:
        status: finished, stopped or an error; empty while it runs, or if it was killed.
        time: Of the last event that started or ended it.
        resumed: How often it was started again.
        about: What the last start says about data, Prism, model and versions.
        seconds: It has run in all its starts; 0 if the file does not say.
        warnings: The commonest first.
    """

    status: str
    time: str
    resumed: int
    about: dict[str, Any]
    seconds: float
    warnings: list[RunWarning]


def read_state(events: list[Record]) -> RunState:
    """The state of a run from its events."""
    starts = [event for event in events if event.get("kind") == "start"]
    about = starts[-1].get("about") if starts else None
    if not isinstance(about, dict):
        about = {}
    last = next((event for event in reversed(events) if event.get("kind") in ("start", "end")), {})
    status = without_folders(str(last.get("status", ""))) if last.get("kind") == "end" else ""
    return RunState(status, str(last.get("time", "")), max(len(starts) - 1, 0), about, _seconds(events),
                    _warnings(events))


def _seconds(events: list[Record]) -> float:
    """From each start to the last event before the next one, summed: a killed run writes no end."""
    spans: list[list[datetime]] = []
    for event in events:
        moment = _moment(event.get("time"))
        if moment is None:
            continue
        if event.get("kind") == "start" or not spans:
            spans.append([])
        spans[-1].append(moment)
    return sum(max((span[-1] - span[0]).total_seconds(), 0) for span in spans)  # a clock may have been set back


def _moment(text: Any) -> datetime | None:
    try:
        return datetime.strptime(text, "%Y-%m-%d %H:%M:%S")
    except (ValueError, TypeError):
        return None


def _warnings(events: list[Record]) -> list[RunWarning]:
    texts = [str(event.get("text")) for event in events if event.get("kind") == "warning"]
    counts = Counter(without_folders(text)[:_MAX_CHARACTERS] for text in texts)
    return [RunWarning(warning_in_chinese(text), text, count) for text, count in counts.most_common(_MAX_WARNINGS)]


def without_folders(text: str) -> str:
    """`text` with only the last part of each absolute path in it: a report is made to be passed on."""
    return _FOLDERS.sub("", text)
