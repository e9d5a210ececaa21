"""The table of all scores: name, better direction, range and labels.

It is in `common` because rooms that do not import each other read it: `evaluation` computes the scores, `training`
selects the best model by one of them, the report page and the model card show them. It computes nothing.

A new score is one row here and its function in `evaluation/text_metrics.py` or `evaluation/scoring.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Kind = Literal["loss", "collapse", "text", "retrieval", "classification", "finding", "reg2025"]
VALIDATION = "val_"  # prefix in metrics.jsonl of what is measured on the validation slides
LAST_EPOCH = "last"  # value of `training.monitor` that is not a score: the last epoch, whatever its scores
# The fields of a metrics.jsonl line that are not scores.
RECORD_FIELDS = ("epoch", "step", "lr", "best", "skipped_steps")
# Columns of a table of scores: the captions, and what they are held against.
CAPTIONS, COMMON, SHUFFLED = "captions", "most_common_text", "shuffled_slides"
NEAREST_TEXT, PROBE_TEXT = "nearest_training_text", "linear_probe"  # what looking up would answer
# How the captions are compared with the others, in the log and on the page.
FEW_SLIDES = 10  # the order of two scores of fewer is chance
RARELY_EXACT = 0.1  # below this share of exact texts for all, another score tells more


@dataclass(frozen=True)
class Score:
    """One score.

    Attributes:
        name: In the summary of inference.py, and with `val_` in metrics.jsonl and `training.monitor`.
        kind: What it measures; the kinds are computed by different functions.
        better: The direction in which a model improves.
        low, high: The range of the values.
        english, chinese: Labels in the report and in the model card.
        log_line: Whether the log line of an epoch shows it; files and trackers have all scores.
        per_slide: Whether it is defined for a single slide. Else it has no interval either: a resample repeats slides.
        old_names: Names in files of earlier versions.
    """

    name: str
    kind: Kind
    better: Literal["higher", "lower"]
    low: float
    high: float
    english: str
    chinese: str
    log_line: bool = False
    per_slide: bool = True
    old_names: tuple[str, ...] = ()


_ROWS = (
    Score("loss", "loss", "lower", -math.inf, math.inf, "loss", "总损失", log_line=True),
    Score("caption_loss", "loss", "lower", 0, math.inf, "caption loss", "描述损失", log_line=True),
    Score("contrastive_loss", "loss", "lower", 0, math.inf, "contrastive loss", "对比损失", log_line=True),
    Score("shuffled_gap", "collapse", "higher", -math.inf, math.inf, "caption loss added by shuffling the slides",
          "打乱切片后描述损失的增加", log_line=True),
    Score("distinct_captions", "collapse", "higher", 0, 1, "distinct captions of the first slides",
          "前几张切片中不同描述的比例", log_line=True),
    Score("bleu_1", "text", "higher", 0, 1, "BLEU-1", "BLEU-1"),
    Score("bleu_2", "text", "higher", 0, 1, "BLEU-2", "BLEU-2"),
    Score("bleu_3", "text", "higher", 0, 1, "BLEU-3", "BLEU-3"),
    Score("bleu_4", "text", "higher", 0, 1, "BLEU-4", "BLEU-4", log_line=True),
    Score("chrf", "text", "higher", 0, 1, "chrF", "chrF"),
    Score("rouge_l", "text", "higher", 0, 1, "ROUGE-L", "ROUGE-L", log_line=True),
    Score("token_alignment", "text", "higher", 0, 1, "token alignment", "词元对齐",
          old_names=("meteor", "meteor_exact")),
    Score("cider", "text", "higher", 0, 10, "CIDEr", "CIDEr"),
    Score("distinct_share", "text", "higher", 0, 1, "distinct captions", "不同描述的比例", per_slide=False),
    Score("exact_match", "text", "higher", 0, 1, "exact (strict) matches", "与参考一字不差的比例（严格）",
          log_line=True),
    Score("acceptable_match", "text", "higher", 0, 1, "acceptable matches", "可接受的比例"),
    Score("safe_match", "text", "higher", 0, 1, "safe captions", "没有危险矛盾的比例"),
    Score("text_findings", "text", "higher", 0, 1, "text and findings", "文本与发现综合"),
    Score("image_to_text_r1", "retrieval", "higher", 0, 1, "image-to-text R@1", "以图搜文 R@1"),
    Score("image_to_text_r5", "retrieval", "higher", 0, 1, "image-to-text R@5", "以图搜文 R@5"),
    Score("image_to_text_r10", "retrieval", "higher", 0, 1, "image-to-text R@10", "以图搜文 R@10"),
    Score("image_to_text_median_rank", "retrieval", "lower", 1, math.inf, "image-to-text median rank",
          "以图搜文的中位排名"),
    Score("text_to_image_r1", "retrieval", "higher", 0, 1, "text-to-image R@1", "以文搜图 R@1"),
    Score("text_to_image_r5", "retrieval", "higher", 0, 1, "text-to-image R@5", "以文搜图 R@5"),
    Score("text_to_image_r10", "retrieval", "higher", 0, 1, "text-to-image R@10", "以文搜图 R@10"),
    Score("text_to_image_median_rank", "retrieval", "lower", 1, math.inf, "text-to-image median rank",
          "以文搜图的中位排名"),
    Score("zero_shot_balanced_accuracy", "classification", "higher", 0, 1, "zero-shot balanced accuracy",
          "零样本平衡准确率"),
    Score("zero_shot_auroc", "classification", "higher", 0, 1, "zero-shot AUROC", "零样本 AUROC"),
    Score("finding_presence_precision", "finding", "higher", 0, 1, "precision of findings present",
          "“存在”的精确率"),
    Score("finding_presence_recall", "finding", "higher", 0, 1, "recall of findings present", "“存在”的召回率"),
    Score("finding_absence_precision", "finding", "higher", 0, 1, "precision of findings absent",
          "“不存在”的精确率"),
    Score("finding_absence_recall", "finding", "higher", 0, 1, "recall of findings absent", "“不存在”的召回率"),
    Score("finding_contradictions", "finding", "lower", 0, math.inf, "contradictions per slide", "每张切片的矛盾数"),
    Score("reg2025_rouge", "reg2025", "higher", 0, 1, "REG2025: ROUGE", "REG2025：ROUGE"),
    Score("reg2025_bleu", "reg2025", "higher", 0, math.inf, "REG2025: BLEU", "REG2025：BLEU"),
    Score("reg2025_keywords", "reg2025", "higher", 0, 1, "REG2025: keywords", "REG2025：关键词"),
    Score("reg2025_embedding", "reg2025", "higher", -1, 1, "REG2025: embedding", "REG2025：句向量"),
    Score("reg2025", "reg2025", "higher", -0.3, math.inf, "REG2025 ranking score", "REG2025 总分"),
)
SCORES = {score.name: score for score in _ROWS}


def score_names(*kinds: Kind) -> list[str]:
    """The names of the scores of these kinds, in the order of the table."""
    return [score.name for score in SCORES.values() if score.kind in kinds]


def find_score(name: str) -> Score | None:
    """The row of a name, with or without `val_`, current or old; None for a name that is not in the table."""
    return SCORES.get(canonical_name(name).removeprefix(VALIDATION))


def canonical_name(name: str) -> str:
    """The current name of a score; `val_` stays, and so does a name that is not in the table.

    Configs, checkpoints and run folders of earlier versions hold `meteor`, `val_meteor`,
    `meteor_exact` and `val_meteor_exact`.
    """
    bare = name.removeprefix(VALIDATION)
    for score in SCORES.values():
        if bare in score.old_names:
            return name.removesuffix(bare) + score.name
    return name


def higher_is_better(name: str) -> bool:
    """Whether the best model has the highest value; parts of a custom loss are better when lower."""
    score = find_score(name)
    return score is not None and score.better == "higher"


def label(name: str) -> str:
    """What people read in English; a name that is not in the table is its own label."""
    score = find_score(name)
    return name if score is None else score.english
