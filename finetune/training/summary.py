"""The description of a run: for the log, the report and the checkpoints."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.format import RunDescription
from ..common.device import Precision
from ..common.distributed import World
from ..common.log import logger, notice
from ..common.threads import describe_threads
from ..config.schema import Config
from ..data.loader import BatchLoader
from ..data.prepare import Data
from ..models.build import describe_prism
from ..models.captioner import SlideCaptioner
from .objective import Objective
from .optim import describe_rates
from .state import TrainState

# Local paths are removed from checkpoints, which may be passed on.
_PATHS = ("data.embeddings_dir", "data.labels_file", "data.split_file", "data.sha256_file", "data.latents_cache",
          "training.output_dir", "training.log_dir", "training.init_from")


def describe_run(config: Config, data: Data, model: SlideCaptioner, precision: Precision, world: World,
                 init_from: dict[str, Any] | None = None, template: dict[str, Any] | None = None) -> RunDescription:
    """The constant part of every checkpoint of a run.

    Args:
        init_from: Of the model it started from.
        template: That its training texts follow.
    """
    prism, device = model.prism, precision.device
    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return RunDescription(
        config=_without_paths(config), tokenizer=data.tokenizer.to_dict(),
        prism={"source": prism.source, "revision": prism.revision, "sha256": prism.sha256} | describe_prism(model),
        data={"fingerprint": data.fingerprint, "test_ids": data.test_ids,
              "validation_ids": [sample.slide.slide_id for sample in data.validation],
              "tile_sums": "".join(f"{tile_sum:08x}" for tile_sum in data.tile_sums.values()),
              "slides": {"training": len(data.train), "validation": len(data.validation)},
              "texts": data.seen_texts},
        versions={"torch": str(torch.__version__), "python": platform.python_version(),
                  "threads": torch.get_num_threads(), "precision": precision.name, "device": device_name,
                  "processes": world.size}, init_from=init_from, template=template)


def _without_paths(config: Config) -> dict[str, dict[str, Any]]:
    settings = config.to_dict()
    for key in _PATHS:
        section, name = key.split(".")
        settings[section][name] = ""
    tokenizer = settings["data"]["tokenizer"]
    if not re.fullmatch(r"hf:[\w-][\w.-]*(/[\w.-]+)?|[^h].*", tokenizer):  # a folder, not a hub name
        settings["data"]["tokenizer"] = "hf:" + re.split(r"[/\\]", tokenizer.rstrip("/\\"))[-1]
    return settings


def describe_for_report(data: Data, model: SlideCaptioner, run: RunDescription) -> dict[str, str]:
    """The table of data, model and versions in report.html."""
    tiles = [sample.slide.num_tiles for sample in data.train + data.validation]
    source = str(run.prism["source"])
    if Path(source).exists():  # a folder of this disk
        source = Path(source).name
    return {
        "slides": f"{len(data.train)} training, {len(data.validation)} validation",
        "validation texts that also stand in training": f"{data.num_seen_texts} / {len(data.validation)}",
        "tiles per slide": f"{min(tiles)} - {max(tiles)}, {sum(tiles)} in all",
        "vocabulary": str(len(data.tokenizer)), "data fingerprint": str(run.data["fingerprint"]),
        "Prism": source, "Prism revision": str(run.prism["revision"]), "Prism SHA-256": str(run.prism["sha256"]),
        "trained parameters": f"{_millions_trained(model):.1f} M",
        **{name: str(value) for name, value in run.versions.items()},
    }


def log_run(config: Config, data: Data, objective: Objective, batches: BatchLoader, state: TrainState) -> None:
    """Log data, model, device, precision and steps."""
    model, precision = objective.model, objective.precision
    log_data(data)
    logger.info("Prism %s (%s), sha256 %s; %.1f M trainable parameters", config.prism.weights,
                "frozen" if config.prism.freeze else "trained", model.prism.sha256[:12], _millions_trained(model))
    if rates := describe_rates(config):
        logger.info("%s", rates)
    logger.info("device %s, precision %s (%s), %s", precision.device, precision.name, precision.reason,
                _describe_steps(config, batches, state))
    if precision.device.type == "cpu":
        logger.info("%s", describe_threads(torch.get_num_threads()))
    _log_batch_size(config, state, objective.world)
    if config.training.precision not in ("auto", precision.name):
        logger.warning("training.precision is %s, used is %s: %s", config.training.precision, precision.name,
                       precision.reason)


def _describe_steps(config: Config, batches: BatchLoader, state: TrainState) -> str:
    size = state.batch_size if config.training.max_batch_tokens is None else "some"
    return (f"{batches.order.count(0)} steps per epoch of {state.micro_batches} x {size} slides, "
            f"{100 * batches.order.padding(0):.1f} % of the text is padding")


def _log_batch_size(config: Config, state: TrainState, world: World) -> None:
    """Log the effective batch, and why it may differ from what config and processes now give."""
    effective = str(state.batch_size * state.micro_batches)
    if config.training.max_batch_tokens is not None:
        effective = f"up to {config.training.max_batch_tokens * state.micro_batches} tokens"
    logger.info("effective batch %s over %d processes; the contrastive loss compares all its slides and texts",
                effective, world.size)
    if state.micro_batches != config.training.accum_freq * world.size:
        notice("the run began with %d processes: its effective batch is kept",
               state.micro_batches // config.training.accum_freq)


def log_data(data: Data) -> None:
    """Log the numbers of slides, tiles and tokens."""
    tiles = [slide.num_tiles for slide in data.slides]
    logger.info("%d training and %d validation slides, %d to %d tiles each; vocabulary of %d", len(data.train),
                len(data.validation), min(tiles), max(tiles), len(data.tokenizer))


def _millions_trained(model: SlideCaptioner) -> float:
    return sum(parameter.numel() for parameter in model.trained_parameters()) / 1e6
