"""Caption the slides of a folder or file: choose them, caption them, write records, print scores."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checkpoints.nearest_index import NEAREST, read_nearest, same_weights
from ..common.errors import UserError
from ..common.files import expand
from ..common.log import logger
from ..common.progress import progress
from ..config.schema import GenerationOptions
from ..data.batch import encode_text
from ..data.labels import Label
from ..data.slides import Slide, find_files, open_case
from .captioner import Captioner
from .ground_truth import GroundTruth
from .records import _output_path, _print_record, _print_scores, _record, write_records

_BATCH = 8  # slides decoded together


def caption_slides(captioner: Captioner, cases: dict[str, list[list[str]]], texts: list[str],
                   options: GenerationOptions,
                   embeddings: dict[str, np.ndarray] | None = None) -> Iterator[dict[str, Any]]:
    """Records of {id: the files of each of its slides}; `error` says why one cannot be used, the others go on."""
    group: list[Slide] = []
    data = captioner.config.data
    for case_id, slides in progress(cases.items(), "captioning", len(cases), "slide"):
        try:
            group.append(open_case(case_id, slides, data.h5_key, data.image_dim, data.wanted_encoder))
        except UserError as error:
            yield _record(case_id, error=error.line())
        if len(group) == _BATCH:
            yield from _describe_each(captioner, group, texts, options, embeddings)
            group = []
    yield from _describe_each(captioner, group, texts, options, embeddings)


def select_slides(captioner: Captioner, embeddings_file: str | None, embeddings_dir: str | None,
                  labels: dict[str, Label] | None, split: str) -> dict[str, list[list[str]]]:
    """{id: the files of each of its slides}: one file; or of a folder all, the labelled, or the held-out ones."""
    if embeddings_file is not None:
        path = expand(embeddings_file)
        return {path.stem: [[str(path)]]}
    files = find_files(embeddings_dir or "")
    wanted = {i: [paths] for i, paths in files.items()}
    if labels is not None:
        wanted = {i: [files[name] for name in label.slides] for i, label in labels.items()
                  if files.keys() >= set(label.slides)}
        if absent := len(labels) - len(wanted):
            logger.warning("%d of %d labels have no H5 file and are left out", absent, len(labels))
    if split != "all":
        if not (held_out := set(captioner.held_out[split])):
            raise UserError(f"--split {split}", "this model names no such slides: it had none, or is no checkpoint",
                            "leave --split out, or give best_model.pth of a run that had them")
        wanted = {i: paths for i, paths in wanted.items() if i in held_out}
        if wanted and len(wanted) < len(held_out):
            logger.warning("%d of %d slides of --split %s are not found and left out%s", len(held_out) - len(wanted),
                           len(held_out), split, "" if labels else ": cases of several slides need --labels_file")
    if not wanted:
        raise UserError(embeddings_dir, f"no slide to caption (split {split})", "check the ids in the labels file")
    return wanted


def run_inference(args: argparse.Namespace, options: GenerationOptions) -> int:
    """What inference.py does after parsing: caption, print, write, score; 2 if a slide failed, else 0."""
    output = _output_path(args.output)
    truth = GroundTruth.load(args)
    captioner = Captioner.of_flags(args, options)
    paths = select_slides(captioner, args.embeddings_file, args.embeddings_dir, truth.labels, args.split)
    texts = _texts_to_score(args.text, captioner)
    extras = RecordExtras.load(args, captioner, truth.prompts)
    records: list[dict[str, Any]] = []
    embeddings: dict[str, np.ndarray] = {}
    try:
        for record in caption_slides(captioner, paths, texts, options, embeddings):
            if record["error"] is None:
                extras.add(record, captioner, embeddings[record["id"]])
            records.append(record)
            _print_record(record)
    finally:  # Ctrl+C, or no memory for a slide: what is done is kept
        if output:
            write_records(records, output)
    if truth.labels is not None or truth.classes is not None:
        _print_scores(truth.answers(captioner, records, embeddings), extras.common_text(),
                      sum(r.get("abstained", False) for r in records))
    failed = [r for r in records if r["error"] is not None]
    if failed:
        raise UserError(failed[0]["id"], f"{len(failed)} of {len(records)} slides failed",
                        "their records say why", [r["error"] for r in failed[:20]])
    return 0


@dataclass
class RecordExtras:
    """What a record gets besides its caption: class probabilities, the nearest training texts, abstention."""

    prompts: dict[str, list[str]] | None
    count: int
    abstain_below: float
    index: dict[str, Any] | None  # nearest.pt, if there is one of the same training data

    @classmethod
    def load(cls, args: argparse.Namespace, captioner: Captioner, prompts: dict[str, list[str]] | None) -> RecordExtras:
        """Raises UserError if nearest slides are asked for and there is no index of these weights."""
        about, checkpoint = captioner.about, args.checkpoint and expand(args.checkpoint)
        index = read_nearest(checkpoint, about) if about and checkpoint else None
        if args.nearest and (index is None or not same_weights(index, about)):
            raise UserError("--nearest", f"no {NEAREST} of these weights beside {checkpoint or 'Prism'}",
                            "use the best_model.pth of a finished run, in its run folder")
        if args.nearest and index["embeddings"] is None:
            raise UserError("--nearest", "trained without the contrastive loss, this model has no space of slides",
                            "train with model.contrastive_loss_weight above 0")
        if args.abstain_below and captioner.temperature is None:
            logger.warning("confidence is not calibrated: no validation slides in training, or not its best_model.pth")
        return cls(prompts, args.nearest, args.abstain_below, index)

    def add(self, record: dict[str, Any], captioner: Captioner, embedding: np.ndarray) -> None:
        """embedding: the slide's unit vector (dim_latents,)."""
        if self.prompts:
            odds = captioner.class_probabilities(embedding[None], self.prompts)[0]
            record["classes"] = dict(zip(self.prompts, odds.tolist(), strict=True))
        if self.count:
            record["nearest"] = self.nearest(embedding)
        if record["confidence"] < self.abstain_below:
            record |= {"caption": None, "abstained": True}

    def nearest(self, embedding: np.ndarray) -> list[dict[str, Any]]:
        """The training slides nearest to a unit vector (dim_latents,): `id`, `similarity` (cosine) and `texts`."""
        cosines = self.index["embeddings"].numpy() @ embedding
        return [{"id": self.index["ids"][i], "similarity": float(cosines[i]), "texts": self.index["texts"][i]}
                for i in np.argsort(-cosines, kind="stable")[:self.count]]

    def common_text(self) -> str | None:
        """The most common training text, None if it is not known."""
        return Counter(t[0] for t in self.index["texts"]).most_common(1)[0][0] if self.index else None


def _texts_to_score(texts: list[str], captioner: Captioner) -> list[str]:
    """The texts without repeats; warns of what the vocabulary does not know. Raises UserError for an empty one."""
    for text in dict.fromkeys(texts):
        if not text.strip():
            raise UserError("--text", "is empty", "give a text, or leave --text out")
        ids, was_cut = encode_text(captioner.tokenizer, text, captioner.config.data.max_seq_len)
        if unknown := ids.count(captioner.tokenizer.unk_id):
            logger.warning("--text %r: %d of its %d tokens are not in the vocabulary", text, unknown, len(ids) - 2)
        if was_cut:
            logger.warning("--text %r is longer than data.max_seq_len and is cut", text)
    return list(dict.fromkeys(texts))


def _describe_each(captioner: Captioner, group: list[Slide], *how: Any) -> Iterator[dict[str, Any]]:
    """Describe a group together; if one of its files turns out to be unreadable, each alone."""
    if not group:
        return
    try:
        yield from captioner.describe(group, *how)
    except UserError as error:
        if len(group) == 1:
            yield _record(group[0].slide_id, error=error.line())
        else:
            for slide in group:
                yield from _describe_each(captioner, [slide], *how)
