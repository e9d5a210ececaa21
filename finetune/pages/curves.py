"""The curves of a run: which scores share a chart, which charts come first."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..common.run_folder import Record
from ..common.score_table import RECORD_FIELDS, SCORES, VALIDATION, Score, find_score, score_names
from .charts import Chart, Points, Text, line_chart
from .drawable import finite_or_nan
from .score_notes import note

NUM_FIRST = 3  # charts on top; the others are behind a click
_MAX_LINES = 8  # in one chart: as many as page.css has line styles
_TRAIN, _VALIDATION = ("训练", "training"), ("验证", "validation")
_SHARE, _LOSS, _VALUE = ("分数（0–1）", "score (0-1)"), ("损失（nat）", "loss (nat)"), ("值", "value")


@dataclass(frozen=True)
class _Family:
    """Scores that are drawn in one chart, as validation measures them."""

    title: Text
    y_label: Text
    names: tuple[str, ...]
    note: Text


_CAPTIONS = _Family(
    ("描述与参考有多像", "how close captions are to references"), _SHARE,
    ("exact_match", "bleu_4", "rouge_l", "token_alignment", "chrf"),
    ("BLEU-4：连续 4 词相同；ROUGE-L：最长共同序列；“一字不差”最严格",
     "BLEU-4: equal runs of 4 words; ROUGE-L: longest common sequence; exact matches are the strictest"))
_RECALLS = _Family(
    ("检索 R@K", "retrieval R@K"), ("比例（0–1）", "share (0-1)"),
    tuple(f"{way}_r{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)),
    ("R@K：正确答案排在前 K 名的比例", "R@K: share whose right answer is among the first K"))
_FAMILIES = (
    _Family(("可接受、安全的描述", "acceptable and safe captions"), _SHARE,
            ("acceptable_match", "safe_match", "text_findings"), note("acceptable_match")),
    _Family(("CIDEr", "CIDEr"), ("0–10", "0-10"), ("cider",), note("cider")),
    _Family(("BLEU-1 到 BLEU-4", "BLEU-1 to BLEU-4"), _SHARE, ("bleu_1", "bleu_2", "bleu_3", "bleu_4"),
            ("连续 1 到 4 个词（汉字）与参考相同的比例", "share of equal runs of 1 to 4 words (Chinese characters)")),
    _Family(("检索的中位排名", "median rank of retrieval"), ("排名", "rank"),
            ("image_to_text_median_rank", "text_to_image_median_rank"), note("image_to_text_median_rank")),
    _Family(("不同的描述", "different captions"), ("比例（0–1）", "share (0-1)"),
            ("distinct_captions", "distinct_share"), note("distinct_captions")),
    _Family((SCORES["shuffled_gap"].chinese, SCORES["shuffled_gap"].english), _LOSS, ("shuffled_gap",),
            note("shuffled_gap")),
)


def charts(metrics: Sequence[Record], epoch_events: Sequence[Record], best_epoch: int | None) -> list[Chart]:
    """The charts of the page, those that matter most first; those without a value are left out.

    Args:
        metrics: Lines of metrics.jsonl, one for each epoch.
        epoch_events: What events.jsonl says about the same epochs.
        best_epoch: Of the model that is kept.
    """
    drawn = [_loss("caption_loss", metrics, best_epoch), _family(_CAPTIONS, metrics, best_epoch),
             _family(_RECALLS, metrics, best_epoch), _loss("contrastive_loss", metrics, best_epoch),
             _loss("loss", metrics, best_epoch)]
    drawn += [_family(family, metrics, best_epoch) for family in _FAMILIES]
    drawn += _others(metrics, best_epoch)
    drawn += _machine(metrics, epoch_events)
    return [chart for chart in drawn if chart is not None]


def _loss(name: str, metrics: Sequence[Record], best_epoch: int | None) -> Chart | None:
    title = SCORES[name].chinese, SCORES[name].english
    curves = {_TRAIN: _curve(metrics, name), _VALIDATION: _curve(metrics, VALIDATION + name)}
    return line_chart(title, _LOSS, curves, note(name), best_epoch)


def _family(family: _Family, metrics: Sequence[Record], best_epoch: int | None) -> Chart | None:
    curves = {}
    for name in family.names:
        curves[SCORES[name].chinese, SCORES[name].english] = _curve(metrics, VALIDATION + name)
    return line_chart(family.title, family.y_label, curves, family.note, best_epoch)


def _others(metrics: Sequence[Record], best_epoch: int | None) -> list[Chart | None]:
    """Scores without a family: those from 0 to 1 share charts, each of the others has its own."""
    curves = {name: _curve(metrics, name) for name in _names_without_family(metrics)}
    shares: dict[Text, Points] = {}
    drawn = []
    for name, points in curves.items():
        title = label_of(name)
        if _is_share(name, points):
            shares[title] = points
        else:
            drawn.append(line_chart(title, _VALUE, {title: points}, marked_epoch=best_epoch))
    lines = list(shares.items())
    for start in range(0, len(lines), _MAX_LINES):
        some = dict(lines[start:start + _MAX_LINES])
        drawn.append(line_chart(("其他分数", "other scores"), _SHARE, some, marked_epoch=best_epoch))
    return drawn


def _machine(metrics: Sequence[Record], epoch_events: Sequence[Record]) -> list[Chart | None]:
    rate, speed, memory = ("学习率", "learning rate"), ("速度", "throughput"), ("内存峰值", "peak memory")
    return [line_chart(rate, rate, {rate: _curve(metrics, "lr")}),
            line_chart(speed, ("切片/秒", "slides/s"), {_TRAIN: _curve(epoch_events, "slides_per_second")}),
            line_chart(memory, ("GB", "GB"), {("内存", "memory"): _curve(epoch_events, "memory_gb"),
                                              ("显存", "GPU memory"): _curve(epoch_events, "gpu_memory_gb")})]


def _names_without_family(metrics: Iterable[Record]) -> list[str]:
    """Names in metrics.jsonl that no chart above draws: a user's loss terms, newer scores."""
    drawn = {*RECORD_FIELDS, *score_names("loss"), *(VALIDATION + name for name in score_names("loss"))}
    for family in (_CAPTIONS, _RECALLS, *_FAMILIES):
        drawn |= {VALIDATION + name for name in family.names}
    names: dict[str, None] = {}  # an ordered set
    for record in metrics:
        names |= dict.fromkeys(name for name in record if name not in drawn)
    return list(names)


def label_of(name: str) -> Text:
    """What people read of a name in metrics.jsonl; one that is in no table is its own label."""
    if name == "negatives":
        return "每张切片的负样本", "negatives per slide"
    score = find_score(name)
    return (name, name) if score is None else (score.chinese, score.english)


def _is_share(name: str, points: Points) -> bool:
    """Whether a score goes from 0 to 1: by the score table, and for a user's own loss term by its values so far."""
    score = find_score(name)
    if score is not None:
        return (score.low, score.high) == (0, 1)
    return all(0 <= value <= 1 for _, value in points if math.isfinite(value))


def _curve(records: Iterable[Record], name: str) -> Points:
    """[(epoch, value)], NaN where a record has no number; rounding errors beyond the range of a score are cut."""
    score = find_score(name)
    return [(record["epoch"], _within(score, finite_or_nan(record.get(name)))) for record in records]


def _within(score: Score | None, value: float) -> float:
    if score is None or math.isnan(value):
        return value
    return min(max(value, score.low), score.high)
