"""The names of slides: without folders, without the endings of slide files and feature files."""

from __future__ import annotations

import re

FEATURE_SUFFIXES = (".h5", ".hdf5", ".pt", ".npy", ".npz")

# Endings of whole-slide images, Chinese scanners (.sdpc, .dyqx, .kfb, .mds, .tron) among them.
_SLIDE_SUFFIXES = (
    ".svs", ".svslide", ".tif", ".tiff", ".ndpi", ".ndpis", ".vms", ".vmu", ".mrxs", ".sdpc", ".dyqx", ".kfb", ".kfbf",
    ".qptiff", ".scn", ".bif", ".dcm", ".dicom", ".isyntax", ".i2syntax", ".czi", ".vsi", ".mds", ".mdsx", ".tron",
    ".afi", ".zarr", ".btf", ".jp2", ".jpg", ".jpeg", ".png")
_ENDING = re.compile("(" + "|".join(map(re.escape, (*FEATURE_SUFFIXES, *_SLIDE_SUFFIXES))) + r"|\.ome)$", re.IGNORECASE)


def slide_name(key: str) -> str:
    """The name of a slide or case: an id without one ending of a feature file."""
    for suffix in FEATURE_SUFFIXES:
        if key.lower().endswith(suffix):
            return key[: -len(suffix)]
    return key


def path_parts(name: str) -> list[str]:
    """The folders and the file of a Windows or POSIX path, without drive, `.` and empty parts."""
    parts = re.split(r"[/\\]", name)
    return [part for part in parts if part not in ("", ".") and not re.fullmatch("[A-Za-z]:", part)]


def base_name(name: str) -> str:
    """The last part of a path without any ending of a slide file: `D:\\a\\x.svs` is x."""
    parts = path_parts(name)
    return without_endings(parts[-1]) if parts else ""


def without_endings(name: str) -> str:
    """A file name without the endings of slide and feature files: x of `x.svs.h5` and `x.ome.tiff`."""
    while (shorter := _ENDING.sub("", name)) not in ("", name):
        name = shorter
    return name
