"""What a captioner's answers are worth: every score with an interval, beside captioners that never saw the slides.

Nothing here knows who gave the answers: a model of ours, Prism's own decoder, a file.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from ..common.score_table import SCORES
from .findings import FindingDictionary, finding_statistics, findings_table
from .text_metrics import Statistic, mean_of, phrase_accuracy, signature, text_statistics

CAPTIONS, COMMON, SHUFFLED = "captions", "most_common_text", "shuffled_slides"  # columns of a report
_RESAMPLES, _SEED = 1000, 0


class Interval(NamedTuple):
    """A score and its 95 % interval over resamples of the slides (percentiles); NaN where it is not defined."""

    value: float
    low: float = math.nan
    high: float = math.nan


@dataclass
class Answers:
    """What was said about n slides, and what is true of them. Rows of the arrays are slides.

    references: one or more texts per slide; empty if only classes are known. similarity (n, m): cosines with the m
    different `texts` among the references, for retrieval. class_probabilities (n, c) and true_classes (n,) indices, -1
    for unknown, for zero-shot classification. findings: to look for in captions and references.
    """

    captions: Sequence[str]
    references: Sequence[Sequence[str]] = ()
    texts: Sequence[str] = ()
    similarity: np.ndarray | None = None
    class_probabilities: np.ndarray | None = None
    true_classes: np.ndarray | None = None
    findings: FindingDictionary | None = None

    def statistics(self) -> dict[str, Statistic]:
        scores = text_statistics(self.captions, self.references) if self.references else {}
        if self.similarity is not None:
            scores |= retrieval_statistics(self.similarity, self.texts, self.references)
        if self.class_probabilities is not None and self.true_classes is not None:
            scores |= classification_statistics(self.class_probabilities, self.true_classes)
        if self.findings is not None and self.references:
            scores |= finding_statistics(self.findings, self.captions, self.references)
        return scores

    def shuffled(self, seed: int = _SEED) -> Answers:
        """Each slide with the answers of another one: a random cycle, so that none keeps its own."""
        order = np.random.default_rng(seed).permutation(len(self.captions))
        other = np.empty_like(order)
        other[order] = np.roll(order, 1)
        similarity, odds = (None if a is None else a[other] for a in (self.similarity, self.class_probabilities))
        return replace(self, captions=[self.captions[i] for i in other], similarity=similarity,
                       class_probabilities=odds)


@dataclass
class Report:
    """Scores by column: the captions, the most common text for every slide, and the answers of shuffled slides.

    differences: of the captions to each baseline, over the same resamples (paired): an interval without 0 is a finding.
    """

    answers: Answers
    columns: dict[str, dict[str, Interval]]
    differences: dict[str, dict[str, Interval]]
    common_text_of: str  # training, or references

    def to_dict(self) -> dict[str, Any]:
        """One flat dict of the captions' scores, the rest below it; what is not defined is None."""
        answers, scores = self.answers, self.columns[CAPTIONS]
        result: dict[str, Any] = {"slides": len(answers.captions)}
        result |= {name: _finite(s.value) for name, s in scores.items()}
        if answers.references:
            result[COMMON] = self.columns[COMMON]["exact_match"].value
            result["phrase_accuracy"] = phrase_accuracy(answers.captions, [r[0] for r in answers.references])
        result["intervals"] = {name: [_finite(s.low), _finite(s.high)] for name, s in scores.items()}
        result["baselines"] = {column: {name: _finite(s.value) for name, s in scores.items()}
                               for column, scores in self.columns.items() if column != CAPTIONS}
        result["differences"] = {column: {name: [_finite(x) for x in s] for name, s in scores.items()}
                                 for column, scores in self.differences.items()}
        if answers.findings is not None and answers.references:
            result["findings"] = findings_table(answers.findings, answers.captions, answers.references)
        return result | {"signature": self.signature()}

    def signature(self) -> str:
        texts = [signature(self.answers.references)] if self.answers.references else []
        return "|".join([*texts, f"most_common_text:of {self.common_text_of}",
                         f"bootstrap:{_RESAMPLES} resamples of slides,percentiles,seed{_SEED}"])

    def lines(self) -> list[str]:
        """The table for a terminal."""
        cells = [["", *self.columns]]
        for name in self.columns[CAPTIONS]:
            cells.append([name, *(_cell(column.get(name)) for column in self.columns.values())])
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]


def evaluate(answers: Answers, common_text: str | None = None) -> Report:
    """Score answers and baselines over the same 1000 resamples of the slides.

    common_text: the most common training text; None takes the most common reference, which a captioner cannot know.
    """
    count = len(answers.captions)
    statistics = {CAPTIONS: answers.statistics()}
    if answers.references:
        text = common_text or Counter(r[0] for r in answers.references).most_common(1)[0][0]
        statistics[COMMON] = replace(answers, captions=[text] * count, similarity=None,
                                     class_probabilities=None).statistics()
    if count > 1:
        statistics[SHUFFLED] = answers.shuffled().statistics()
    draws = np.random.default_rng(_SEED).integers(0, count, (_RESAMPLES, count))
    everyone = np.arange(count)
    drawn = {column: {name: np.array([score(d) for d in draws]) for name, score in scores.items()
                      if SCORES[name].per_slide} for column, scores in statistics.items()}
    columns = {column: {name: _interval(score(everyone), drawn[column].get(name)) for name, score in scores.items()}
               for column, scores in statistics.items()}
    differences = {column: {name: _interval(columns[CAPTIONS][name].value - columns[column][name].value,
                                            drawn[CAPTIONS][name] - values) for name, values in scores.items()}
                   for column, scores in drawn.items() if column != CAPTIONS}
    return Report(answers, columns, differences, "references" if common_text is None else "training")


def retrieval_statistics(similarity: np.ndarray, texts: Sequence[str],
                         references: Sequence[Sequence[str]]) -> dict[str, Statistic]:
    """Recall at 1, 5, 10 and median rank both ways: from a slide to any of its texts among all different texts, from a
    slide's first text to any slide that has it. Slides with equal texts are all right answers."""
    place = {text: j for j, text in enumerate(texts)}
    hits = np.zeros(similarity.shape, dtype=bool)
    for i, several in enumerate(references):
        hits[i, [place[text] for text in several]] = True
    ranks = {"image_to_text": first_hit_ranks(similarity, hits),
             "text_to_image": first_hit_ranks(similarity.T, hits.T)[[place[r[0]] for r in references]]}
    scores: dict[str, Statistic] = {}
    for way, rank in ranks.items():
        scores |= {f"{way}_r{k}": mean_of(rank <= k) for k in (1, 5, 10)}
        scores[f"{way}_median_rank"] = lambda indices, rank=rank: float(np.median(rank[indices]))
    return scores


def first_hit_ranks(similarity: np.ndarray, hits: np.ndarray) -> np.ndarray:
    """Rank from 1 of the most similar hit in each row (queries, candidates); a wrong candidate just as similar stands
    before it, so that equal embeddings for all gain nothing."""
    best = np.where(hits, similarity, -np.inf).max(1, keepdims=True)
    return 1 + (~hits & (similarity >= best)).sum(1)


def classification_statistics(probabilities: np.ndarray, true: np.ndarray) -> dict[str, Statistic]:
    """Balanced accuracy (mean recall of the classes there are) and AUROC (each class against the rest, mean)."""
    predicted = probabilities.argmax(1)

    def balanced(indices: np.ndarray) -> float:
        indices = indices[true[indices] >= 0]
        right, truth = predicted[indices] == true[indices], true[indices]
        return float(np.mean([right[truth == c].mean() for c in np.unique(truth)])) if len(truth) else math.nan

    def area(indices: np.ndarray) -> float:
        indices = indices[true[indices] >= 0]
        drawn, truth = probabilities[indices], true[indices]
        areas = [auroc(drawn[:, c], truth == c) for c in np.unique(truth) if not (truth == c).all()]
        return float(np.mean(areas)) if areas else math.nan

    return {"zero_shot_balanced_accuracy": balanced, "zero_shot_auroc": area}


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a positive scores above a negative, ties counting half (Mann-Whitney U)."""
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]  # from 1, equal scores share their mean
    n = int(positive.sum())
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(scores) - n)))


def _interval(value: float, drawn: np.ndarray | None) -> Interval:
    if drawn is None or math.isnan(value):
        return Interval(value)
    return Interval(value, *np.nanpercentile(drawn, [2.5, 97.5]).tolist())


def _finite(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def _cell(score: Interval | None) -> str:
    if score is None or math.isnan(score.value):
        return "-"
    return f"{score.value:.4f}" + ("" if math.isnan(score.low) else f" [{score.low:.4f}, {score.high:.4f}]")
