"""Python, the packages that are always needed, memory and disk."""

from __future__ import annotations

import ctypes
import importlib
import os
import platform
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from ..common.memory import memory_limit
from .findings import ERROR, OK, WARNING, Finding

INSTALL = "python -m pip install --no-deps -r requirements.lock, or make setup"
# What is always imported, by the names of its modules; torch is looked at on its own.
REQUIRED = ("huggingface_hub", "safetensors", "h5py", "numpy", "tokenizers", "tqdm", "yaml", "einops", "jinja2", "PIL",
            "sacrebleu", "openpyxl", "charset_normalizer", "regex")
_OLDEST = (3, 11)
_GB = 1e9
_LOW_MEMORY, _LOW_DISK = 4 * _GB, 5 * _GB


def check_python() -> Finding:
    """Its version."""
    found = f"{platform.python_version()}, {sys.executable}"
    if sys.version_info[:2] < _OLDEST:
        return Finding("Python", ERROR, found, "use Python 3.11 or newer")
    return Finding("Python", OK, found)


def check_packages(names: Iterable[str] = REQUIRED) -> Finding:
    """Whether what is always needed can be imported."""
    failed = {name: reason for name in names if (reason := import_failure(name))}
    if failed:
        text = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        return Finding("packages", ERROR, text, f"activate the environment (.venv), or install: {INSTALL}")
    return Finding("packages", OK, "all that is always needed can be imported")


def import_failure(name: str) -> str | None:
    """Why a module cannot be imported, in a few words; None if it can."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        return "not installed" if error.name == name else f"needs {error.name}, which is not installed"
    except Exception as error:  # a broken library can raise anything
        return f"cannot be imported ({type(error).__name__}: {str(error).splitlines()[0][:150] if str(error) else ''})"
    return None


def check_memory() -> Finding:
    """How much a run may take."""
    total = total_memory()
    if total is None:
        return Finding("memory", OK, "unknown on this system")
    limit = memory_limit()
    usable = total if limit is None else min(total, limit)
    limited = f" (limit of the container; the machine has {total / _GB:.0f} GB)" if usable < total else ""
    text = f"{usable / _GB:.1f} GB{limited}"
    if usable < _LOW_MEMORY:
        return Finding("memory", WARNING, text, "4 GB or more are better; else set a small model.dim and batch_size")
    return Finding("memory", OK, text)


def total_memory() -> float | None:
    """Bytes of memory of the machine; None if the system does not say."""
    if sys.platform == "win32":
        return _windows_memory()
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError, AttributeError):
        return None


def _windows_memory() -> float | None:
    """https://learn.microsoft.com/windows/win32/api/sysinfoapi/ (GetPhysicallyInstalledSystemMemory, in KiB)."""
    kilobytes = ctypes.c_ulonglong()
    found = ctypes.windll.kernel32.GetPhysicallyInstalledSystemMemory(ctypes.byref(kilobytes))  # type: ignore[attr-defined]
    return kilobytes.value * 1024.0 if found else None


def check_disk(folder: Path, what: str) -> Finding:
    """Free space and the right to write where a folder is or will be. what: For the line, such as `run folder`."""
    there = next((path for path in (folder, *folder.parents) if path.exists()), None)
    if there is None:
        return Finding("disk", ERROR, f"{what} {folder}: no such disk", "choose another folder")
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Finding("disk", ERROR, f"{what} {folder}: {there} cannot be written", "choose another folder")
    free = shutil.disk_usage(there).free
    text = f"{what} {folder}: {free / _GB:.1f} GB free"
    if free < _LOW_DISK:
        return Finding("disk", WARNING, text, "free some space: the slide cache takes 1.3 MB for each slide and view")
    return Finding("disk", OK, text)
