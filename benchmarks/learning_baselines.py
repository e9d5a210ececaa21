"""Baselines and scores of the learning benchmark, in numpy alone: nothing here is shared with the captioner.

Letters: N training slides, T test slides, D features, W phrases or words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

_PENALTIES = 10.0 ** np.arange(1, 6, 0.5)  # of the ridge; at 1280 standardised features
_GROUPS = 8
_THRESHOLDS = np.arange(0.2, 0.7, 0.05)


@dataclass(frozen=True)
class Answer:
    """What a method says of a slide: the pieces of its text, and the text itself where it gives one."""

    pieces: frozenset[str]
    text: str | None = None

    @classmethod
    def of(cls, text: str) -> Answer:
        return cls(frozenset(pieces(text)), text)


def pieces(text: str) -> set[str]:
    """Phrases of a Chinese text, words of three and more letters of another one."""
    if re.search(r"[\u4e00-\u9fff]", text):
        return {phrase for phrase in re.split("[，。；、]", text) if phrase}
    return set(re.findall(r"[a-z]{3,}", text.lower()))


def score(answers: Sequence[Answer], texts: Sequence[str]) -> np.ndarray:
    """(T, 2): F1 of the pieces, and whether the text is exactly right."""
    rows = []
    for answer, text in zip(answers, texts, strict=True):
        wanted = pieces(text)
        both = len(wanted & answer.pieces)
        rows.append((2 * both / max(1, len(wanted) + len(answer.pieces)), answer.text == text))
    return np.array(rows, dtype=float)


def most_common(train: Sequence[str], count: int) -> list[Answer]:
    return [Answer.of(Counter(train).most_common(1)[0][0])] * count


def nearest(train: np.ndarray, texts: Sequence[str], test: np.ndarray) -> list[Answer]:
    """Text of the training slide of highest cosine, after the mean of the training slides is taken off.

    Args:
        train: slide embeddings (N, D).
        texts: of the training slides.
        test: slide embeddings (T, D).
    """
    mean = train.mean(0)
    train, test = (rows - mean for rows in (train, test))
    train, test = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (train, test))
    return [Answer.of(texts[i]) for i in (test @ train.T).argmax(1)]


@dataclass
class Probe:
    """Ridge regression from features (N, D) to which pieces stand in a text; penalty by left-out groups.

    Groups are clusters of similar slides: left out one by one, a slide that overlaps another one would be told by it.
    """

    features: np.ndarray
    texts: Sequence[str]
    names: list[str] = field(init=False)  # W

    def __post_init__(self) -> None:
        self.features = self.features.astype(np.float64)
        sets = [pieces(text) for text in self.texts]
        self.names = sorted(set().union(*sets))
        self.present = np.array([[name in of_text for name in self.names] for of_text in sets], dtype=float)  # (N, W)
        self.penalty, self.left_out = best_penalty(self.features, self.present)

    def scores(self, test: np.ndarray) -> np.ndarray:
        """(T, W), about 1 where a piece should stand in the text."""
        return ridge(self.features, self.present, test.astype(np.float64), self.penalty)

    def answers(self, test: np.ndarray) -> list[Answer]:
        """Pieces above the threshold that is best on left-out training slides; of a template, the best of each field.

        A template is a set of training texts of as many phrases each, none of which stands at two places.
        """
        scores = self.scores(test)
        columns = self._fields()
        if columns:
            chosen = [[of_field[i] for i in scores[:, [self.names.index(n) for n in of_field]].argmax(1)]
                      for of_field in columns]
            return [Answer.of("，".join(phrases) + "。") for phrases in zip(*chosen, strict=True)]
        threshold = max(_THRESHOLDS, key=self._f1_above)
        names = np.array(self.names)
        return [Answer(frozenset(names[row > threshold])) for row in scores]

    def best_texts(self, test: np.ndarray) -> list[Answer]:
        """The training text that explains the scores best, with independent normal errors of each piece."""
        centred = self.present - self.present.mean(0)
        slope = ((self.left_out - self.present.mean(0)) * centred).sum(0) / np.maximum((centred**2).sum(0), 1e-9)
        error = (self.left_out - self.present.mean(0) - slope * centred).std(0) + 1e-6
        texts = sorted(set(self.texts))
        found = [pieces(text) for text in texts]
        wanted = np.array([[name in of_text for name in self.names] for of_text in found]) - self.present.mean(0)
        wanted = wanted * slope / error  # (texts, W)
        prior = np.log([list(self.texts).count(text) for text in texts])
        given = (self.scores(test) - self.present.mean(0)) / error
        best = (given @ wanted.T - 0.5 * (wanted**2).sum(1) + prior).argmax(1)
        return [Answer.of(texts[i]) for i in best]

    def _f1_above(self, threshold: float) -> float:
        said = self.left_out > threshold
        both = (said * self.present).sum(1)
        return float((2 * both / np.maximum(1, said.sum(1) + self.present.sum(1))).mean())

    def _fields(self) -> list[list[str]] | None:
        """The phrases at each place of a template, None where the texts are of no template."""
        rows = [[p for p in re.split("[，。]", text) if p] for text in self.texts]
        if len({len(row) for row in rows}) != 1 or not re.search("[，。]", self.texts[0]):
            return None
        columns = [sorted(set(column)) for column in zip(*rows, strict=True)]
        return columns if sum(map(len, columns)) == len(self.names) else None


def difference(ours: np.ndarray, other: np.ndarray, clusters: Sequence[str]) -> tuple[float, float, float]:
    """Mean of `ours - other` over slides and its 95 % interval; paired bootstrap that draws whole clusters."""
    names, of_row = np.unique(np.array(clusters), return_inverse=True)
    sums = np.bincount(of_row, ours - other, minlength=len(names))
    counts = np.bincount(of_row, minlength=len(names))
    drawn = np.random.default_rng(0).integers(0, len(names), (2000, len(names)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float((ours - other).mean()), float(low), float(high)


def best_penalty(features: np.ndarray, present: np.ndarray) -> tuple[float, np.ndarray]:
    """The penalty of the ridge that predicts left-out groups of similar slides best, and these predictions (N, W)."""
    group = _clusters(features, _GROUPS)
    errors, predictions = [], []
    for penalty in _PENALTIES:
        left_out = np.empty_like(present)
        for number in np.unique(group):
            out = group == number
            left_out[out] = ridge(features[~out], present[~out], features[out], penalty)
        errors.append(((left_out - present) ** 2).mean())
        predictions.append(left_out)
    best = int(np.argmin(errors))
    return float(_PENALTIES[best]), predictions[best]


def ridge(features: np.ndarray, present: np.ndarray, test: np.ndarray, penalty: float) -> np.ndarray:
    """Predictions (T, W) of a ridge regression on standardised features."""
    mean, spread = features.mean(0), features.std(0) + 1e-6
    features, test = (features - mean) / spread, (test - mean) / spread
    share = present.mean(0)
    # N slides are fewer than D features: the dual form
    dual = np.linalg.solve(features @ features.T + penalty * np.eye(len(features)), present - share)
    return test @ (features.T @ dual) + share


def _clusters(features: np.ndarray, count: int, rounds: int = 20) -> np.ndarray:
    """k-means of standardised rows, seeded; (N,)."""
    rows = (features - features.mean(0)) / (features.std(0) + 1e-6)
    centres = rows[np.random.default_rng(0).permutation(len(rows))[:count]]
    for _ in range(rounds):
        distance = (rows**2).sum(1)[:, None] - 2 * rows @ centres.T + (centres**2).sum(1)
        group = distance.argmin(1)
        for i in np.unique(group):
            centres[i] = rows[group == i].mean(0)
    return group
