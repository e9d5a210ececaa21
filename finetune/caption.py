"""From a checkpoint and H5 files to captions and scores."""

from __future__ import annotations

import argparse
import csv
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .batching import encode_text, pad_tiles
from .checkpoint import load_run
from .config import Config, GenerationOptions, expand, from_dict, load_plain_yaml
from .embed import embed_slides, embed_texts
from .errors import UserError, printable, say
from .findings import FindingDictionary
from .finish import NEAREST, read_nearest, same_weights, temperature_of
from .folder import read_folder
from .generate import confidences, generate
from .labels import Label, load_labels
from .model import SlideCaptioner, build_model, check_architecture, whole_prism
from .optim import Precision, resolve_device, resolve_precision
from .prism_decoder import PrismCoCa
from .progress import progress
from .runlog import logger
from .scores import Answers, evaluate
from .tiles import Slide, find_files, open_case, read_tiles
from .tokenizer import Tokenizer, tokenizer_from_dict

_BATCH = 8  # slides decoded together


@dataclass
class Captioner:
    """A trained model that scores and captions slides.

    temperature: of its confidence, None if the checkpoint was not calibrated. about: `data` and `progress` of the
    checkpoint.
    """

    model: SlideCaptioner
    tokenizer: Tokenizer
    config: Config
    precision: Precision
    held_out: dict[str, list[str]]  # ids of the sides val and test
    temperature: float | None = None
    about: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, checkpoint: str | Path, prism: str | None = None, device: str = "auto") -> Captioner:
        """Rebuild the model of a checkpoint from that one file, or folder of `finetune.export`, and Prism's weights.

        prism: where Prism's weights are, if not where they were in training; they must be the same weights (SHA-256).
        """
        path = expand(str(checkpoint))
        content = read_folder(path) if path.is_dir() else load_run(path)
        config = from_dict(content["config"], str(checkpoint))
        tokenizer = tokenizer_from_dict(content["tokenizer"], str(checkpoint))
        config.prism.weights = prism or config.prism.weights
        trained_prism = None if config.prism.freeze else content["prism"].get("architecture")
        check_architecture(config, tokenizer, content["prism"], content["model"], str(checkpoint))
        model = build_model(config, tokenizer, trained_prism)
        frozen = {"sha256": model.prism.sha256} if config.prism.freeze else {}
        for key, found in (frozen | {"text_sha256": getattr(model.coca, "sha256", None)}).items():
            if content["prism"].get(key) != found:
                raise UserError(checkpoint, f"was trained with other Prism weights ({content['prism'].get('source')}, "
                                f"{key} {str(content['prism'].get(key))[:12]}; {config.prism.weights} has "
                                f"{str(found)[:12]})", "give the same weights with --prism")
        model.load_saved_state(content["model"], str(checkpoint))
        where = resolve_device(device)
        return cls(model.to(where).eval(), tokenizer, config, resolve_precision("auto", where),
                   {side: [*ids] if isinstance(ids := content["data"].get(key), list) else []
                    for side, key in (("val", "validation_ids"), ("test", "test_ids"))},
                   temperature_of(content), {key: content.get(key) or {} for key in ("data", "progress")})

    @classmethod
    def of_prism(cls, prism: str | None = None, device: str = "auto") -> Captioner:
        """Prism itself, with its own text side and nothing trained. prism: its weights (default: from the hub)."""
        config = Config()
        config.prism.weights = prism or config.prism.weights
        whole, where = whole_prism(config), resolve_device(device)
        config.data.image_dim = whole.tile_dim
        config.data.max_seq_len = whole.prism_config.biogpt_config.max_position_embeddings
        model = SlideCaptioner(whole.slide_encoder(), PrismCoCa(whole), config.prism.image_tokens)
        return cls(model.to(where).eval(), whole.tokenizer, config, resolve_precision("auto", where),
                   {"val": [], "test": []})

    @classmethod
    def of_flags(cls, args: argparse.Namespace, options: GenerationOptions) -> Captioner:
        """What `--checkpoint` or `--prism_only` names. Raises UserError also for captions longer than it can write."""
        captioner = cls.of_prism(args.prism, args.device) if args.prism_only else \
            cls.load(args.checkpoint, args.prism, args.device)
        if isinstance(coca := captioner.model.coca, PrismCoCa):
            positions = coca.text_decoder.config.max_position_embeddings
            if options.max_length > positions:
                raise UserError("--max_length", f"{options.max_length}, Prism's decoder has {positions} positions",
                                f"give {positions} or less")
        return captioner

    @torch.no_grad()
    def describe(self, slides: list[Slide], texts: list[str], options: GenerationOptions,
                 embeddings: dict[str, np.ndarray] | None = None) -> list[dict[str, Any]]:
        """One record per slide: caption, cosine similarity to each text, and with several texts their probabilities.

        embeddings: gets {slide id: its unit vector (dim_latents,) in the space of `embed_texts`}.
        """
        coca, device = self.model.coca, self.precision.device
        tiles, mask = pad_tiles([read_tiles(s) for s in slides])
        with self.precision.autocast():
            image_tokens = self.model.image_tokens(tiles.to(device), mask.to(device))
            special = {name: getattr(self.tokenizer, name) for name in ("bos_id", "eos_id", "pad_id")}
            captions = generate(coca, image_tokens, options, **special)
            sure = confidences(coca, image_tokens, captions, options.max_length, temperature=self.temperature or 1.0,
                               **special)
            images = embed_slides(coca, image_tokens)
        if not (finite := np.isfinite(images).all(1)).all():
            raise UserError(slides[int(finite.argmin())].slide_id, "its tiles make the model overflow",
                            "check how its features were extracted")
        cosines = torch.from_numpy(images @ self.embed_texts(texts).T) if texts else None  # (B, texts)
        if embeddings is not None:
            embeddings.update(zip((s.slide_id for s in slides), images, strict=True))
        records = []
        for i, (slide, ids) in enumerate(zip(slides, captions, strict=True)):
            record = _record(slide.slide_id, caption=self.tokenizer.decode(ids), confidence=sure[i])
            if cosines is not None:
                record["similarity"] = dict(zip(texts, cosines[i].tolist(), strict=True))
                if len(texts) > 1:
                    odds = (cosines[i] * coca.logit_scale.float().cpu()).softmax(0)
                    record["probability"] = dict(zip(texts, odds.tolist(), strict=True))
            records.append(record)
        return records

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors (texts, dim_latents)."""
        with self.precision.autocast():
            return embed_texts(self.model.coca, self.tokenizer, texts, self.config.data.max_seq_len)

    @torch.no_grad()
    def class_probabilities(self, embeddings: np.ndarray, prompts: dict[str, list[str]]) -> np.ndarray:
        """Slides (n, dim_latents) -> (n, classes): softmax over all prompts, summed per class, as Prism does it."""
        cosines = embeddings @ self.embed_texts([text for texts in prompts.values() for text in texts]).T
        odds = (torch.from_numpy(cosines) * self.model.coca.logit_scale.float().cpu()).softmax(1)
        return torch.stack([part.sum(1) for part in odds.split([len(t) for t in prompts.values()], 1)], 1).numpy()


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


def write_records(records: list[dict[str, Any]], path: Path) -> None:
    """Write records as .jsonl, .json or .csv, by the ending. Raises UserError if the file cannot be written."""
    try:
        if path.suffix == ".csv":
            _write_csv(records, path)
            return
        lines = [_json_line(r) for r in records]
        text = "[\n" + ",\n".join(lines) + "\n]\n" if path.suffix == ".json" else "".join(f"{line}\n" for line in lines)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(path, f"cannot be written ({error.strerror})", "give another --output") from None


def _write_csv(records: list[dict[str, Any]], path: Path) -> None:
    texts = list(dict.fromkeys(text for r in records for text in r["similarity"]))  # a failed slide has none
    rows = [[r["id"], r["caption"], r["error"], *(r["similarity"].get(t) for t in texts), r["confidence"]]
            for r in records]
    with open(path, "w", newline="", encoding="utf-8-sig") as file:  # Excel takes UTF-8 only with the mark
        csv.writer(file).writerows([["id", "caption", "error", *(f"similarity: {t}" for t in texts), "confidence"],
                                    *([_cell(c) for c in row] for row in rows)])


@dataclass
class Truth:
    """What is known of the slides, to score against: reference texts and classes by id, prompts, findings."""

    labels: dict[str, Label] | None
    prompts: dict[str, list[str]] | None
    classes: dict[str, str] | None
    findings: FindingDictionary | None

    @classmethod
    def load(cls, args: argparse.Namespace) -> Truth:
        """Raises UserError for files that cannot be used, and for flags without those they need."""
        for flag, needed in (("findings", "labels_file"), ("classes_file", "prompts")):
            if getattr(args, flag) and not getattr(args, needed):
                raise UserError(f"--{flag}", f"needs --{needed}", f"add --{needed} FILE")
        prompts = load_prompts(args.prompts) if args.prompts else None
        labels, classes = (_usable_labels(path) if path else None for path in (args.labels_file, args.classes_file))
        classes = {i: label.text for i, label in classes.items()} if classes is not None else None
        if classes and (unknown := sorted(set(classes.values()) - set(prompts or ()))):
            raise UserError(args.classes_file, f"class {unknown[0]!r} has no prompt", f"add it to {args.prompts}")
        return cls(labels, prompts, classes,
                   FindingDictionary.load(args.findings) if args.findings else None)

    def answers(self, captioner: Captioner, records: list[dict[str, Any]],
                embeddings: dict[str, np.ndarray]) -> Answers | None:
        """The records that can be scored; None if there are none."""
        known = [r for r in records if r["caption"] is not None
                 and r["id"] in (self.classes or {} if self.labels is None else self.labels)]
        if not known:
            return None
        answers = Answers([r["caption"] for r in known], findings=self.findings)
        images = np.stack([embeddings[r["id"]] for r in known])
        if self.labels is not None:
            answers.references = [list(self.labels[r["id"]].texts) for r in known]
            answers.texts = list(dict.fromkeys(text for several in answers.references for text in several))
            answers.similarity = images @ captioner.embed_texts(answers.texts).T
        if self.classes is not None:
            names = list(self.prompts)
            answers.class_probabilities = captioner.class_probabilities(images, self.prompts)
            true = [self.classes.get(r["id"]) for r in known]
            answers.true_classes = np.array([-1 if c is None else names.index(c) for c in true])
            if set(true) == {None}:
                logger.warning("none of the %d slides has a class in --classes_file: compare the ids", len(true))
        return answers


def _usable_labels(path: str) -> dict[str, Label]:
    """The labels that can be used; warns of the others. Raises UserError if none can."""
    labels, problems = load_labels(path)
    if problems:
        first = next(iter(problems))
        if not labels:
            raise UserError(path, f"{first!r}: {problems[first]}", 'write {"id": "text"}')
        logger.warning("%d labels of %s cannot be used and are left out, such as %r: %s", len(problems), path, first,
                       problems[first])
    return labels


def load_prompts(path: str) -> dict[str, list[str]]:
    """{class: its prompts} of a YAML or JSON file. Raises UserError."""
    prompts = load_plain_yaml(path)
    if not isinstance(prompts, dict) or len(prompts) < 2 or not all(
            isinstance(texts, list) and texts and all(isinstance(t, str) and t.strip() for t in texts)
            for texts in prompts.values()):
        raise UserError(path, "holds no prompts", "write class: [prompt, ...] for two or more classes")
    return prompts


def run_inference(args: argparse.Namespace, options: GenerationOptions) -> int:
    """What inference.py does after parsing: caption, print, write, score; 2 if a slide failed, else 0."""
    output = _output_path(args.output)
    truth = Truth.load(args)
    captioner = Captioner.of_flags(args, options)
    paths = select_slides(captioner, args.embeddings_file, args.embeddings_dir, truth.labels, args.split)
    texts = _texts_to_score(args.text, captioner)
    extras = Extras.load(args, captioner, truth.prompts)
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
class Extras:
    """What a record gets besides its caption: class probabilities, the nearest training texts, abstention."""

    prompts: dict[str, list[str]] | None
    count: int
    abstain_below: float
    index: dict[str, Any] | None  # nearest.pt, if there is one of the same training data

    @classmethod
    def load(cls, args: argparse.Namespace, captioner: Captioner, prompts: dict[str, list[str]] | None) -> Extras:
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


def _print_scores(answers: Answers | None, common_text: str | None, abstained: int) -> None:
    """A table for people, then all of it on one line for programs."""
    if answers is None:
        say(f"summary: {json.dumps({'slides': 0, 'abstained': abstained})}")
        return
    report = evaluate(answers, common_text)
    say(f"scores of {len(answers.captions)} slides, with 95 % intervals; {abstained} abstained:", *report.lines(),
        report.signature())
    say(f"summary: {json.dumps(report.to_dict() | {'abstained': abstained}, ensure_ascii=False)}")


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


def _print_record(record: dict[str, Any]) -> None:
    if record["error"] is not None:
        return  # told at the end, on stderr
    said = "none, confidence too low" if record["caption"] is None else f"caption: {printable(record['caption'])}"
    say(f"{printable(record['id'])}\t{said}\n\tconfidence {record['confidence']:.4f}")
    for text, cosine in record["similarity"].items():
        probability = record["probability"].get(text)
        say(f"\tsimilarity {cosine:.4f}" + (f"  probability {probability:.4f}" if probability is not None else "")
            + f"  {printable(text)}")
    for name, probability in record.get("classes", {}).items():
        say(f"\tclass probability {probability:.4f}  {printable(name)}")
    for near in record.get("nearest", ()):
        say(f"\tnearest {near['similarity']:.4f}  {printable(near['id'])}  {printable(near['texts'][0])}")


def _output_path(path: str | None) -> Path | None:
    """The output path, before any work is done for it. Raises UserError for another ending or a missing folder."""
    if path is None:
        return None
    target = expand(path)
    if target.suffix not in (".jsonl", ".json", ".csv"):
        raise UserError(target, f"ending {target.suffix!r} is unknown", "use .jsonl, .json or .csv")
    if not target.parent.is_dir():
        raise UserError(target.parent, "no such folder", "make it first")
    if target.is_dir():
        raise UserError(target, "is a folder", "give the path of a file")
    return target


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


def _record(slide_id: str, caption: str | None = None, error: str | None = None,
            confidence: float | None = None) -> dict[str, Any]:
    return {"id": slide_id, "caption": caption, "similarity": {}, "probability": {}, "confidence": confidence,
            "error": error}


def _json_line(record: dict[str, Any]) -> str:
    """JSON on one line for every reader: what is not printable, such as U+2028, stays escaped."""
    text = json.dumps(record, ensure_ascii=False)
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def _cell(value: Any) -> Any:
    """A spreadsheet runs a cell that starts like this as a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t") else value
