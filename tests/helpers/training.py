"""A tiny captioner with batches, optimizer and loop parts; one big batch on one process as the reference."""

from __future__ import annotations

import copy
import functools
import socket
from functools import partial

import torch

from coca_pytorch import CoCa
from finetune.common.device import Precision
from finetune.common.distributed import World
from finetune.data.batch import Batch
from finetune.data.tokenizer import VocabTokenizer
from finetune.models.captioner import SlideCaptioner
from finetune.training.loop import Parts
from finetune.training.objective import Objective
from finetune.training.optim import build_optimizer, warmup_cosine
from finetune.training.run_log import RunLog
from finetune.training.validation import Validator
from prism import PerceiverConfig, PrismSlideEncoder

CPU = torch.device("cpu")
TOKENIZER = VocabTokenizer(list("甲乙丙丁戊己庚"))  # 11 tokens, as the tiny model has


def tiny_model(caption_weight: float = 1.0, contrastive_weight: float = 1.0) -> SlideCaptioner:
    torch.manual_seed(0)
    prism = PrismSlideEncoder(PerceiverConfig(latent_seq=3, latent_dim=16, context_dim=8, mhsa_heads=2,
                                              perceiver_depth=1, transformer_depth=1)).freeze()
    coca = CoCa(dim=16, num_tokens=11, unimodal_depth=1, multimodal_depth=1, dim_latents=8, image_dim=16,
                num_img_queries=2, dim_head=8, heads=2, caption_loss_weight=caption_weight,
                contrastive_loss_weight=contrastive_weight)
    return SlideCaptioner(prism, coca, "latents")


def a_batch(seed: int, slides: int, lengths: list[int] | None = None) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    lengths = lengths or [5] * slides
    ids = torch.randint(4, 11, (slides, max(lengths) + 1), generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    return Batch([f"s{seed}_{i}" for i in range(slides)], torch.randn(slides, 4, 8, generator=generator),
                 torch.ones(slides, 4, dtype=torch.bool), ids[:, :-1] * mask, ids[:, 1:] * mask, mask)


def joined(first: Batch, second: Batch) -> Batch:
    length = max(first.text.shape[1], second.text.shape[1])

    def pad(t):
        return torch.nn.functional.pad(t, (0, length - t.shape[1]))

    return Batch(first.ids + second.ids, *(torch.cat([getattr(first, k), getattr(second, k)])
                                           for k in ("tile_embeddings", "tile_mask")),
                 *(torch.cat([pad(getattr(first, k)), pad(getattr(second, k))]) for k in ("text", "labels", "text_mask")))


class ListBatches(list):
    """Steps of one batch each, or of several if these are lists, as `BatchLoader` gives them."""

    def epoch(self, epoch: int, start: int = 0):
        return (step if isinstance(step, list) else [step] for step in self[start:])

    def count(self, epoch: int) -> int:
        return len(self)


def parts_of(model, tmp_path, batches=(), validation=None, saved=None, *, observers=(), max_length=None, peak_lr=1e-2,
             **more) -> Parts:
    """What trains `model`: steps of `batches`, a cosine from `peak_lr` without warm-up, states kept in `saved`."""
    optimizer = build_optimizer(model.named_parameters(), 1e-2, 0.1)
    scaler = more.pop("scaler", torch.amp.GradScaler("cpu", enabled=False))
    objective = Objective(model, Precision("fp32", CPU, "test"), more.pop("world", World()))
    settings = {"epochs": 2, "grad_clip_norm": 1.0} | more
    learning_rate = partial(warmup_cosine, total_steps=settings["epochs"] * len(batches), peak=peak_lr, warmup=0.0)
    validator = Validator(objective, ListBatches(validation), TOKENIZER, observers, max_length) if validation else None
    return Parts(objective, optimizer, scaler, ListBatches(batches), learning_rate, validator, RunLog(tmp_path),
                 lambda state, best: saved.append(copy.deepcopy(state)) if saved is not None else None,
                 lambda: False, **settings)


def gradients(objective: Objective, micro_batches: list) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    model = objective.model
    model.zero_grad(set_to_none=True)
    losses = objective.backward(micro_batches, torch.amp.GradScaler("cpu", enabled=False))
    named = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {k: v for k, v in vars(losses).items() if k != "bad_ids" and v != {}}, named


def plain_gradients(model, batch) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """One forward and backward pass over the whole batch, as a plain single process computes it."""
    model.zero_grad(set_to_none=True)
    tokens = model.image_tokens(batch.tile_embeddings, batch.tile_mask)
    losses = model.decoder.compute_losses(batch.text, batch.labels, text_mask=batch.text_mask, image_tokens=tokens)
    losses.loss.backward()
    return ({"caption_loss": losses.caption_loss.item(), "contrastive_loss": losses.contrastive_loss.item()},
            {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


def everything(batches: list):
    """All micro-batches as one batch."""
    return functools.reduce(joined, batches)


def objective_of(world: World, chunk: int = 7) -> Objective:
    """chunk: rows of the loss are taken one or two at a time."""
    return Objective(tiny_model(2.0, 0.5), Precision("fp32", CPU, "test"), world, chunk=chunk)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
