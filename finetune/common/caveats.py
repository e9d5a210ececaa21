"""What takes away the meaning of a model's scores and captions: said on every page, in the model card and by inference.

It is in `common` because rooms that do not import each other show it.
"""

from __future__ import annotations

from typing import Any

Text = tuple[str, str]  # Chinese, English
_WORTH_A_BANNER = 0.5  # share of the validation texts that stand in training: scores are then mostly of known ones

_RANDOM = (
    "Prism 的权重是随机的（{source}）：只能用来试程序，描述和分数没有医学意义。请用 prism.weights 换成真正的权重。",
    "Prism's weights are random ({source}): good for trying the program only, captions and scores mean nothing "
    "medically. Give the real ones with prism.weights.")
_ALL_SEEN = (
    "全部 {of} 条验证文本都一字不差地出现在训练集里：分数只说明模型能否选对已知文本，不能说明它会写新的文本。",
    "All {of} validation texts also stand in training, word for word: the scores say whether the model picks the right "
    "known text, not whether it can write a new one.")
_MANY_SEEN = (
    "{of} 条验证文本中有 {seen} 条一字不差地出现在训练集里：分数主要说明模型能否选对已知文本。",
    "{seen} of {of} validation texts also stand in training, word for word: the scores mostly say whether the model "
    "picks the right known text.")


def caveats(prism_source: Any, texts: Any) -> list[Text]:
    """What to say in a banner, the gravest first; nothing of what is unknown.

    Args:
        prism_source: Where Prism's weights are from.
        texts: {"validation": number of validation texts, "also_in_training": how many of them stand in training}.
    """
    found: list[Text] = []
    if is_random(prism_source):
        found.append(_filled(_RANDOM, source=prism_source))
    seen, of = _counts(texts)
    if of and seen == of:
        found.append(_filled(_ALL_SEEN, of=of))
    elif of and seen / of >= _WORTH_A_BANNER:
        found.append(_filled(_MANY_SEEN, seen=seen, of=of))
    return found


def is_random(prism_source: Any) -> bool:
    """Whether Prism's weights have learned nothing."""
    return prism_source in ("random", "random-tiny")


def _counts(texts: Any) -> tuple[int, int]:
    """(texts that stand in training, validation texts); (0, 0) where a file does not say."""
    if not isinstance(texts, dict):
        return 0, 0
    seen, of = texts.get("also_in_training"), texts.get("validation")
    if type(seen) is int and type(of) is int:
        return seen, of
    return 0, 0


def _filled(text: Text, **values: Any) -> Text:
    chinese, english = text
    return chinese.format(**values), english.format(**values)
