"""What records are made from, as hashes: the model, the options, the files of a slide."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from prism import GenerationOptions, hash_tensors

from .captioner import Captioner
from .nearest import TrainingSlides
from .options import InferenceOptions
from .record_file import Source

_LENGTH = 12  # hexadecimal digits of a hash in a record
_DATA = ("max_seq_len", "image_dim", "h5_key", "tile_encoder")


def source_of(captioner: Captioner, options: InferenceOptions, generation: GenerationOptions, texts: list[str],
              prompts: dict[str, list[str]] | None, training: TrainingSlides | None) -> Source:
    """The model and the options of a job. Where the model lies, and as which kind of file, does not count."""
    config, model = captioner.config, captioner.model
    about_model = {
        "trained": hash_tensors(model.saved_state()),
        "frozen": [model.prism.sha256 if config.prism.freeze else None, model.decoder.describe()],
        "image_tokens": config.prism.image_tokens,
        "data": {name: getattr(config.data, name) for name in _DATA},
        "tokenizer": captioner.tokenizer.to_dict(),
        "temperature": captioner.temperature,
    }
    uses_training = options.nearest > 0 or captioner.rerank_with is not None or captioner.judge is not None
    how = {
        "generation": dataclasses.asdict(generation),
        "precision": captioner.precision.name,
        "texts": texts,
        "prompts": prompts,
        "nearest": options.nearest,
        "rerank": captioner.rerank_with is not None,
        "judge": captioner.judge and captioner.judge.to_dict(),
        "training": [training.index.get(key) for key in ("fingerprint", "step")] if uses_training else None,
        "abstain_below": options.thresholds.to_json(),
    }
    if options.findings:
        how["findings"] = options.findings
    if captioner.form is not None:
        # False: as of slides without labels in earlier versions, where those with labels had other probabilities
        how["template"] = [captioner.form.template.to_dict(), captioner.form.temperature, False]
    return Source(_hash(about_model), _hash(how))


def slide_source(files: list[list[str]], references: tuple[str, ...] = ()) -> str:
    """Of the files of a case: names, sizes and times of change. Not their folder, so that it may be moved.

    Args:
        references: That the caption is compared with, if any.
    """
    found = []
    for path in (path for paths in files for path in paths):
        # FILE.h5/ID is a dataset of a shared file
        file = path if os.path.exists(path) else os.path.dirname(path)
        try:
            stat = os.stat(file)
            found.append((Path(path).name, stat.st_size, stat.st_mtime_ns))
        except OSError:
            found.append((Path(path).name, None, None))
    return _hash([found, references] if references else found)


def _hash(value: Any) -> str:
    """Of anything that JSON can hold."""
    content = json.dumps(value, sort_keys=True, default=str).encode("utf-8", "surrogatepass")
    return hashlib.sha256(content).hexdigest()[:_LENGTH]
