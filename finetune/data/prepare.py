"""From the user's folder and JSON to samples: match, check, split, build the vocabulary."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from ..common.errors import BadSlide, UserError
from ..common.files import expand
from ..common.log import logger
from ..config.schema import DataConfig
from .batch import Sample, encode_text
from .content_check import bad_contents
from .header_cache import read_manifest
from .labels import Label, load_labels
from .slides import Slide, find_files, index_slides, join_slides
from .splits import Split, make_split, report_split
from .tokenizer import Tokenizer, build_tokenizer, normalize_text

_MAX_UNKNOWN = 0.3  # above this share of unknown tokens a vocabulary was made for other texts


@dataclass
class Data:
    """What a run trains on. `fingerprint` covers ids, texts, tile counts and the split: equal data, equal value.

    test: cases that are kept for a test: they are checked like the others and used for nothing.
    """

    train: list[Sample]
    validation: list[Sample]
    tokenizer: Tokenizer
    fingerprint: str
    test: list[Slide]

    @property
    def test_ids(self) -> list[str]:
        return [slide.slide_id for slide in self.test]

    @property
    def slides(self) -> list[Slide]:
        return [s.slide for s in self.train + self.validation]


def prepare_data(config: DataConfig, seed: int, tokenizer: Tokenizer | None = None,
                 manifest: Path | None = None) -> Data:
    """Match labels and files by id, join the slides of a case, split, and encode the texts.

    tokenizer: of the run that is resumed; None builds one from the training texts. manifest: file of the headers that
    an earlier run has read. Raises UserError listing all bad labels and files at once, unless `data.on_bad` is skip and
    they are few.
    """
    labels, slides = _usable(config, manifest)
    split = make_split(labels, config, seed)
    if not split.train:
        raise UserError(config.embeddings_dir, "no slide to train on", "compare the ids with the file names")
    if not split.val:
        logger.warning("no validation slides (data.val_split is 0): best_model.pth is the last one")
    _warn_duplicate_files(slides, split)
    report_split(labels, split, config)
    texts = [text for i in split.train for text in labels[i].texts]
    if repeated := len(texts) - len(set(texts)):
        logger.warning("%d of %d training texts repeat another one: they are no negatives of each other",
                       repeated, len(texts))
    tokenizer = tokenizer or build_tokenizer(config.tokenizer, texts, config.normalize)
    _warn_of_losses(tokenizer, texts)
    return Data(_samples(split.train, slides, labels, tokenizer, config.max_seq_len, "training"),
                _samples(split.val, slides, labels, tokenizer, config.max_seq_len, "validation"),
                tokenizer, _fingerprint(slides, labels, split), [slides[i] for i in split.test])


def scan_contents(data: Data) -> None:
    """Read every tile of every slide. Raises one UserError that lists all unreadable or non-finite ones."""
    bad = bad_contents([part for slide in data.slides + data.test for part in slide.parts], None)
    if bad:
        path, first = next(iter(bad.items()))
        raise UserError(path, f"{first.what} ({len(bad)} bad files in all)", first.fix,
                        [f"{p}: {b.what}; {b.fix}" for p, b in list(bad.items())[:20]])


def scans_contents(config: DataConfig) -> bool:
    """Whether `prepare_data` itself reads every tile: to know what to skip before the split, or to check sums."""
    return config.on_bad == "skip" or config.sha256_file is not None


def _usable(config: DataConfig, manifest: Path | None) -> tuple[dict[str, Label], dict[str, Slide]]:
    """(labels, slides) by id of the cases that can be used; stops or skips what is bad, tells what has no partner."""
    labels, bad_labels = load_labels(config.labels_file)
    files = find_files(config.embeddings_dir)
    names = list(dict.fromkeys(name for label in labels.values() for name in label.slides))
    wanted = config.h5_key, config.image_dim, config.wanted_encoder
    found, bad_files = index_slides(files, names, *wanted, read_manifest(manifest, *wanted) if manifest else {})
    bad_files |= _near_misses(bad_files, files)
    if scans_contents(config):
        bad_files |= (bad := bad_contents(found, config.sha256_file))
        found = [s for s in found if s.place not in bad]
    by_name = {s.slide_id: s for s in found}
    slides = {i: join_slides(i, [by_name[n] for n in label.slides]) for i, label in labels.items()
              if by_name.keys() >= set(label.slides)}
    problems = {f"{i!r} in {config.labels_file}": BadSlide(why, "correct the label") for i, why in bad_labels.items()}
    _raise_or_skip(problems | bad_files, len(slides), config)
    if torn := [i for i, label in labels.items() if i not in slides and by_name.keys() & set(label.slides)]:
        logger.warning("%d cases are left out as one of their slides cannot be used: %s ...", len(torn),
                       ", ".join(torn[:5]))
    if unlabelled := sorted(files.keys() - set(names) - bad_labels.keys()):
        logger.warning("%d H5 files have no label: %s ...", len(unlabelled), ", ".join(unlabelled[:5]))
    root = os.path.realpath(expand(config.embeddings_dir)) + os.sep
    if outside := [s.slide_id for s in found if not os.path.realpath(s.place).startswith(root)]:
        logger.warning("%d H5 files are links out of data.embeddings_dir: %s ...", len(outside), ", ".join(outside[:5]))
    return {i: labels[i] for i in slides}, slides


def _near_misses(bad: dict[str, BadSlide], files: dict[str, list[str]]) -> dict[str, BadSlide]:
    """Ids without a file that has their name but for case, blanks or Unicode form, with the name that was meant."""
    def folded(name: str) -> str:
        return "".join(unicodedata.normalize("NFKC", name).casefold().split())

    by_folded = {folded(name): name for name in files}
    near = {i: by_folded[folded(i)] for i in bad if i not in files and folded(i) in by_folded}
    return {i: BadSlide(f"no H5 file of this name, did you mean {name!r}?", "correct the label's id or the file name")
            for i, name in near.items()}


def _warn_duplicate_files(slides: dict[str, Slide], split: Split) -> None:
    """A file in two cases (or linked) counts twice; across the split the scores would be on training data: an error."""
    by_file: dict[tuple[int, int, str], list[str]] = {}
    for case_id, slide in slides.items():
        for part in slide.parts:
            stat = os.stat(part.path)
            if stat.st_ino:  # 0 on file systems that number no files
                by_file.setdefault((stat.st_dev, stat.st_ino, part.key), []).append(case_id)
    twins = [ids for ids in by_file.values() if len(ids) > 1]
    side_of = {i: side for side, ids in zip(("training", "validation", "test"), (split.train, split.val, split.test),
                                            strict=True) for i in ids}
    for ids in twins:
        if len(sides := sorted({side_of[i] for i in ids})) > 1:
            raise UserError(slides[ids[0]].path, f"is one file with the ids {', '.join(map(repr, ids))}, in "
                            f"{' and in '.join(sides)}", "keep one of these labels")
    if twins:
        logger.warning("%d H5 files have several ids, such as %s: they count more than once", len(twins),
                       ", ".join(twins[0]))


def _raise_or_skip(problems: dict[str, BadSlide], usable: int, config: DataConfig) -> None:
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


def _samples(ids: list[str], slides: dict[str, Slide], labels: dict[str, Label], tokenizer: Tokenizer,
             max_seq_len: int, split: str) -> list[Sample]:
    """One per case. Training may take any of its texts, validation takes the first."""
    texts = {i: labels[i].texts if split == "training" else labels[i].texts[:1] for i in ids}
    encoded = {i: [encode_text(tokenizer, text, max_seq_len) for text in its] for i, its in texts.items()}
    every = [e for several in encoded.values() for e in several]
    if cut := sum(was_cut for _, was_cut in every):
        longest = max(len(tokenizer.encode(text)) for its in texts.values() for text in its) + 2
        logger.warning("%d of %d %s texts are longer than data.max_seq_len %d and are cut (the longest has %d tokens)",
                       cut, len(every), split, max_seq_len, longest)
    words = sum(len(token_ids) for token_ids, _ in every)
    unknown = sum(token_ids.count(tokenizer.unk_id) for token_ids, _ in every) / max(words, 1)
    if unknown > _MAX_UNKNOWN:
        raise UserError("tokenizer", f"{unknown:.0%} of the {split} tokens are unknown to it",
                        "are these texts in another language? use more training texts, or another split seed")
    if unknown:
        logger.warning("%.2f %% of the %s tokens are unknown to the vocabulary", 100 * unknown, split)
    return [Sample(slides[i], several[0][0], labels[i].texts, tuple(token_ids for token_ids, _ in several))
            for i, several in encoded.items()]


def _warn_of_losses(tokenizer: Tokenizer, texts: list[str]) -> None:
    """Some tokenizers do not give back what they were given: lower case, lost blanks. Captions will look like that."""
    looked_at = texts[:1000]
    lost = sum(tokenizer.decode(tokenizer.encode(t)) not in (t, normalize_text(t)) for t in looked_at)
    if lost:
        logger.warning("%d of %d training texts do not come back from the tokenizer as they were; nor will captions",
                       lost, len(looked_at))


def _fingerprint(slides: dict[str, Slide], labels: dict[str, Label], split: Split) -> str:
    """Of a case with one text and one slide the row is as it was when there were no others: old runs go on."""
    digest = hashlib.sha256()
    sides = dict.fromkeys(split.train, False) | dict.fromkeys(split.val, True) | dict.fromkeys(split.test, "test")
    for case_id in sorted(slides):
        texts, tiles = labels[case_id].texts, [part.num_tiles for part in slides[case_id].parts]
        row = (case_id, texts[0] if len(texts) == 1 else texts, tiles[0] if len(tiles) == 1 else tiles, sides[case_id])
        digest.update(repr(row).encode("utf-8", "backslashreplace"))
    return digest.hexdigest()
