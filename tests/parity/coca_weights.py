"""Weights of the reference CoCa by formula.

The numbers in `coca_small.npz` were produced by CoCa-pytorch 0.1.0 in float32 on CPU with these weights.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

from coca_pytorch import CoCa

HERE = Path(__file__).parent
SMALL = json.loads((HERE / "coca_small_manifest.json").read_text(encoding="utf-8"))


def reference() -> dict[str, torch.Tensor]:
    """Inputs and outputs of the reference model."""
    with np.load(HERE / "coca_small.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def by_formula(key: str, constructed: torch.Tensor) -> torch.Tensor:
    """The value of tensor `key`, a function of its name and shape alone (buffers stay as constructed)."""
    key = "token_emb.weight" if key == "to_logits.1.weight" else key
    if key.endswith(("beta", "inv_freq")):
        return constructed
    if key == "temperature":
        return torch.ones_like(constructed)
    shape = constructed.shape
    seed = zlib.crc32(key.encode())
    r = torch.from_numpy(np.asarray(np.random.RandomState(seed).standard_normal(shape), dtype=np.float32))
    if key.endswith("gamma"):
        return 1 + 0.1 * r
    if key in ("img_queries", "text_cls_token"):
        return r
    return 0.5 * r if key == "token_emb.weight" else r * shape[-1] ** -0.5


def small_coca(**changes: object) -> CoCa:
    """The small reference model, in training mode; `changes` replace constructor arguments."""
    model = CoCa(**{**SMALL["config"], **changes})
    model.load_state_dict({key: by_formula(key, value) for key, value in model.state_dict().items()})
    return model
