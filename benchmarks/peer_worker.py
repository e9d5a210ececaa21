"""One measurement of the peers: python -m benchmarks.peer_worker CASE JSON, with the peers first on PYTHONPATH.

Started by `peers.run_peer`; imports nothing of this repository but `benchmarks.common`. Prints one JSON line. Each case
has the name and arguments of ours in `our_worker.py`.
"""

from __future__ import annotations

import importlib.util
import json
import resource
import sys
import time
import types
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import h5py
import torch
from safetensors.torch import load_file, load_model

from .common import peak_bytes, timed

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
_ARCHITECTURE = {"random": {}, "random-tiny": {"latent_seq": 32, "perceiver_depth": 1, "transformer_depth": 1}}


def reference_encoder(prism: str) -> torch.nn.Module:
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
    return PerceiverResampler(PerceiverConfig(**_ARCHITECTURE[prism])).to(DEVICE).eval().requires_grad_(False)


def best_for_encoder() -> AbstractContextManager:
    """Autocast on a GPU; on a CPU it makes the reference slower than float32 by far."""
    return torch.autocast("cuda", torch.bfloat16, enabled=DEVICE.type == "cuda")


def half() -> AbstractContextManager:
    return torch.autocast(DEVICE.type, torch.bfloat16)


def encode(prism: str, tiles: int, slides: int, precision: str) -> dict[str, Any]:
    encoder = reference_encoder(prism)
    embeddings = torch.randn(slides, tiles, 2560, device=DEVICE)

    @torch.no_grad()
    def work(count: int = tiles) -> None:
        with best_for_encoder():
            encoder(embeddings[:, :count])

    work(1)
    peak = peak_bytes(work, DEVICE)
    return {"seconds": timed(work, DEVICE), "peak": peak}


def encode_to(tiles: int, folder: str) -> dict[str, Any]:
    """How far the reference's outputs are from ours, with the weights and tiles left in `folder`."""
    ours = load_file(Path(folder) / "ours.safetensors")
    embeddings = ours.pop("tiles")
    encoder = reference_encoder("random-tiny" if len(ours["image_latents"][0]) == 32 else "random").cpu()
    load_model(encoder, str(Path(folder) / "weights.safetensors"))
    with torch.no_grad():
        theirs = encoder(embeddings)
    return {"difference": max((theirs[name] - ours[name]).abs().max().item() for name in ours)}


def _coca(model: dict[str, int], vocabulary: int) -> torch.nn.Module:
    from coca_pytorch.coca_pytorch import CoCa

    torch.manual_seed(0)
    return CoCa(num_tokens=vocabulary, image_dim=1280, caption_loss_weight=1.0, contrastive_loss_weight=1.0,
                **model).to(DEVICE)


def step(model: dict[str, int], vocabulary: int, tokens: int) -> dict[str, Any]:
    text = torch.randint(4, vocabulary, (4, tokens + 1), device=DEVICE)
    image_tokens, found = torch.randn(4, 513, 1280, device=DEVICE), {}

    def work() -> None:
        coca = _coca(model, vocabulary)
        optimizer = torch.optim.AdamW(coca.parameters(), lr=1e-4, weight_decay=0.01)

        def one() -> None:
            with half():
                loss = coca(text, image_tokens=image_tokens, return_loss=True)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        one()
        found["seconds"] = timed(one, DEVICE, 2)

    found["peak"] = peak_bytes(work, DEVICE)
    return found


def caption(model: dict[str, int], vocabulary: int, tokens: int, slides: int, beams: int) -> dict[str, Any]:
    """Every 11th step of the greedy loop is timed; the others cost as much on average."""
    coca, image_tokens = _coca(model, vocabulary).eval(), torch.randn(slides, 513, 1280, device=DEVICE)
    times: list[float] = []

    @torch.no_grad()
    def work() -> None:
        def one(length: int) -> None:
            text = torch.ones(slides, length, dtype=torch.long, device=DEVICE)
            coca(text, image_tokens=image_tokens)[:, -1].argmax(-1)

        with half():
            one(tokens)  # casts the weights
            times.extend(timed(lambda n=n: one(n), DEVICE) for n in range(1, tokens + 1, 11))

    peak = peak_bytes(work, DEVICE)
    return {"seconds": tokens * sum(times) / len(times), "peak": peak}


def epochs(folder: str, prism: str, batch: int, tokens: int, vocabulary: int, model: dict[str, int]) -> dict[str, Any]:
    """Seconds of two epochs as they are usually written: read the H5 files, pad, encode, CoCa step, for each batch."""
    encoder, coca = reference_encoder(prism), _coca(model, vocabulary)
    optimizer = torch.optim.AdamW(coca.parameters(), lr=1e-4)
    files = sorted(Path(folder).glob("*.h5"))
    text = torch.randint(4, vocabulary, (len(files), tokens + 1), generator=torch.Generator().manual_seed(0))
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        for first in range(0, len(files), batch):
            tiles = []
            for path in files[first:first + batch]:
                with h5py.File(path, "r") as file:
                    tiles.append(torch.from_numpy(file["embeddings"][()]).float().to(DEVICE))
            mask = torch.arange(max(map(len, tiles))) < torch.tensor([[len(t)] for t in tiles])
            with torch.no_grad(), best_for_encoder():
                out = encoder(torch.nn.utils.rnn.pad_sequence(tiles, batch_first=True), mask.to(DEVICE))
            tokens_in = torch.cat([out["image_embedding"].unsqueeze(1), out["image_latents"]], dim=1)
            with half():
                loss = coca(text=text[first:first + batch].to(DEVICE), image_tokens=tokens_in, return_loss=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(coca.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


CASES = {case.__name__: case for case in (encode, encode_to, step, caption, epochs)}

if __name__ == "__main__":
    print(json.dumps(CASES[sys.argv[1]](**json.loads(sys.argv[2]))))
