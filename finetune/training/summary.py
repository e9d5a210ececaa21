"""What a run says about itself: in the log, in the report and in its checkpoints."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import Any

import torch

from ..common.device import Precision
from ..common.distributed import World
from ..common.log import logger
from ..config.schema import Config
from ..data.prepare import Data
from ..models.build import describe_prism
from ..models.captioner import SlideCaptioner
from .loop import Parts
from .state import TrainState

# Where things lie on this disk is of no use in a checkpoint, which others may see.
_PATHS = ("data.embeddings_dir", "data.labels_file", "data.split_file", "data.sha256_file", "data.latents_cache",
          "training.output_dir", "training.log_dir")


def _about(config: Config, data: Data, model: SlideCaptioner, precision: Precision, world: World) -> dict[str, Any]:
    """What every checkpoint says about its run: nothing of the user's disk."""
    prism = model.prism
    public = config.to_dict()
    for key in _PATHS:
        section, name = key.split(".")
        public[section][name] = ""
    if not re.fullmatch(r"hf:[\w-][\w.-]*(/[\w.-]+)?|[^h].*", public["data"]["tokenizer"]):  # a folder, not a hub name
        public["data"]["tokenizer"] = "hf:" + re.split(r"[/\\]", public["data"]["tokenizer"].rstrip("/\\"))[-1]
    return {
        "config": public,
        "tokenizer": data.tokenizer.to_dict(),
        "prism": {"source": prism.source, "revision": prism.revision, "sha256": prism.sha256} | describe_prism(model),
        "data": {"fingerprint": data.fingerprint, "test_ids": data.test_ids,
                 "validation_ids": [s.slide.slide_id for s in data.validation],
                 "slides": {"training": len(data.train), "validation": len(data.validation)}},
        "versions": {"torch": str(torch.__version__), "python": platform.python_version(),
                     "threads": torch.get_num_threads(), "precision": precision.name,
                     "device": _device_name(precision.device), "processes": world.size},
    }


def _for_the_report(data: Data, model: SlideCaptioner, about: dict[str, Any]) -> dict[str, str]:
    """What report.html says was trained on what."""
    tiles = [s.slide.num_tiles for s in data.train + data.validation]
    prism, versions = about["prism"], about["versions"]
    trained = sum(p.numel() for p in model.trained_parameters())
    return {
        "slides": f"{len(data.train)} training, {len(data.validation)} validation",
        "tiles per slide": f"{min(tiles)} - {max(tiles)}, {sum(tiles)} in all",
        "vocabulary": str(len(data.tokenizer)), "data fingerprint": str(about["data"]["fingerprint"]),
        "Prism": Path(str(prism["source"])).name if Path(str(prism["source"])).exists() else str(prism["source"]),
        "Prism revision": str(prism["revision"]), "Prism SHA-256": str(prism["sha256"]),
        "trained parameters": f"{trained / 1e6:.1f} M", **{name: str(value) for name, value in versions.items()},
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


def _announce(config: Config, data: Data, parts: Parts, state: TrainState, checkpoint: Path | None) -> None:
    _announce_data(data)
    model, precision, world = parts.model, parts.objective.precision, parts.objective.world
    trained = sum(p.numel() for p in model.trained_parameters())
    logger.info("Prism %s (%s), sha256 %s; %.1f M parameters train", config.prism.weights,
                "frozen" if config.prism.freeze else "trained", model.prism.sha256[:12], trained / 1e6)
    order, training = parts.batches.order, config.training
    size = str(state.batch_size * state.micro_batches)
    if training.max_batch_tokens is not None:
        size = f"up to {training.max_batch_tokens * state.micro_batches} tokens"
    logger.info("device %s, precision %s (%s), %d steps an epoch of %d x %s slides, %.1f %% of the text is padding",
                precision.device, precision.name, precision.reason, order.count(0), state.micro_batches,
                state.batch_size if training.max_batch_tokens is None else "some", 100 * order.padding(0))
    logger.info("effective batch %s: every pair is compared with all others of it; %d processes", size, world.size)
    if state.micro_batches != training.accum_freq * world.size:
        logger.info("the run began with %d processes: its effective batch stays",
                    state.micro_batches // training.accum_freq)
    if config.training.precision not in ("auto", precision.name):
        logger.warning("training.precision is %s, used is %s: %s", config.training.precision, precision.name,
                       precision.reason)
    if checkpoint:
        logger.info("resumed from %s", checkpoint.name)


def _announce_data(data: Data) -> None:
    tiles = [s.num_tiles for s in data.slides]
    logger.info("%d training and %d validation slides, %d to %d tiles each; vocabulary of %d", len(data.train),
                len(data.validation), min(tiles), max(tiles), len(data.tokenizer))
