"""Two lines of JSON: what a file was made for, with a CRC-32 of the second line, and what it holds."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

from ..common.files import read_regular, write_atomically


def read_summed(path: Path, made_for: Any) -> Any:
    """What `write_summed` has written for the same; None if the file was made for something else.

    Raises:
        OSError: There is no such file, or it cannot be read.
        ValueError: It is damaged.
    """
    first, _, content = read_regular(path).partition(b"\n")
    about = _parsed(first)
    if not isinstance(about, dict) or "made_for" not in about:
        raise ValueError
    if about["made_for"] != made_for:
        return None
    if about.get("crc32") != zlib.crc32(content):
        raise ValueError
    return _parsed(content)


def why_unread(error: Exception) -> str:
    """What to tell of an error of `read_summed`."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return "it is damaged, or of an earlier version"


def _parsed(text: bytes) -> Any:
    """Raises ValueError."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError from None


def write_summed(path: Path, made_for: Any, content: Any) -> None:
    """Write plain JSON into a folder that exists. Raises OSError: the existing file is then intact."""
    data = json.dumps(content).encode()
    about = {"made_for": made_for, "crc32": zlib.crc32(data)}
    write_atomically(path, json.dumps(about).encode() + b"\n" + data)
