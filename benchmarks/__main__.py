"""Measure this machine's floors, the peers and ours in the same run, and print one table.

    python -m benchmarks [PART ...] [--captions FILE.csv] [--write FILE.md]

Parts: encoder step epochs decode reading indexing startup padding (default: these), full_size (apart: it prints lines
of its own). Takes about 15 minutes on two cores; `step` installs the peers on first use (see peers.py).
"""

from __future__ import annotations

import argparse
import datetime
import platform
import subprocess
import sys
from pathlib import Path

import torch

from . import decode, encoder, epochs, files, step
from .common import ROOT, Row

TABLE = ("encoder", "step", "epochs", "decode", "reading", "indexing", "startup", "padding")
APART = ("full_size",)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {' '.join((*TABLE, *APART))}")
    parser.add_argument("--captions", metavar="FILE.csv", help="texts to measure padding on (column text)")
    parser.add_argument("--write", metavar="FILE.md", help="also append the table to a file")
    args = parser.parse_args()
    unknown = [part for part in args.parts if part not in (*TABLE, *APART)]
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}; choose from {' '.join((*TABLE, *APART))}")
    measure = {"encoder": encoder.rows, "step": step.rows, "epochs": epochs.rows, "decode": decode.rows,
               "reading": files.reading, "indexing": files.indexing, "startup": files.startup,
               "padding": lambda: files.padding(args.captions)}
    parts = args.parts or list(TABLE)
    table = [part for part in parts if part in TABLE]
    if table:
        lines = [*_head(table), *(row.line() for part in table for row in _measured(part, measure[part]))]
        print("\n".join(lines))
        if args.write:
            with Path(args.write).open("a", encoding="utf-8") as file:
                file.write("\n".join(lines) + "\n\n")
    for part in parts:
        if part in APART:
            subprocess.run([sys.executable, "-m", f"benchmarks.{part}"], cwd=ROOT, check=True)


def _measured(part: str, rows) -> list[Row]:
    print(f"measuring {part} ...", file=sys.stderr, flush=True)
    return rows()


def _head(parts: list[str]) -> list[str]:
    """What was run on what, and the first two lines of the table."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return [f"`python -m benchmarks {' '.join(parts)}`: {names[0] if names else platform.processor()}, "
            f"{torch.get_num_threads()} threads, torch {torch.__version__}, {datetime.date.today()}", "",
            "| case | measured | against | wanted |", "|---|---|---|---|"]


if __name__ == "__main__":
    main()
