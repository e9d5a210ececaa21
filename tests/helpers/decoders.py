"""Batches over random-tiny Prism and its letters tokenizer, and a few steps of training through the real objective."""

from __future__ import annotations

import numpy as np
import torch

from finetune.common.device import Precision
from finetune.common.distributed import World
from finetune.data.batch import Batch, Collate, Sample, encode_text
from finetune.data.slides import SlideFile
from finetune.models.captioner import SlideCaptioner
from finetune.training.objective import Objective, StepLosses
from finetune.training.optim import build_optimizer
from prism.tokenizer import letters_tokenizer

LETTERS = letters_tokenizer()
SPECIAL = {"bos_id": LETTERS.bos_id, "eos_id": LETTERS.eos_id, "pad_id": LETTERS.pad_id}


def batch_of(texts: list[str]) -> Batch:
    """One slide of 4 tiles for each text."""
    rng = np.random.default_rng(0)
    return Collate(LETTERS.pad_id)([
        (Sample(SlideFile(f"s{i}", f"s{i}.h5", "embeddings", 4), encode_text(LETTERS, text, 64)[0]),
         rng.standard_normal((4, 2560)).astype(np.float32)) for i, text in enumerate(texts)])


def train_steps(model: SlideCaptioner, batch: Batch, steps: int, lr: float) -> list[StepLosses]:
    """Losses of each of some optimizer steps; the batch is two micro-batches of a step."""
    objective = Objective(model.train(), Precision("fp32", torch.device("cpu"), "test"), World())
    optimizer = build_optimizer(model.named_parameters(), lr, 0.0)
    losses = []
    for _ in range(steps):
        losses.append(objective.backward(batch.split(2), torch.amp.GradScaler("cpu", enabled=False)))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    model.eval()
    return losses
