"""One measurement of the peers: python -m benchmarks.peer_worker CASE JSON, with the peers first on PYTHONPATH.

Started by `peers.run_peer`; imports nothing of this repository. Prints one JSON line.
"""

from __future__ import annotations

import importlib.util
import json
import resource
import sys
import time
import types
from pathlib import Path
from typing import Any

import h5py
import torch


def reference_encoder() -> torch.nn.Module:
    """The published Prism slide encoder, of prism-embedder. Its package imports a slide reader, torchvision and more
    at the top, so only the model's own files are loaded."""
    root = Path(importlib.util.find_spec("prism_embedder").submodule_search_locations[0])
    for name in ("prism_embedder", "prism_embedder.models", "prism_embedder.models.prism"):
        module = types.ModuleType(name)
        module.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = module
    from prism_embedder.models.prism.configuring_prism import PerceiverConfig
    from prism_embedder.models.prism.perceiver import PerceiverResampler

    torch.manual_seed(0)
    return PerceiverResampler(PerceiverConfig()).eval().requires_grad_(False)


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def epochs(folder: str, batch: int, tokens: int, words: int, model: dict[str, int], precision: str) -> dict[str, Any]:
    """Seconds of two epochs as they are usually written: read the H5 files, pad, encode, CoCa step, for each batch."""
    from coca_pytorch.coca_pytorch import CoCa

    encoder = reference_encoder()
    coca = CoCa(num_tokens=words, image_dim=1280, caption_loss_weight=1.0, contrastive_loss_weight=1.0, **model)
    optimizer = torch.optim.AdamW(coca.parameters(), lr=1e-4)
    files = sorted(Path(folder).glob("*.h5"))
    text = torch.randint(4, words, (len(files), tokens + 1), generator=torch.Generator().manual_seed(0))
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        for first in range(0, len(files), batch):
            tiles = []
            for path in files[first:first + batch]:
                with h5py.File(path, "r") as file:
                    tiles.append(torch.from_numpy(file["embeddings"][()]).float())
            mask = torch.arange(max(map(len, tiles))) < torch.tensor([[len(t)] for t in tiles])
            with torch.no_grad():
                out = encoder(torch.nn.utils.rnn.pad_sequence(tiles, batch_first=True), mask)
            tokens_in = torch.cat([out["image_embedding"].unsqueeze(1), out["image_latents"]], dim=1)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = coca(text=text[first:first + batch], image_tokens=tokens_in, return_loss=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(coca.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds, "peak_gb": peak_gb()}


CASES = {"epochs": epochs}

if __name__ == "__main__":
    print(json.dumps(CASES[sys.argv[1]](**json.loads(sys.argv[2]))))
