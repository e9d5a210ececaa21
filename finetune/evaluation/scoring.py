"""Scores of a captioner's answers, each with an interval and beside baselines that do not see the slides.

The answers may come from any source: our models, Prism's decoder, a file.

Shapes: S slides, M texts, C classes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from ..common.score_table import CAPTIONS, COMMON, SCORES, SHUFFLED
from ..common.terminal import aligned_lines
from .agreement import agreement_statistics
from .findings import FindingDictionary, finding_statistics, findings_table
from .reg2025 import RegModels, reg2025_statistics
from .retrieval import Cosines, retrieval_statistics
from .text_findings import text_findings_statistics
from .text_metrics import Statistic, phrase_accuracy, signature, text_statistics

_RESAMPLES, _SEED = 1000, 0
_PERCENTILES = (2.5, 97.5)  # of the resamples: the ends of a 95 % interval


class Interval(NamedTuple):
    """A score and its 95 % interval over resamples of the slides (percentiles); NaN where it is not defined."""

    value: float
    low: float = math.nan
    high: float = math.nan


ColumnScores = dict[str, Interval]  # by the name of the score


@dataclass
class Answers:
    """What a captioner answered about S slides, and what is true of them. Rows of the arrays are slides.

    Attributes:
        captions: One per slide.
        references: One or more texts per slide; empty if only classes are known.
        texts: The M different texts among the references, for retrieval.
        similarity: Of slides and `texts`.
        class_probabilities: For zero-shot classification, (S, C).
        true_classes: Indices of the classes, (S,); -1 for unknown.
        findings: To look for in captions and references; without, the scores that always need them use all
            shipped dictionaries.
        reg_models: For the score of the REG2025 challenge; None leaves it out.
        finished: Whether each caption came to its end before `max_length` tokens cut it; empty where not known.
    """

    captions: Sequence[str]
    references: Sequence[Sequence[str]] = ()
    texts: Sequence[str] = ()
    similarity: Cosines | None = None
    class_probabilities: np.ndarray | None = None
    true_classes: np.ndarray | None = None
    findings: FindingDictionary | None = None
    reg_models: RegModels | None = None
    finished: Sequence[bool] = ()
    max_length: int | None = None

    def statistics(self) -> dict[str, Statistic]:
        """The scores that these answers have, by name."""
        scores = self._text_statistics() if self.references else {}
        if self.similarity is not None:
            scores |= retrieval_statistics(self.similarity, self.texts, self.references)
        if self.class_probabilities is not None and self.true_classes is not None:
            scores |= classification_statistics(self.class_probabilities, self.true_classes)
        return scores | (self._chosen_statistics() if self.references else {})

    def _text_statistics(self) -> dict[str, Statistic]:
        """Those that every caption with a reference has."""
        texts = self.captions, self.references
        dictionary = self.findings or FindingDictionary.shipped()
        return (text_statistics(*texts) | agreement_statistics(dictionary, *texts)
                | text_findings_statistics(dictionary, *texts))

    def _chosen_statistics(self) -> dict[str, Statistic]:
        """Those that were asked for."""
        scores: dict[str, Statistic] = {}
        if self.findings is not None:
            scores |= finding_statistics(self.findings, self.captions, self.references)
        if self.reg_models is not None:
            scores |= reg2025_statistics(self.reg_models, self.captions, self.references)
        return scores

    def first_references(self) -> list[str]:
        """The first text of each slide."""
        return [texts[0] for texts in self.references]

    def with_captions(self, captions: Sequence[str]) -> Answers:
        """Other captions for the same slides, without scores of embeddings."""
        return replace(self, captions=captions, similarity=None, class_probabilities=None)

    def shuffled(self, seed: int = _SEED) -> Answers:
        """Each slide with the answers of another one: a random cycle, so that no slide keeps its own."""
        order = np.random.default_rng(seed).permutation(len(self.captions))
        source = np.empty_like(order)
        source[order] = np.roll(order, 1)

        def rows(array: np.ndarray | None) -> np.ndarray | None:
            return None if array is None else array[source]

        return replace(self, captions=[self.captions[i] for i in source],
                       similarity=self.similarity and self.similarity.take(source),
                       class_probabilities=rows(self.class_probabilities))


@dataclass
class Report:
    """Scores of the captions and of baselines: the most common text for every slide, shuffled answers, texts looked up.

    Attributes:
        answers: What was scored.
        columns: {CAPTIONS, COMMON, SHUFFLED, or how texts were looked up: its scores}.
        differences: {baseline: captions minus baseline}, over the same resamples (paired): an interval without 0 is
            evidence of a difference.
        common_text_of: Whose most common text the baseline is: `training` or `references`.
    """

    answers: Answers
    columns: dict[str, ColumnScores]
    differences: dict[str, ColumnScores]
    common_text_of: str

    def to_dict(self) -> dict[str, Any]:
        """The captions' scores by name, everything else in keys beside them; what is not defined is None."""
        answers, scores = self.answers, self.columns[CAPTIONS]
        result: dict[str, Any] = {"slides": len(answers.captions)} | _values(scores)
        if answers.references:
            result[COMMON] = self.columns[COMMON]["exact_match"].value
            result["phrase_accuracy"] = phrase_accuracy(answers.captions, answers.first_references())
        result["intervals"] = {name: numbers[1:] for name, numbers in _numbers(scores).items()}
        result |= self._of_baselines()
        if answers.findings is not None and answers.references:
            result["findings"] = findings_table(answers.findings, answers.captions, answers.references)
        result["signature"] = self.signature()
        return result

    def _of_baselines(self) -> dict[str, Any]:
        values, differences = {}, {}
        for baseline, of_baseline in self.differences.items():
            values[baseline] = _values(self.columns[baseline])
            differences[baseline] = _numbers(of_baseline)
        return {"baselines": values, "differences": differences}

    def signature(self) -> str:
        """The settings that two comparable reports must share."""
        parts = [f"most_common_text:of {self.common_text_of}",
                 f"bootstrap:{_RESAMPLES} resamples of slides,percentiles,seed{_SEED}"]
        if self.answers.references:
            parts.insert(0, signature(self.answers.references))
        if self.answers.reg_models is not None:
            parts.append(self.answers.reg_models.signature())
        finished = self.answers.finished
        if finished:
            parts.append(f"captions:max_length {self.answers.max_length},{len(finished) - sum(finished)} of "
                         f"{len(finished)} not finished")
        return "|".join(parts)

    def lines(self) -> list[str]:
        """The table for a terminal."""
        rows = [["", *self.columns]]
        for name in self.columns[CAPTIONS]:
            rows.append([name, *(_cell(column.get(name)) for column in self.columns.values())])
        return aligned_lines(rows)


def evaluate(answers: Answers, common_text: str | None = None,
             lookups: Mapping[str, Sequence[str]] | None = None) -> Report:
    """Score answers and baselines over the same 1000 resamples of the slides.

    Args:
        answers: What to score.
        common_text: The most common training text; None takes the most common reference, which a captioner cannot know.
        lookups: Further baselines, {column: a text for each slide}.
    """
    num_slides = len(answers.captions)
    resamples = np.random.default_rng(_SEED).integers(0, num_slides, (_RESAMPLES, num_slides))
    columns: dict[str, ColumnScores] = {}
    resampled: dict[str, dict[str, np.ndarray]] = {}
    for column, statistics in _statistics_of_columns(answers, common_text, lookups or {}).items():
        resampled[column] = _resampled_scores(statistics, resamples)
        columns[column] = _column(statistics, resampled[column], num_slides)
    differences = {column: _differences(columns, resampled, column) for column in columns if column != CAPTIONS}
    return Report(answers, columns, differences, "references" if common_text is None else "training")


def _statistics_of_columns(answers: Answers, common_text: str | None,
                           lookups: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Statistic]]:
    """{column: its scores}: the captions, and the baselines that can be had."""
    columns = {CAPTIONS: answers.statistics()}
    for name, texts in _texts_of_baselines(answers, common_text, lookups).items():
        columns[name] = answers.with_captions(texts).statistics()
    if len(answers.captions) > 1:
        columns[SHUFFLED] = answers.shuffled().statistics()
    return columns


def _texts_of_baselines(answers: Answers, common_text: str | None,
                        lookups: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """{baseline: a text for each slide}, without the captions of other slides; none without references."""
    if not answers.references:
        return {}
    if not common_text:
        common_text = Counter(answers.first_references()).most_common(1)[0][0]
    return {COMMON: [common_text] * len(answers.captions), **lookups}


def _resampled_scores(statistics: Mapping[str, Statistic], resamples: np.ndarray) -> dict[str, np.ndarray]:
    """The values (R,) of each score over resamples (R, S) of the slides.

    A score of the set of captions has none: a resample repeats slides, and with them captions.
    """
    values = {}
    for name, statistic in statistics.items():
        if SCORES[name].per_slide:
            values[name] = np.array([statistic(indices) for indices in resamples])
    return values


def _column(statistics: Mapping[str, Statistic], resampled: Mapping[str, np.ndarray],
            num_slides: int) -> ColumnScores:
    """The scores over all slides, with their intervals."""
    every_slide = np.arange(num_slides)
    return {name: _interval(statistic(every_slide), resampled.get(name)) for name, statistic in statistics.items()}


def _differences(columns: Mapping[str, ColumnScores], resampled: Mapping[str, Mapping[str, np.ndarray]],
                 baseline: str) -> ColumnScores:
    """The captions' scores minus those of a baseline, resample by resample."""
    differences = {}
    for name, values in resampled[baseline].items():
        difference = columns[CAPTIONS][name].value - columns[baseline][name].value
        differences[name] = _interval(difference, resampled[CAPTIONS][name] - values)
    return differences


def classification_statistics(probabilities: np.ndarray, true: np.ndarray) -> dict[str, Statistic]:
    """Scores of zero-shot classification.

    Args:
        probabilities: (S, C).
        true: Indices of the classes, (S,); -1 for unknown, which does not count.
    """
    def of_known(score: Callable[[np.ndarray, np.ndarray], float]) -> Statistic:
        def statistic(indices: np.ndarray) -> float:
            known = indices[true[indices] >= 0]
            return score(probabilities[known], true[known])

        return statistic

    return {"zero_shot_balanced_accuracy": of_known(balanced_accuracy), "zero_shot_auroc": of_known(mean_auroc)}


def balanced_accuracy(probabilities: np.ndarray, true: np.ndarray) -> float:
    """Mean recall of the classes that occur; NaN without slides. probabilities (S, C), true (S,)."""
    is_right = probabilities.argmax(1) == true
    recalls = [is_right[true == c].mean() for c in np.unique(true)]
    return float(np.mean(recalls)) if recalls else math.nan


def mean_auroc(probabilities: np.ndarray, true: np.ndarray) -> float:
    """Mean AUROC of the classes that occur, each against the rest; NaN for a single class. Arguments as above."""
    areas = [auroc(probabilities[:, c], true == c) for c in np.unique(true) if not (true == c).all()]
    return float(np.mean(areas)) if areas else math.nan


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a positive scores above a negative, ties counting half (Mann-Whitney U).

    Args:
        scores: (S,).
        positive: (S,) of booleans, of both kinds.
    """
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]  # from 1, equal scores share their mean
    n = int(positive.sum())
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(scores) - n)))


def _interval(value: float, resampled: np.ndarray | None) -> Interval:
    if resampled is None or math.isnan(value):
        return Interval(value)
    return Interval(value, *np.nanpercentile(resampled, _PERCENTILES).tolist())


def _finite(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def _values(scores: ColumnScores) -> dict[str, float | None]:
    return {name: _finite(score.value) for name, score in scores.items()}


def _numbers(scores: ColumnScores) -> dict[str, list[float | None]]:
    """{score: [value, low, high]}."""
    return {name: [_finite(number) for number in score] for name, score in scores.items()}


def _cell(score: Interval | None) -> str:
    if score is None or math.isnan(score.value):
        return "-"
    interval = "" if math.isnan(score.low) else f" [{score.low:.4f}, {score.high:.4f}]"
    return f"{score.value:.4f}{interval}"
