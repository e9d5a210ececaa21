"""What a terminal shows before the first step of a run and after its last: what trains on what, and what came of it.

The details of the same are in training.log (`summary.log_run`).
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import torch

from ..checkpoints.format import BEST, Checkpoint
from ..common.caveats import caveats
from ..common.device import Precision
from ..common.log import notice
from ..common.run_folder import REPORT
from ..common.score_table import LAST_EPOCH, label
from ..common.visible import visible
from ..config.schema import Config, ModelConfig
from ..data.loader import BatchLoader
from ..data.prepare import Data
from ..data.splits import groups_of
from ..models.captioner import SlideCaptioner
from ..pages.run_report import answer_of
from .objective import Objective
from .run_files import describe_sizes
from .state import TrainState

_LABEL = 11  # columns of the names of the rows
_READING = ("id_column", "text_column", "slide_column", "split_column", "encoding")  # keys and flags of the same name
_SIZES = ("dim", "unimodal_depth", "multimodal_depth")


def announce_start(config: Config, data: Data, objective: Objective, batches: BatchLoader, state: TrainState,
                   checkpoint: Checkpoint | None) -> None:
    """Show what will be trained on what, and where it goes."""
    model = objective.model
    notice("training a slide captioner", style="bold")
    show_rows([
        ("data", f"{config.data.embeddings_dir} with {config.data.labels_file}"),
        ("slides", _slides(config, data)),
        ("texts", _texts(data)),
        ("model", _model(config, model)),
        ("training", _training(config, batches, state)),
        ("device", _device(objective.precision, objective.world.size)),
        ("files", f"{config.training.output_dir} ({REPORT}, {BEST}); details in "
                  f"{Path(config.training.log_dir, 'training.log')}"),
    ])
    if checkpoint:
        notice("resumed from %s, after epoch %d of %d", checkpoint.path.name, state.epoch, config.training.epochs,
               style="bold")
    for _, english in caveats(config.prism.weights, data.seen_texts):
        notice("note: %s", english, style="yellow", indent=2)


def show_rows(rows: Iterable[tuple[str, str]]) -> None:
    """Show rows of a name and a text, the texts in one column."""
    for name, text in rows:
        notice("%s", f"  {name:<{_LABEL}}{visible(text)}", indent=_LABEL + 2)


def _slides(config: Config, data: Data) -> str:
    sides = {"training": data.train, "validation": data.validation}
    counts = []
    for name, samples in sides.items():
        patients = groups_of([sample.slide.slide_id for sample in samples], config.data.group_pattern)
        of = f" of {len(set(patients))} patients" if patients else ""
        counts.append(f"{len(samples)} {name}{of}")
    if data.test:
        counts.append(f"{len(data.test)} test, kept aside")
    tiles = [slide.num_tiles for slide in data.slides]
    return f"{', '.join(counts)}; {min(tiles)} to {max(tiles)} tiles each"


def _texts(data: Data) -> str:
    texts = [text for sample in data.train for text in sample.references]
    longest = max(sample.most_tokens for sample in data.train)
    return (f"{len(set(texts))} different ones in training, up to {longest} tokens; vocabulary of "
            f"{len(data.tokenizer)} tokens")


def _model(config: Config, model: SlideCaptioner) -> str:
    trained = sum(parameter.numel() for parameter in model.trained_parameters()) / 1e6
    prism = "frozen" if config.prism.freeze else "trained too"
    return f"{_decoder(config.model)}, {trained:.1f} M trained weights; Prism {config.prism.weights} ({prism})"


def _decoder(model: ModelConfig) -> str:
    if model.language_model is not None:
        adapters = f", LoRA of rank {model.lora_rank}" if model.lora_rank else ""
        return f"language model {model.language_model} behind {model.num_img_queries} image vectors{adapters}"
    if model.decoder == "prism":
        return "Prism's text decoder"
    dim, unimodal, multimodal = (getattr(model, name) for name in _SIZES)
    return f"CoCa {model.size} (dim {dim}, {unimodal} + {multimodal} layers)"


def _training(config: Config, batches: BatchLoader, state: TrainState) -> str:
    training = config.training
    size = f"{state.batch_size * state.micro_batches} slides"
    if training.max_batch_tokens is not None:
        size = f"up to {training.max_batch_tokens * state.micro_batches} tokens"
    keeps = f"the epoch of the best validation {label(training.monitor)}"
    if training.monitor == LAST_EPOCH:
        keeps = "the last epoch"
    return (f"{training.epochs} epochs of {batches.order.count(0)} steps of {size}, learning rate "
            f"{training.learning_rate:g}; keeps {keeps}")


def _device(precision: Precision, num_processes: int) -> str:
    device = precision.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"threads: {torch.get_num_threads()}"
    processes = f", {num_processes} processes" if num_processes > 1 else ""
    return f"{device} ({name}), {precision.name}{processes}"


def announce_end(config: Config, folder: Path, state: TrainState, data: Data) -> None:
    """Show how good the model is on the held-out slides, where the report is, and what to do next."""
    kept = "last" if config.training.monitor == LAST_EPOCH else "best"
    notice("finished: %s epoch %d, files in %s%s", kept, state.best_epoch, config.training.output_dir,
           describe_sizes(folder), style="bold", indent=2)
    answer = answer_of(folder)
    rows = [("result", answer.sentence[1]), ("next", answer.next[1]), ("report", report_path(config))]
    if config.trains_captions:
        rows.append(("captions", _caption_command(config, has_validation=bool(data.validation))))
    show_rows(rows)


def report_path(config: Config) -> str:
    """Of report.html, below the run folder as it was given: a log that is passed on names no folder of this disk."""
    return Path(config.training.output_dir, REPORT).as_posix()


def _caption_command(config: Config, has_validation: bool) -> str:
    """What captions the validation slides of the run and scores them, or all if it has none, for the shell it was
    started from."""
    program = ["python", "inference.py"]
    if sys.argv[0].startswith("prism-coca "):  # the installed command
        program = ["prism-coca", "caption"]
    words = [*program, "--checkpoint", config.training.output_dir, "--embeddings_dir", config.data.embeddings_dir]
    if has_validation:
        words += ["--labels_file", config.data.labels_file, *_reading_flags(config), "--split", "val"]
    words += ["--output", "captions.jsonl"]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def _reading_flags(config: Config) -> list[str]:
    """The flags that read the labels as the run did, of those keys that are set."""
    values = {name: getattr(config.data, name) for name in _READING}
    return [word for name, value in values.items() if value is not None for word in (f"--{name}", value)]
