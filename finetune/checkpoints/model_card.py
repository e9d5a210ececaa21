"""The model card of an exported folder (https://huggingface.co/docs/hub/model-cards), for people first."""

from __future__ import annotations

from typing import Any

from ..common.caveats import caveats
from ..common.run_folder import METRICS, read_records
from ..common.score_table import LAST_EPOCH, VALIDATION, canonical_name, find_score, higher_is_better
from .format import Checkpoint

_DERIVED = """\
**Weights derived from Prism's are in this folder.** Prism's licence, CC BY-NC-ND 4.0, does not allow sharing \
derivatives of its weights: do not distribute this folder."""
_NOT_DERIVED = """\
This folder contains no weights of Prism; it needs them to run, under their own licence (CC BY-NC-ND 4.0: research, \
not commercial use). What you may do with the weights here depends on your training data too."""
_LANGUAGE_MODEL = """
The texts are written by the language model {source}, licence: {licence}. {relation}"""
_RELATIONS = {True: "It is needed to run this folder (`--language_model`, SHA-256 {sha256}) and is not in it.",
              False: "**The weights in this folder are derived from it**: its licence holds for them."}


def model_card(checkpoint: Checkpoint, name: str) -> str:
    """The text of README.md for the folder `name`."""
    model, prism = checkpoint.config["model"], checkpoint.prism
    slides = checkpoint.data.get("slides") or {}
    source = prism.get("source")
    base = f"base_model: {source}\n" if source and "/" in source else ""
    is_frozen = checkpoint.config["prism"]["freeze"]
    is_derived = "prism" in (model.get("decoder"), model.get("init")) or not is_frozen
    has_vocabulary = checkpoint.tokenizer.get("type") in ("vocab", "bpe")
    vocabulary = " The vocabulary does contain the words of the training texts." if has_vocabulary else ""
    num_parameters = sum(weight.numel() for weight in checkpoint.model.values())
    versions = ", ".join(f"{key} {value}" for key, value in checkpoint.versions.items())
    return f"""---
license: other
license_name: see-the-licence-section
pipeline_tag: image-to-text
tags: [histopathology, whole-slide-image, captioning]
{base}---
# {name}

Writes a caption for a whole-slide image from the Virchow embeddings of its tiles, and scores texts for it. Trained with
prism-coca on top of Prism (https://arxiv.org/abs/2405.10254). For research; not a medical device.

{_caveats(checkpoint)}## Use
```
python inference.py --checkpoint {name} --prism {source} --embeddings_file SLIDE.h5 --text "..." "..."
```
or in Python: `Captioner.load("{name}")` of `finetune.inference.captioner`. This is no model of the package
transformers: `AutoModel.from_pretrained` does not open it.

The weights of Prism must be those it was trained with (SHA-256 of the slide encoder {prism.get("sha256")}).

## Data
{slides.get("training", "an unknown number of")} training slides, {slides.get("validation", "an unknown number of")} \
validation slides; their ids and texts are not in this folder.{vocabulary}
Fingerprint of ids, texts, tile counts and split:
`{checkpoint.data.get("fingerprint")}`.
{_start(checkpoint)}
## Scores
After the epoch of this checkpoint; `val_`: on the validation slides, the others on the training slides:

| score | meaning | value |
|---|---|---|
{_score_rows(checkpoint)}

## Train again
```
python train_with_config.py --config config.yaml --set data.embeddings_dir=H5_FOLDER data.labels_file=LABELS.json
```
{num_parameters / 1e6:.1f} M trained parameters; {versions}.

## Licence
{_DERIVED if is_derived else _NOT_DERIVED}
{_language_model(checkpoint)}
"""


def _start(checkpoint: Checkpoint) -> str:
    """The paragraph on the model that the run started from; empty where there was none."""
    start = checkpoint.init_from
    if not start:
        return ""
    return (f"\nStarted from the weights of another model: {start.get('source')}, epoch {start.get('epoch')} (SHA-256 "
            f"{start.get('sha256')}).\n")


def _caveats(checkpoint: Checkpoint) -> str:
    """What takes away the meaning of the scores below, as a paragraph each."""
    found = caveats(checkpoint.prism.get("source"), checkpoint.data.get("texts"))
    return "".join(f"> **{english}**\n\n" for _, english in found)


def _language_model(checkpoint: Checkpoint) -> str:
    """What the licence of the language model means for this folder; empty without one."""
    about = checkpoint.prism
    if "text_source" not in about:
        return ""
    relation = _RELATIONS[checkpoint.config["model"]["freeze_decoder"]].format(sha256=about.get("text_sha256"))
    licence = about.get("text_licence") or "not named in its folder, look it up before you pass anything on"
    return _LANGUAGE_MODEL.format(source=about["text_source"], licence=licence, relation=relation)


def _epoch_scores(checkpoint: Checkpoint) -> dict[str, Any]:
    """The line of the checkpoint's epoch in metrics.jsonl beside it, under the current names of the scores.

    Where the line is gone, the best value so far of the score that chooses the best model.
    """
    progress = checkpoint.progress
    lines = read_records(checkpoint.path.with_name(METRICS)) if checkpoint.path else ()
    of_epoch = [record for record in lines if record.get("epoch") == progress.get("epoch")]
    if of_epoch:
        return {canonical_name(name): value for name, value in of_epoch[-1].items()}
    return {"epoch": progress.get("epoch")} | _best_so_far(checkpoint)


def _best_so_far(checkpoint: Checkpoint) -> dict[str, Any]:
    """{best_NAME: value} of the score that chooses the best model; empty where that is the last epoch."""
    monitor = canonical_name(str(checkpoint.config["training"].get("monitor", "val_loss")))
    if monitor == LAST_EPOCH:
        return {}
    best = checkpoint.progress.get("best_loss")
    if higher_is_better(monitor) and isinstance(best, (int, float)):
        best = -best  # the state holds it with its sign changed
    return {f"best_{monitor}": best}


def _score_rows(checkpoint: Checkpoint) -> str:
    """The rows of the table: losses, and what was measured on the validation slides."""
    rows = []
    for name, value in _epoch_scores(checkpoint).items():
        is_shown = name == "epoch" or "loss" in name or name.startswith((VALIDATION, "best_"))
        if is_shown and isinstance(value, (int, float)):
            rows.append(f"| {name} | {_meaning(name)} | {value:.4g} |")
    return "\n".join(rows)


def _meaning(name: str) -> str:
    """The meaning of a score and which direction is better; empty for parts of a custom loss."""
    score = find_score(name.removeprefix("best_"))
    return f"{score.english}, {score.better} is better" if score else ""
