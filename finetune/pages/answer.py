"""The first thing in report.html: one sentence that says how good the model is, its figures, and what to do next."""

from __future__ import annotations

from dataclasses import dataclass

from ..common.score_table import CAPTIONS, FEW_SLIDES, RARELY_EXACT, SCORES
from .held_out import BASELINES, LOOK_UPS, Cell, HeldOut, Text

_TEST_NEXT = (
    "先看下面最差的描述，再在没有用来挑选模型的切片上评分：inference.py --split test，或另一批切片。",
    "Read the worst captions below, then score slides that chose nothing: inference.py --split test, or another set.")
_IMPROVE_NEXT = (
    "可以试：更多训练切片；model.size=small；另一个 training.learning_rate；文本都是模板时，查找本来就够用"
    "（docs/scoring.md）。",
    "Try more training slides, model.size=small, another training.learning_rate; where all texts are templates, "
    "looking up is enough (docs/scoring.md).")
_MORE_SLIDES_NEXT = (
    "验证切片太少，先后可能只是偶然：留出更多（data.val_split 或 data.folds）。",
    "So few validation slides that the order may be chance: hold out more (data.val_split or data.folds).")
_HOLD_OUT_NEXT = (
    "没有验证切片，无法知道模型好不好：设 data.val_split，例如 0.1。",
    "Without validation slides nobody knows how good the model is: set data.val_split, such as 0.1.")
_SCORE_NEXT = (
    "给验证切片评分：inference.py --split val --labels_file 标签文件。",
    "Score the validation slides: inference.py --split val --labels_file LABELS.")
_WAIT_NEXT = (
    "训练结束后这里会有与查找训练文本的比较；中断的训练用 --resume auto 继续。",
    "At the end of training this is the comparison with looking up texts; continue a stopped run with --resume auto.")
_REAL_WEIGHTS_NEXT = (
    "换成真正的 Prism 权重再训练；现在的数字只说明程序能运行。",
    "Train with Prism's real weights; these numbers only say that the program runs.")
_NEW_TEXTS_NEXT = (
    "留出文本不在训练集里的病例（data.split_file），再看模型会不会写新的文本。",
    "Hold out cases whose texts are not in training (data.split_file) to see whether the model can write new ones.")


@dataclass(frozen=True)
class Figure:
    """One of the figures on top: the captions, or one way of looking up."""

    heading: Text
    cell: Cell
    is_baseline: bool


@dataclass(frozen=True)
class Answer:
    """What the page says first.

    Attributes:
        score: Label of the score of the figures; None without figures.
        is_share: Whether they are shown in per cent.
    """

    sentence: Text
    next: Text
    figures: list[Figure]
    score: Text | None = None
    is_share: bool = False


def answer(held_out: HeldOut | None, status: str, epochs: tuple[int, str], num_validation: int | None,
           is_random: bool = False, all_seen: bool = False) -> Answer:
    """The answer of a run.

    Args:
        held_out: Its comparison with looking up, made at the end of training.
        status: How it ended: finished, stopped, an error; empty for a run that has not.
        epochs: (those done, those planned).
        num_validation: Number of validation slides, None where it is not known.
        is_random: Whether Prism's weights are random.
        all_seen: Whether all validation texts stand in training.
    """
    if held_out is None:
        return _without_scores(status, epochs, num_validation)
    score = _telling_score(held_out)
    look_ups = {name: held_out.cells[name][score] for name in LOOK_UPS if name in held_out.cells}
    figures = [Figure(("模型的描述", "the model's captions"), held_out.cells[CAPTIONS][score], is_baseline=False)]
    figures += [Figure(BASELINES[name], cell, is_baseline=True) for name, cell in look_ups.items()]
    sentence = _sentence(held_out, score, look_ups)
    if status != "finished":
        done = _progress(status, epochs)
        sentence = done[0] + "上次结束时：" + sentence[0], done[1] + " When it last ended: " + sentence[1]
    what_next = _next(held_out.slides, held_out.cells[CAPTIONS][score].value, look_ups, is_random, all_seen)
    return Answer(sentence, what_next, figures, (SCORES[score].chinese, SCORES[score].english), score == "exact_match")


def _without_scores(status: str, epochs: tuple[int, str], num_validation: int | None) -> Answer:
    if status == "finished":
        return Answer(_progress(status, epochs), _HOLD_OUT_NEXT if num_validation == 0 else _SCORE_NEXT, [])
    return Answer(_progress(status, epochs), _WAIT_NEXT, [])


def _progress(status: str, epochs: tuple[int, str]) -> Text:
    done, planned = epochs
    if status == "finished":
        return f"训练完成，共 {done} 轮。", f"Training is finished after {done} epochs."
    if not status:
        return (f"训练中（或被中断），已完成 {done} / {planned} 轮。",
                f"Training runs (or was cut off): {done} of {planned} epochs are done.")
    reason = "被停止" if status == "stopped" else status
    return (f"训练停在第 {done} / {planned} 轮（{reason}）。",
            f"Training stopped after {done} of {planned} epochs ({status}).")


def _telling_score(held_out: HeldOut) -> str:
    """exact_match, or ROUGE-L where hardly any text is exact."""
    answering = (CAPTIONS, *LOOK_UPS)
    exact = [cells["exact_match"].value for name, cells in held_out.cells.items()
             if name in answering and "exact_match" in cells]
    if exact and max(exact) >= RARELY_EXACT:
        return "exact_match"
    return "rouge_l" if "rouge_l" in held_out.cells[CAPTIONS] else held_out.scores[0]


def _sentence(held_out: HeldOut, score: str, look_ups: dict[str, Cell]) -> Text:
    cell = held_out.cells[CAPTIONS][score]
    own = cell.value
    if score == "exact_match":
        chinese = f"在 {held_out.slides} 张留出的切片上，{_percent(own)} 的描述与参考一字不差"
        english = f"On {held_out.slides} held-out slides {_percent(own)} of the captions are right word for word"
    else:
        label = SCORES[score]
        chinese = f"在 {held_out.slides} 张留出的切片上，描述的 {label.chinese} 为 {own:.2f}"
        english = f"On {held_out.slides} held-out slides the captions have a {label.english} of {own:.2f}"
    if cell.low == cell.low:  # not NaN: there is an interval
        low, high = (_shown(end, score) for end in (cell.low, cell.high))
        chinese += f"（95\u00a0% 区间 {low} 至 {high}）"
        english += f" (95\u00a0% interval {low} to {high})"
    if not look_ups:
        return chinese + "。", english + "."
    best = max(look_ups, key=lambda name: look_ups[name].value)
    verdict = _verdict(look_ups[best])
    shown = _shown(look_ups[best].value, score)
    return (f"{chinese}，{verdict[0]}查找训练文本（最好的是{BASELINES[best][0]}，{shown}）。",
            f"{english}: {verdict[1]} looking up a training text (at best {shown}, by {BASELINES[best][1]}).")


def _shown(value: float, score: str) -> str:
    return _percent(value) if score == "exact_match" else f"{value:.2f}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f}\u00a0%"  # a no-break space


def _verdict(cell: Cell) -> Text:
    """Of the captions against a look-up, by the paired interval of their difference."""
    if cell.low == cell.high == 0:
        return "等同于", "as good as"
    if cell.low > 0:
        return "优于", "better than"
    if cell.high < 0:
        return "不如", "worse than"
    return "看不出优于", "not clearly better than"


def _next(slides: int, own: float, look_ups: dict[str, Cell], is_random: bool, all_seen: bool) -> Text:
    if not (is_random or all_seen or slides < FEW_SLIDES):
        is_better = all(cell.low > 0 for cell in look_ups.values())
        return _TEST_NEXT if is_better or own == 1 else _IMPROVE_NEXT
    first = _REAL_WEIGHTS_NEXT if is_random else _NEW_TEXTS_NEXT if all_seen else _MORE_SLIDES_NEXT
    falls_short = own < 1 and any(cell.difference <= 0 for cell in look_ups.values())
    if not falls_short:
        return first
    return first[0] + _IMPROVE_NEXT[0], f"{first[1]} {_IMPROVE_NEXT[1]}"
