"""Weights of the reference Prism models by formula, and what the published checkpoint contains.

The numbers in `prism_small.npz` were produced by the reference implementation in float32 on CPU with these weights.
`prism_full_perceiver.json`: first name of each tensor of the published encoder -> [shape, further layers sharing it];
`prism_full_text.json`: name of each tensor of the text side, {} for a layer -> [shape, first and last layer or null].
"""

import json
import re
import zlib
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
SMALL = json.loads((HERE / "prism_small_manifest.json").read_text(encoding="utf-8"))
SMALL_CONFIG = SMALL["config"]["perceiver_config"]
WHOLE_CONFIG = {
    "perceiver_config": SMALL_CONFIG,
    "biogpt_config": {"vocab_size": 42384, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
                      "intermediate_size": 64, "max_position_embeddings": 64},
    "biogpt_context_dim": 48,
    "dim_latents": 64,
}


def by_formula(key: str, shape: list[int]) -> torch.Tensor:
    """The value of tensor `key`, a function of its name and shape alone."""
    seed = zlib.crc32(key.encode())
    r = torch.from_numpy(np.asarray(np.random.RandomState(seed).standard_normal(shape), dtype=np.float32))
    if key.endswith("norm.weight"):
        return 1 + 0.1 * r
    if key.endswith("latents"):
        return r
    if key == "temperature":
        return torch.tensor(np.log(1 / 0.07), dtype=torch.float32)
    return r * shape[-1] ** -0.5 if r.ndim >= 2 else 0.02 * r


def small_state(repeated: bool = True, text: bool = False) -> dict[str, torch.Tensor]:
    """State dict of the small model: shared tensors under every name or once, with or without the text side."""
    keys = {key: shape for key, shape in SMALL["keys"].items() if text or key.startswith("image_resampler.")}
    alias = {key: first for key, first in SMALL["alias"].items() if key in keys}
    return {key: by_formula(alias.get(key, key), shape) for key, shape in keys.items() if repeated or key not in alias}


def full_keys() -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Every key of the published encoder with its shape, and alias -> first name."""
    stored = json.loads((HERE / "prism_full_perceiver.json").read_text(encoding="utf-8"))
    shapes, alias = {}, {}
    for first, (shape, layers) in stored.items():
        shapes[first] = tuple(shape)
        for layer in layers:
            name = re.sub(r"layers\.\d+", f"layers.{layer}", first, count=1)
            shapes[name], alias[name] = tuple(shape), first
    return shapes, alias


def full_text_keys() -> dict[str, tuple[int, ...]]:
    """Every key of the text side of the published checkpoint with its shape."""
    stored = json.loads((HERE / "prism_full_text.json").read_text(encoding="utf-8"))
    return {name.format(layer): tuple(shape) for name, (shape, layers) in stored.items()
            for layer in (range(layers[0], layers[1] + 1) if layers else [None])}
