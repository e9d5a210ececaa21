"""From the user's folder and JSON to samples: match, check, split, build the vocabulary."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from .batching import Sample, encode_text
from .config import DataConfig, expand
from .errors import UserError
from .labels import load_labels, split_ids
from .manifest import read_manifest
from .runlog import logger
from .scan import bad_contents
from .tiles import BadSlide, SlideFile, find_files, index_slides
from .tokenizer import VocabTokenizer

_MAX_UNKNOWN = 0.3  # above this share of unknown tokens a vocabulary was made for other texts


@dataclass
class Data:
    """What a run trains on. `fingerprint` covers ids, texts, tile counts and the split: equal data, equal value."""

    train: list[Sample]
    validation: list[Sample]
    tokenizer: VocabTokenizer
    fingerprint: str


def prepare_data(config: DataConfig, seed: int, tokenizer: VocabTokenizer | None = None,
                 manifest: Path | None = None) -> Data:
    """Match labels and H5 files by id, split, and encode the texts.

    tokenizer: of the run that is resumed; None builds one from the training texts. manifest: file of the headers that
    an earlier run has read. Raises UserError listing all bad labels and files at once, unless `data.on_bad` is skip and
    they are few.
    """
    labels, slides = _usable(config, manifest)
    texts = {s.slide_id: labels[s.slide_id] for s in slides}
    train_ids, val_ids = split_ids(list(texts), config.val_split, seed)
    if not train_ids:
        raise UserError(config.embeddings_dir, "no slide to train on", "compare the ids with the file names")
    if not val_ids:
        logger.warning("no validation slides (data.val_split is 0): best_model.pth is the last one")
    by_id = {s.slide_id: s for s in slides}
    _warn_of_twins(by_id, set(val_ids))
    if repeated := len(train_ids) - len({texts[i] for i in train_ids}):
        logger.warning("%d of %d training texts repeat another one: they are no negatives of each other",
                       repeated, len(train_ids))
    tokenizer = tokenizer or VocabTokenizer.build(texts[i] for i in train_ids)
    return Data(_samples(train_ids, by_id, texts, tokenizer, config.max_seq_len, "training"),
                _samples(val_ids, by_id, texts, tokenizer, config.max_seq_len, "validation"),
                tokenizer, _fingerprint(slides, texts, val_ids))


def scan_contents(data: Data) -> None:
    """Read every tile of every slide. Raises one UserError that lists all unreadable or non-finite ones."""
    bad = bad_contents([s.slide for s in data.train + data.validation], None)
    if bad:
        path, first = next(iter(bad.items()))
        raise UserError(path, f"{first.what} ({len(bad)} bad files in all)", first.fix,
                        [f"{p}: {b.what}; {b.fix}" for p, b in list(bad.items())[:20]])


def scans_contents(config: DataConfig) -> bool:
    """Whether `prepare_data` itself reads every tile: to know what to skip before the split, or to check sums."""
    return config.on_bad == "skip" or config.sha256_file is not None


def _usable(config: DataConfig, manifest: Path | None) -> tuple[dict[str, str], list[SlideFile]]:
    """(texts by id, the slides to use); stops or skips what is bad, tells what has no counterpart."""
    labels, bad_labels = load_labels(config.labels_file)
    files = find_files(config.embeddings_dir)
    wanted = config.h5_key, config.image_dim, config.wanted_encoder
    slides, bad_files = index_slides(files, list(labels), *wanted, read_manifest(manifest, *wanted) if manifest else {})
    bad_files |= _near_misses(bad_files, files)
    if scans_contents(config):
        bad_files |= (bad := bad_contents(slides, config.sha256_file))
        slides = [s for s in slides if s.place not in bad]
    problems = {f"{i!r} in {config.labels_file}": BadSlide(why, "correct the label") for i, why in bad_labels.items()}
    _judge(problems | bad_files, len(slides), config)
    if unlabelled := sorted(files.keys() - labels.keys() - bad_labels.keys()):
        logger.warning("%d H5 files have no label: %s ...", len(unlabelled), ", ".join(unlabelled[:5]))
    root = os.path.realpath(expand(config.embeddings_dir)) + os.sep
    if outside := [s.slide_id for s in slides if not os.path.realpath(s.path).startswith(root)]:
        logger.warning("%d H5 files are links out of data.embeddings_dir: %s ...", len(outside), ", ".join(outside[:5]))
    return labels, slides


def _near_misses(bad: dict[str, BadSlide], files: dict[str, list[str]]) -> dict[str, BadSlide]:
    """Ids without a file that has their name but for case, blanks or Unicode form, with the name that was meant."""
    def folded(name: str) -> str:
        return "".join(unicodedata.normalize("NFKC", name).casefold().split())

    by_folded = {folded(name): name for name in files}
    near = {i: by_folded[folded(i)] for i in bad if i not in files and folded(i) in by_folded}
    return {i: BadSlide(f"no H5 file of this name, did you mean {name!r}?", "correct the label's id or the file name")
            for i, name in near.items()}


def _warn_of_twins(slides: dict[str, SlideFile], val_ids: set[str]) -> None:
    """Two ids of one file (a link) count twice; across the split the validation would be on training data: an error."""
    by_file: dict[tuple[int, int, str], list[str]] = {}
    for slide_id, slide in slides.items():
        stat = os.stat(slide.path)
        if stat.st_ino:  # 0 on file systems that number no files
            by_file.setdefault((stat.st_dev, stat.st_ino, slide.key), []).append(slide_id)
    twins = [ids for ids in by_file.values() if len(ids) > 1]
    for ids in twins:
        if 0 < len(val_ids & set(ids)) < len(ids):
            raise UserError(slides[ids[0]].path, f"is one file with the ids {', '.join(map(repr, ids))}, in training "
                            "and in validation", "keep one of these labels")
    if twins:
        logger.warning("%d H5 files have several ids, such as %s: they count more than once", len(twins),
                       ", ".join(twins[0]))


def _judge(problems: dict[str, BadSlide], usable: int, config: DataConfig) -> None:
    """Stop with the whole list, or with `on_bad: skip` warn and go on if the bad share is small."""
    if not problems:
        return
    details = [f"{name}: {p.what}; {p.fix}" for name, p in list(problems.items())[:20]]
    details += [f"... and {len(problems) - 20} more"] * (len(problems) > 20)
    name, first = next(iter(problems.items()))
    count = f"{len(problems)} of {len(problems) + usable} slides cannot be used"
    if config.on_bad == "error" or not usable:
        raise UserError(name, first.what + (f" ({count})" if len(problems) > 1 else ""),
                        first.fix + ", or data.on_bad=skip", details if len(problems) > 1 else ())
    if len(problems) > config.max_bad_fraction * (len(problems) + usable):
        raise UserError(config.embeddings_dir, f"{count}, more than data.max_bad_fraction {config.max_bad_fraction:g}",
                        "mend the files or raise it", details)
    for line in details:
        logger.warning("skipped %s", line)
    logger.warning("%s and are skipped", count)


def _samples(ids: list[str], slides: dict[str, SlideFile], texts: dict[str, str], tokenizer: VocabTokenizer,
             max_seq_len: int, split: str) -> list[Sample]:
    encoded = [encode_text(tokenizer, texts[i], max_seq_len) for i in ids]
    if cut := sum(was_cut for _, was_cut in encoded):
        longest = max(len(tokenizer.encode(texts[i])) for i in ids) + 2
        logger.warning("%d of %d %s texts are longer than data.max_seq_len %d and are cut (the longest has %d tokens)",
                       cut, len(ids), split, max_seq_len, longest)
    words = sum(len(token_ids) for token_ids, _ in encoded)
    unknown = sum(token_ids.count(tokenizer.unk_id) for token_ids, _ in encoded) / max(words, 1)
    if unknown > _MAX_UNKNOWN:
        raise UserError("tokenizer", f"{unknown:.0%} of the {split} tokens are unknown to it",
                        "are these texts in another language? use more training texts, or another split seed")
    if unknown:
        logger.warning("%.2f %% of the %s tokens are unknown to the vocabulary", 100 * unknown, split)
    return [Sample(slides[i], token_ids, (texts[i],)) for i, (token_ids, _) in zip(ids, encoded, strict=True)]


def _fingerprint(slides: list[SlideFile], texts: dict[str, str], val_ids: list[str]) -> str:
    digest = hashlib.sha256()
    held_out = set(val_ids)
    for slide in sorted(slides, key=lambda s: s.slide_id):
        row = (slide.slide_id, texts[slide.slide_id], slide.num_tiles, slide.slide_id in held_out)
        digest.update(repr(row).encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


