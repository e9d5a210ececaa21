"""Data sets of the learning benchmark: slides whose training and test sides share no pixel.

Three kinds: regions of real images, cut by position; slides made after the words of real reports; and slides made
after texts of our own, which need no file. Boxes are (n, 4): left, top, right, bottom in pixels.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

FOLD_KINDS = ("edges", "corners", "mixed", "pairs")
_WIDTH = 2560  # of a tile embedding
_TEST_SHARE = 0.25  # of an image, at an edge or a corner
_VALIDATION_SHARE = 0.1
_STOP_WORDS = {"and", "the", "are", "with", "which", "that", "from", "into"}
_TISSUES = ("胃管状腺癌", "胃乳头状腺癌", "胃黏液腺癌", "胃印戒细胞癌")
_GRADES = ("高分化", "中分化", "低分化")
_FINDINGS = ("可见坏死", "脉管侵犯", "神经侵犯", "切缘阳性", "淋巴结转移", "间质纤维化", "溃疡形成", "炎细胞浸润",
             "肠上皮化生", "黏膜下层浸润", "肌层浸润", "浆膜侵犯", "钙化", "出血", "囊性变", "萎缩")


@dataclass(frozen=True)
class Task:
    """One training run and what it is judged on.

    data_set: rows of one name are one row of the table. name: of the run, unique in its data set's folder.
    folder: of the data set, for runs and cache. texts: of the slides used. sides: id -> train, val or test.
    cluster: test slides that are resampled together, None for each slide on its own.
    """

    data_set: str
    name: str
    folder: Path
    embeddings: Path
    texts: dict[str, str]
    sides: dict[str, str]
    seed: int
    cluster: str | None = None

    def ids(self, side: str) -> list[str]:
        """Ids of one side, sorted."""
        return sorted(i for i, of in self.sides.items() if of == side)


def report_tasks(table: Path, sizes: Sequence[int], seeds: Sequence[int], work: Path) -> Iterator[Task]:
    """Slides made after reports (column `text` of a CSV); each seed draws other reports, directions and sides.

    Every word in 1.5 to 70 % of the reports has a direction in tile space. 70 % train, 10 % validate, 20 % test.
    """
    with open(table, encoding="utf-8") as file:
        reports = [row["text"].strip() for row in csv.DictReader(file)]
    for size in sizes:
        for seed in seeds:
            rng = np.random.default_rng(seed)
            texts = [reports[i] for i in rng.permutation(len(reports))[:size]]
            words = [set(re.findall(r"[a-z]{3,}", text.lower())) - _STOP_WORDS for text in texts]
            count = Counter(word for of_text in words for word in of_text)
            common = sorted(w for w, n in count.items() if 0.015 * len(texts) <= n <= 0.7 * len(texts))
            folder = work / f"reports-{size}-{seed}"
            labels = _write_slides(folder, texts, [of_text & set(common) for of_text in words], common, rng)
            bounds = {"train": 0.7 * len(texts), "val": 0.8 * len(texts), "test": len(texts)}
            sides = {key: next(side for side, end in bounds.items() if i < end) for i, key in enumerate(labels)}
            yield Task(f"reports, {size} slides", f"seed-{seed}", folder, folder / "embeddings", labels, sides, seed)


def made_tasks(sizes: Sequence[int], seeds: Sequence[int], work: Path) -> Iterator[Task]:
    """Slides made after texts of our own; no text of a test slide stands on another side."""
    for size in sizes:
        for seed in seeds:
            rng = np.random.default_rng(seed)
            phrases = [_draw_phrases(rng) for _ in range(size)]
            texts = ["，".join(of_text) + "。" for of_text in phrases]
            folder = work / f"made-{size}-{seed}"
            names = [*_TISSUES, *_GRADES, *_FINDINGS]
            labels = _write_slides(folder, texts, [set(of_text) for of_text in phrases], names, rng)
            yield Task(f"made, {size} slides", f"seed-{seed}", folder, folder / "embeddings", labels,
                       _split_by_text(labels, np.random.default_rng(seed)), seed)


def real_tasks(slides: Path, kinds: Sequence[str], seeds: Sequence[int], work: Path, max_folds: int) -> Iterator[Task]:
    """Regions of images that overlap; those that share a pixel with a test region are left out.

    Args:
        slides: folder with embeddings/ (H5 with `coords`) and labels.json; the first phrase of a label is the image.
        kinds: edges and corners: a quarter of each image; mixed: edges of different sides in each image; pairs: one
            region of each image, which leaves the most to train on.
        seeds: of training.
        work: folder of the benchmark.
        max_folds: of each kind.
    """
    labels = json.loads((slides / "labels.json").read_text(encoding="utf-8"))
    ids = sorted(labels)
    boxes = np.array([_box(slides / "embeddings" / f"{i}.h5") for i in ids], dtype=float)
    images = np.array([re.split("[，。]", labels[i])[0] for i in ids])
    for kind in kinds:
        for number, is_test in enumerate(_folds(kind, boxes, images)[:max_folds]):
            is_kept = ~_touched(boxes, images, is_test)
            for seed in seeds:
                sides = _real_sides(ids, is_test, is_kept, np.random.default_rng([seed, number]))
                name = f"{kind}-{number}-seed-{seed}"
                yield Task(f"real, {kind}", name, work / "real", slides / "embeddings", {i: labels[i] for i in sides},
                           sides, seed, cluster=f"{kind} {number}")


def _write_slides(folder: Path, texts: list[str], words: list[set[str]], names: list[str], rng: np.random.Generator,
                  ) -> dict[str, str]:
    """Write embeddings/ID.h5 of made slides; {id: text}.

    A slide has 20 to 60 tiles of noise, each with one of six backgrounds; the direction of a word lies on 15 to 60 %
    of its tiles; all tiles of a slide share a shift in a space of 24 dimensions, as a stain would give.
    """
    done = folder / "labels.json"
    if done.exists():  # written last; new files would be encoded anew
        return json.loads(done.read_text(encoding="utf-8"))
    (folder / "embeddings").mkdir(parents=True, exist_ok=True)
    direction = {name: rng.standard_normal(_WIDTH).astype(np.float32) for name in names}
    background = rng.standard_normal((6, _WIDTH)).astype(np.float32) * 0.8
    stain = rng.standard_normal((24, _WIDTH)).astype(np.float32) * 0.25
    labels = {}
    for number, (text, of_text) in enumerate(zip(texts, words, strict=True)):
        tiles = int(rng.integers(20, 60))
        values = rng.standard_normal((tiles, _WIDTH)).astype(np.float32) + background[rng.integers(0, 6, tiles)]
        values += rng.standard_normal(24).astype(np.float32) @ stain
        for word in sorted(of_text):
            carries = rng.random(tiles) < rng.uniform(0.15, 0.6)
            values[carries] += 0.35 * direction[word]
        labels[f"slide_{number:04d}"] = text
        with h5py.File(folder / "embeddings" / f"slide_{number:04d}.h5", "w") as file:
            file["embeddings"] = values.astype(np.float16)
    done.write_text(json.dumps(labels, ensure_ascii=False), encoding="utf-8")
    return labels


def _draw_phrases(rng: np.random.Generator) -> list[str]:
    """A tissue, a grade and findings, the last of which are rare: from one text in two to one in thirty."""
    chance = np.geomspace(0.5, 0.03, len(_FINDINGS))
    found = [name for name, p in zip(_FINDINGS, chance, strict=True) if rng.random() < p]
    return [str(rng.choice(_TISSUES)), str(rng.choice(_GRADES)), *found]


def _split_by_text(labels: dict[str, str], rng: np.random.Generator) -> dict[str, str]:
    """About 70 % train, 10 % validate, 20 % test; slides of one text stand together."""
    texts = sorted(set(labels.values()))
    share = dict(zip(texts, rng.permutation(len(texts)) / len(texts), strict=True))
    return {i: "train" if share[text] < 0.7 else "val" if share[text] < 0.8 else "test" for i, text in labels.items()}


def _box(path: Path) -> tuple[float, ...]:
    with h5py.File(path) as file:
        coords, size = file["coords"][:], int(file["coords"].attrs["patch_size_level0"])
    return (*coords.min(0), *(coords.max(0) + size))


def _folds(kind: str, boxes: np.ndarray, images: np.ndarray) -> list[np.ndarray]:
    """Which regions (n,) test, of each fold."""
    names = sorted(set(images))
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    if kind == "pairs":
        rng = np.random.default_rng(1)
        orders = [rng.permutation(np.flatnonzero(images == name)) for name in names]
        return [np.isin(np.arange(len(boxes)), pair) for pair in zip(*orders, strict=False)]
    folds = []
    for number in range(4):
        is_test = np.zeros(len(boxes), dtype=bool)
        for of_image, name in enumerate(names):
            rows = np.flatnonzero(images == name)
            ranks = centres[rows].argsort(0).argsort(0) / (len(rows) - 1)  # 0: leftmost, topmost
            depth = _depth(kind, number, of_image, ranks)
            is_test[rows] = depth <= np.quantile(depth, _TEST_SHARE)
        folds.append(is_test)
    return folds


def _depth(kind: str, number: int, of_image: int, ranks: np.ndarray) -> np.ndarray:
    """How far regions are from an edge or corner, (n,); ranks (n, 2) from the left and the top."""
    first, second = divmod(number, 2)
    flipped = np.stack([ranks, 1 - ranks])  # (2, n, 2)
    if kind == "corners":
        return np.maximum(flipped[first][:, 0], flipped[second][:, 1])
    axis, side = (first, second) if kind == "edges" else (of_image % 2, (first, second)[of_image % 2])
    return flipped[side][:, axis]


def _touched(boxes: np.ndarray, images: np.ndarray, is_test: np.ndarray) -> np.ndarray:
    """Regions (n,) that do not test and share a pixel with one that does."""
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    overlap = np.minimum(high, boxes[None, :, 2:]) > np.maximum(low, boxes[None, :, :2])  # (n, n, 2)
    shares = overlap.all(2) & (images[:, None] == images[None])
    return shares[:, is_test].any(1) & ~is_test


def _real_sides(ids: list[str], is_test: np.ndarray, is_kept: np.ndarray, rng: np.random.Generator) -> dict[str, str]:
    train = rng.permutation(np.flatnonzero(is_kept & ~is_test))
    validation = set(train[: max(1, round(_VALIDATION_SHARE * len(train)))])
    sides = {}
    for i in np.flatnonzero(is_kept):
        sides[ids[i]] = "test" if is_test[i] else "val" if i in validation else "train"
    return sides
