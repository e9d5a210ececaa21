"""The peers to measure against, in a folder of their own: CoCa-pytorch 0.1.0 and prism-embedder 1.1.1 from PyPI.

Their `coca_pytorch` would hide ours, so they run in processes of their own: `run_peer` starts `peer_worker.py`, which
imports nothing of this repository.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from .common import ROOT, in_process

SITE = ROOT / ".bench" / "peers"
# --no-deps: they ask for numpy 1, torchvision, xformers and more, of which the model code needs nothing
PACKAGES = ["CoCa-pytorch==0.1.0", "prism-embedder==1.1.1", "environs==15.2.0", "marshmallow==4.4.0",
            "python-dotenv==1.2.4", "requests==2.34.2", "charset-normalizer==3.5.2", "urllib3==2.8.0",
            "certifi==2026.10.19.post1"]


def install() -> Path:
    """The folder with the peers, installed on first use; transformers and numpy are those of the lock."""
    done = SITE / ".done"
    if not done.exists() or done.read_text(encoding="utf-8") != "\n".join(PACKAGES):
        print(f"installing the peers into {SITE}", flush=True)
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", SITE,
                        *PACKAGES], check=True)
        done.write_text("\n".join(PACKAGES), encoding="utf-8")
    return SITE


def run_peer(case: str, **arguments: Any) -> dict[str, Any]:
    """Run a case of `peer_worker.py` in a process of its own; returns what it measured."""
    return in_process("benchmarks.peer_worker", case, json.dumps(arguments), path=install())


def run_ours(case: str, **arguments: Any) -> dict[str, Any]:
    """Run a case of `our_worker.py` in a process of its own; returns what it measured."""
    return in_process("benchmarks.our_worker", case, json.dumps(arguments))


def run_both(case: str, rounds: int, **arguments: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What `rounds` runs of ours and of the peer measured; they take turns."""
    runs = [(run_ours(case, **arguments), run_peer(case, **arguments)) for _ in range(rounds)]
    return [ours for ours, _ in runs], [theirs for _, theirs in runs]
