"""From the user's folder and JSON to samples: match, check, split, build the vocabulary."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path

from ..common.errors import BadSlide, UserError
from ..common.files import expand
from ..common.log import logger
from ..config.schema import DataConfig
from .batch import Sample, encode_text
from .case_slides import join_cases
from .columns import ColumnNames
from .content_check import bad_contents
from .header_cache import read_headers
from .kept_results import KeptResults
from .labels import Label, load_labels
from .slide_matching import Matches, match_slides
from .slides import Slide, SlideFile, find_files, index_slides, join_slides
from .splits import Split, make_split, report_split
from .tile_sum import join_sums
from .tokenizer import Tokenizer, build_tokenizer, extend_tokenizer, normalize_text

_MAX_UNKNOWN = 0.3  # above this share of unknown tokens a vocabulary was made for other texts
_MAX_LISTED = 20  # problems that an error lists
_MAX_COMPARED = 1000  # texts that are decoded again to see whether a tokenizer loses something
_MORE_TEXTS = ("are these texts in another language? use more training texts, another split seed, or "
               "training.init_from, which extends the vocabulary of a model")
_OTHER_TOKENIZER = ("its vocabulary is fixed, more texts do not change it: give texts in its language (Prism's own "
                    "decoder reads English), or model.decoder=coca with data.tokenizer=vocab")


@dataclass
class Data:
    """What a run trains on.

    Attributes:
        fingerprint: Hash of ids, texts, tile counts and split.
        test: Cases held out for testing; their files are only checked.
        num_seen_texts: Validation texts that are also training texts, word for word.
    """

    train: list[Sample]
    validation: list[Sample]
    tokenizer: Tokenizer
    fingerprint: str
    test: list[Slide]
    num_seen_texts: int = 0

    @property
    def test_ids(self) -> list[str]:
        """Ids of the test cases."""
        return [slide.slide_id for slide in self.test]

    @property
    def seen_texts(self) -> dict[str, int]:
        """How many validation texts there are, and how many of them stand in training: `caveats` takes it."""
        return {"validation": len(self.validation), "also_in_training": self.num_seen_texts}

    @property
    def slides(self) -> list[Slide]:
        """The slides of training and validation."""
        return [sample.slide for sample in self.train + self.validation]

    @property
    def tile_sums(self) -> dict[str, int]:
        """{id: sum over a few of its tiles} of these slides, by id."""
        slides = sorted(self.slides, key=lambda slide: slide.slide_id)
        return {slide.slide_id: join_sums([part.tile_sum for part in slide.parts]) for slide in slides}


def prepare_data(config: DataConfig, seed: int, tokenizer: Tokenizer | None = None,
                 header_cache: Path | None = None, *, extend: bool = False) -> Data:
    """Match labels and files by id, join the slides of a case, split, and encode the texts.

    Args:
        config: Of the data.
        seed: Of the split.
        tokenizer: Of the run that is resumed, or of a trained model; None builds one from the training texts.
        header_cache: File of the headers that an earlier run has read.
        extend: Add to the vocabulary of `tokenizer` what the training texts have and it lacks.

    Raises:
        UserError: Listing all bad labels and files at once, unless `data.on_bad` is skip and they are few.
    """
    labels, slides = _load_cases(config, header_cache)
    split = make_split(labels, config, seed)
    if not split.train:
        raise UserError(config.embeddings_dir, "no slide to train on", "compare the ids with the file names")
    if not split.val:
        logger.warning("no validation slides (data.val_split is 0): best_model.pth is the last one")
    _check_duplicate_files(slides, split)
    num_seen_texts = report_split(labels, split, config, KeptResults.beside(header_cache))

    # held-out texts must not shape the vocabulary
    texts = [text for i in split.train for text in labels[i].texts]
    _warn_of_repeated_texts(texts)
    if tokenizer is None:
        tokenizer = build_tokenizer(config.tokenizer, texts, config.normalize)
    elif extend:
        tokenizer = extend_tokenizer(tokenizer, texts)
    _warn_of_lossy_tokenizer(tokenizer, texts)

    # training uses the texts of a case in turn; validation only the first, so that epochs can be compared
    train_texts = {i: labels[i].texts for i in split.train}
    val_texts = {i: labels[i].texts[:1] for i in split.val}
    train_ids = _encode_texts(train_texts, tokenizer, config.max_seq_len, "training")
    val_ids = _encode_texts(val_texts, tokenizer, config.max_seq_len, "validation")
    return Data(_samples(train_ids, slides, labels), _samples(val_ids, slides, labels), tokenizer,
                _fingerprint(slides, labels, split), [slides[i] for i in split.test], num_seen_texts)


def scan_contents(data: Data) -> None:
    """Read every tile of every slide. Raises one UserError that lists all unreadable or non-finite ones."""
    files = [file for slide in data.slides + data.test for file in slide.parts]
    problems = bad_contents(files, None)
    if problems:
        location, first = next(iter(problems.items()))
        raise UserError(location, f"{first.what} ({len(problems)} bad files in all)", first.fix, _lines(problems))


def contents_are_checked(config: DataConfig) -> bool:
    """Whether `prepare_data` itself reads every tile: to skip bad slides before the split, or to check their sums."""
    return config.on_bad == "skip" or config.sha256_file is not None


def _load_cases(config: DataConfig, header_cache: Path | None) -> tuple[dict[str, Label], dict[str, Slide]]:
    """(labels, slides) by id of the cases that can be used. Stops at the others or skips them."""
    labels, label_problems = load_labels(config.labels_file, ColumnNames.of(config), config.encoding)
    files, root = find_files(config.embeddings_dir), expand(config.embeddings_dir)
    labels = join_cases(labels, files, root, config.case_pattern)
    names = list(dict.fromkeys(name for label in labels.values() for name in label.slides))
    matches = match_slides(names, files, root)
    slide_files, file_problems = _check_files(config, matches, header_cache)
    slides, incomplete = _join_cases(labels, slide_files)

    # labels and files in one list, so that a user can correct both at once
    problems = {f"{case_id!r} in {config.labels_file}": BadSlide(what, "correct the label")
                for case_id, what in label_problems.items()}
    _raise_or_skip(problems | file_problems, len(slides), config)

    # these do not stop a run, but are common signs of a wrong folder or labels file
    _warn("%d cases are left out as one of their slides cannot be used: %s ...", incomplete)
    _warn("%d H5 files have no label: %s ...", _unlabelled(files, matches, label_problems))
    outside = _links_out(config.embeddings_dir, slide_files)
    _warn("%d H5 files are links out of data.embeddings_dir: %s ...", outside)
    return {case_id: labels[case_id] for case_id in slides}, slides


def _join_cases(labels: Mapping[str, Label], files: Mapping[str, SlideFile]) -> tuple[dict[str, Slide], list[str]]:
    """({case id: its joined slides}, ids of the cases that lack some of their slides)."""
    slides: dict[str, Slide] = {}
    incomplete: list[str] = []
    for case_id, label in labels.items():
        parts = [files[name] for name in label.slides if name in files]
        if len(parts) == len(label.slides):
            slides[case_id] = join_slides(case_id, parts)
        elif parts:
            incomplete.append(case_id)
    return slides, incomplete


def _links_out(folder: str, files: Mapping[str, SlideFile]) -> list[str]:
    """Names of the slides whose files are links out of the folder in which they were found."""
    root = os.path.join(os.path.realpath(expand(folder)), "")
    real_folder = cache(os.path.realpath)  # few folders hold all files

    def target(file: SlideFile) -> str:
        if os.path.islink(file.path):
            return os.path.realpath(file.path)
        return os.path.join(real_folder(os.path.dirname(file.path)), os.path.basename(file.path))

    return [name for name, file in files.items() if not target(file).startswith(root)]


def _unlabelled(files: Mapping[str, list[str]], matches: Matches, label_problems: Mapping[str, str]) -> list[str]:
    """Names of the files that no label means; those of an ambiguous name are reported with it."""
    labelled = set(matches.paths.values())
    known = matches.problems.keys() | label_problems.keys()
    return sorted(name for name, paths in files.items() if name not in known and not labelled.intersection(paths))


def _check_files(config: DataConfig, matches: Matches, header_cache: Path | None,
                 ) -> tuple[dict[str, SlideFile], dict[str, BadSlide]]:
    """({slide name: file} of the usable slides, {name, path or location: problem} of the others)."""
    paths = list(dict.fromkeys(matches.paths.values()))
    usable, problems = _check_paths(config, paths, header_cache)
    files = {name: usable[path] for name, path in matches.paths.items() if path in usable}
    return files, matches.problems | problems


def _check_paths(config: DataConfig, paths: list[str], header_cache: Path | None,
                 ) -> tuple[dict[str, SlideFile], dict[str, BadSlide]]:
    """({path: file} of the usable files, {path or location: problem} of the others)."""
    expected = config.h5_key, config.image_dim, config.wanted_encoder
    files, problems = index_slides(paths, *expected, read_headers(header_cache, *expected))
    usable = dict(zip((path for path in paths if path not in problems), files, strict=True))

    # before the split: whether a slide is skipped must not depend on its side
    if contents_are_checked(config):
        problems |= bad_contents(files, config.sha256_file)
    return {path: file for path, file in usable.items() if file.location not in problems}, problems


def _warn(message: str, ids: list[str]) -> None:
    """Log a message with the number of ids and five examples, if there are any."""
    if ids:
        logger.warning(message, len(ids), ", ".join(ids[:5]))


def _raise_or_skip(problems: dict[str, BadSlide], num_usable: int, config: DataConfig) -> None:
    """Stop with the list of problems, or with `on_bad: skip` continue with a warning if they are few."""
    if not problems:
        return
    total = len(problems) + num_usable
    name, first = next(iter(problems.items()))
    count = f"{len(problems)} of {total} slides cannot be used"
    lines = _lines(problems)
    if len(problems) > _MAX_LISTED:
        lines.append(f"... and {len(problems) - _MAX_LISTED} more")

    if config.on_bad == "error" or not num_usable:
        fix = f"{first.fix}, or data.on_bad=skip"
        if len(problems) == 1:
            raise UserError(name, first.what, fix)
        raise UserError(name, f"{first.what} ({count})", fix, lines)

    if len(problems) > config.max_bad_fraction * total:
        raise UserError(config.embeddings_dir, f"{count}, more than data.max_bad_fraction {config.max_bad_fraction:g}",
                        "repair the files or raise it", lines)
    # one line each, so that a log shows later what a model was not trained on
    for line in lines:
        logger.warning("skipped %s", line)
    logger.warning("%s and are skipped", count)


def _lines(problems: Mapping[str, BadSlide]) -> list[str]:
    """The first problems as lines for an error."""
    return [f"{name}: {problem.what}; {problem.fix}" for name, problem in list(problems.items())[:_MAX_LISTED]]


def _check_duplicate_files(slides: dict[str, Slide], split: Split) -> None:
    """Warn of files that have several ids, as they count more than once.

    On two sides of the split they are an error: the scores would be on training data.
    """
    duplicates = _duplicate_files(slides)

    side_of = split.side_of
    for ids in duplicates:
        sides = sorted({side_of[case_id] for case_id in ids})
        if len(sides) > 1:
            # quoted, as an id may contain a comma
            names = ", ".join(map(repr, ids))
            raise UserError(slides[ids[0]].path, f"is one file with the ids {names}, in {' and in '.join(sides)}",
                            "keep one of these labels")
    if duplicates:
        logger.warning("%d H5 files have several ids, such as %s: they count more than once", len(duplicates),
                       ", ".join(duplicates[0]))


def _duplicate_files(slides: dict[str, Slide]) -> list[list[str]]:
    """The case ids of each file that has several, by links or in the labels."""
    cases_of: dict[tuple[int, int, str], list[str]] = defaultdict(list)
    for case_id, slide in slides.items():
        for file in slide.parts:
            stat = os.stat(file.path)
            if stat.st_ino:  # 0 on file systems that do not number their files
                cases_of[stat.st_dev, stat.st_ino, file.key].append(case_id)
    return [ids for ids in cases_of.values() if len(ids) > 1]


def _warn_of_repeated_texts(texts: list[str]) -> None:
    num_repeated = len(texts) - len(set(texts))
    if num_repeated:
        logger.warning("%d of %d training texts repeat another one: equal texts are not negatives of each other",
                       num_repeated, len(texts))


def _warn_of_lossy_tokenizer(tokenizer: Tokenizer, texts: list[str]) -> None:
    """Warn of a tokenizer that loses case or white space: captions will lack them too."""
    # 1000 texts show it, and 100 000 would take minutes
    compared = texts[:_MAX_COMPARED]
    num_changed = 0
    for text in compared:
        decoded = tokenizer.decode(tokenizer.encode(text))
        num_changed += decoded not in (text, normalize_text(text))
    if num_changed:
        logger.warning("%d of %d training texts change when they are encoded and decoded by the tokenizer; so will "
                       "captions", num_changed, len(compared))


def _encode_texts(texts: dict[str, tuple[str, ...]], tokenizer: Tokenizer, max_seq_len: int, split: str,
                  ) -> dict[str, list[list[int]]]:
    """Token ids of each text of each case; warns of cut texts, refuses a vocabulary made for other texts."""
    encoded: dict[str, list[list[int]]] = defaultdict(list)
    cut: list[str] = []
    for case_id, references in texts.items():
        for text in references:
            token_ids, was_cut = encode_text(tokenizer, text, max_seq_len)
            encoded[case_id].append(token_ids)
            if was_cut:
                cut.append(text)
    every = list(chain(*encoded.values()))
    if cut:
        longest = 2 + max(len(tokenizer.encode(text)) for text in cut)  # with begin and end token
        logger.warning("%d of %d %s texts are longer than data.max_seq_len %d and are cut (the longest has %d tokens)",
                       len(cut), len(every), split, max_seq_len, longest)
    _check_unknown_tokens(every, tokenizer, split)
    return encoded


def _check_unknown_tokens(texts: list[list[int]], tokenizer: Tokenizer, split: str) -> None:
    num_tokens = sum(map(len, texts))
    num_unknown = sum(token_ids.count(tokenizer.unk_id) for token_ids in texts)
    unknown = num_unknown / max(num_tokens, 1)
    if unknown > _MAX_UNKNOWN:
        raise UserError("tokenizer", f"{unknown:.0%} of the {split} tokens are unknown to it",
                        _MORE_TEXTS if tokenizer.to_dict()["type"] == "vocab" else _OTHER_TOKENIZER)
    if unknown:
        logger.warning("%.2f %% of the %s tokens are unknown to the vocabulary", 100 * unknown, split)


def _samples(encoded: Mapping[str, list[list[int]]], slides: Mapping[str, Slide], labels: Mapping[str, Label],
             ) -> list[Sample]:
    """One sample per case, with the first of its encoded texts and all of them as choices."""
    return [Sample(slides[case_id], choices[0], labels[case_id].texts, tuple(choices))
            for case_id, choices in encoded.items()]


def _fingerprint(slides: dict[str, Slide], labels: dict[str, Label], split: Split) -> str:
    """Hash of the data: equal data, equal value."""
    sides = dict.fromkeys(split.train, False) | dict.fromkeys(split.val, True) | dict.fromkeys(split.test, "test")
    digest = hashlib.sha256()
    for case_id in sorted(slides):
        texts = labels[case_id].texts
        tiles = [file.num_tiles for file in slides[case_id].parts]
        # one text and one slide are hashed as before there could be several, so that old runs can be resumed
        row = (case_id, texts[0] if len(texts) == 1 else texts, tiles[0] if len(tiles) == 1 else tiles, sides[case_id])
        digest.update(repr(row).encode("utf-8", "backslashreplace"))
    return digest.hexdigest()
