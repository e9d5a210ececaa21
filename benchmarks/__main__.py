"""Measure hardware limits, peers and our code in the same run; print the tables and write them to RESULTS.md.

    python -m benchmarks [PART ...] [--captions FILE.csv] [--small]

Parts: encoder step decode epochs reading indexing startup scaling threads loader inference padding (default: these),
full_size (apart: it prints lines of its own), gpu (apart: all that only a machine with one shows, in under ten
minutes), learning, language_model, confidence and fields (apart: `python -m benchmarks learning --help`). It takes
about 40 minutes on two cores; the peers are installed on first use (see peers.py).
"""

from __future__ import annotations

import argparse
import datetime
import platform
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch

from . import (
    captioner,
    confidence,
    encoder,
    epochs,
    fields,
    files,
    gpu,
    inference,
    language_model,
    learning,
    loader,
    scaling,
    threads,
)
from .common import HEADINGS, ROOT, Row
from .peers import install

RESULTS = ROOT / "benchmarks" / "RESULTS.md"
TABLE = {"encoder": encoder.rows, "step": captioner.step, "decode": captioner.decode, "epochs": epochs.rows,
         "reading": files.reading, "indexing": files.indexing, "startup": files.startup,
         "scaling": scaling.rows, "threads": threads.rows, "loader": loader.rows, "inference": inference.rows,
         "gpu": gpu.rows}
OWN_FLAGS = {"learning": learning.table, "language_model": language_model.table,
             "confidence": confidence.table, "fields": fields.table}  # these need no peers
PARTS = (*TABLE, "padding", "full_size")
BY_DEFAULT = tuple(part for part in PARTS if part not in ("gpu", "full_size"))
_WITH_PEERS = {"encoder", "step", "decode", "epochs", "scaling"}


def main() -> None:
    own = OWN_FLAGS.get(sys.argv[1]) if len(sys.argv) > 1 else None
    if own:
        section, is_kept = own(sys.argv[2:])
        print(f"\n{section}")
        if is_kept:
            _keep(sys.argv[1], section)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {' '.join(PARTS)}")
    parser.add_argument("--captions", metavar="FILE.csv", help="texts to measure padding on (column text)")
    parser.add_argument("--small", action="store_true", help="only check that every case runs; do not write RESULTS.md")
    args = parser.parse_args()
    if unknown := [part for part in args.parts if part not in PARTS]:
        parser.error(f"unknown part {unknown[0]!r}; choose from {' '.join(PARTS)}")
    parts = args.parts or BY_DEFAULT
    if "gpu" in parts and not args.small:
        gpu.require_device()
    if "full_size" in parts:
        subprocess.run([sys.executable, "-m", "benchmarks.full_size"], cwd=ROOT, check=True)
    if _WITH_PEERS.intersection(parts):
        install()
    shown: list[str] = []
    # --small is not about time: run two at once
    with ThreadPoolExecutor(2 if args.small else 1) as pool:
        tables = pool.map(partial(_measure, args), (part for part in parts if part != "full_size"))
        for part, table in tables:
            shown.append(table)
            print(f"\n{table}", flush=True)
            if not args.small and (part != "padding" or args.captions):
                _keep(part, table)
    if any(gpu.FAILED in table for table in shown):
        sys.exit(1)


def _measure(args: argparse.Namespace, part: str) -> tuple[str, str]:
    """The part and its table."""
    print(f"measuring {part} ...", file=sys.stderr, flush=True)
    return part, _table(part, files.padding(args.captions) if part == "padding" else TABLE[part](args.small))


def _keep(part: str, table: str) -> None:
    RESULTS.write_text(with_part(RESULTS.read_text(encoding="utf-8"), part, table), encoding="utf-8")


def with_part(text: str, part: str, table: str) -> str:
    """RESULTS.md with the section of a part replaced; a new one is appended after the last."""
    section = re.compile(rf"^### {part}\n.*?(?=^##|\Z)", re.MULTILINE | re.DOTALL)
    new = f"### {part}\n{table}\n\n"
    if section.search(text):
        return section.sub(lambda _: new, text)
    first, *rest = re.split(r"(?=^## What falls short)", text, maxsplit=1, flags=re.MULTILINE)
    return first + new + "".join(rest)


def _table(part: str, rows: list[Row]) -> str:
    """The command, machine and date, then the rows."""
    return "\n".join([f"`python -m benchmarks {part}{' --captions FILE.csv' * (part == 'padding')}`: {_machine()}, "
                      f"torch {torch.__version__}, {datetime.date.today()}", "",
                      f"| {' | '.join(HEADINGS)} |", "|---" * len(HEADINGS) + "|", *(row.line() for row in rows)])


def _machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
