"""Paths as users write them, and files that are whole at any moment."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def expand(path: str) -> Path:
    """`path` with `~` and environment variables expanded, absolute."""
    import os.path

    return Path(os.path.abspath(os.path.expandvars(os.path.expanduser(path))))


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file in one step. Raises OSError; what was there is then unharmed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    data = content if isinstance(content, bytes) else content.encode("utf-8", "replace")  # lone surrogates of JSON
    try:
        temporary.unlink(missing_ok=True)  # of a process of this number that died
        with open(temporary, "xb") as file:
            file.write(data)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
