"""Texts written to random forms by a few lines of their own: the truth that a search for their template is held to."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

ORGANS = ("乳腺", "胃", "结肠", "肺", "肝脏", "前列腺", "甲状腺", "膀胱")
TYPES = ("浸润性癌", "原位癌", "慢性炎症", "腺瘤", "鳞状细胞癌", "神经内分泌瘤")
GRADES = ("高分化", "中分化", "低分化")
ANSWERS = ("阴性", "阳性", "可疑", "1+", "2+", "未见", "30%")
QUESTIONS = ("脉管侵犯", "神经侵犯", "切缘", "坏死", "淋巴结转移", "ER", "Ki-67")
FINDINGS = ("间质纤维化", "溃疡形成", "炎细胞浸润", "肠上皮化生", "钙化", "出血", "萎缩")


@dataclass(frozen=True)
class Piece:
    """A clause of a form. before: literal text. needs: the piece and its values beside which it stands only."""

    name: str
    values: Sequence[str]
    before: str
    chance: float = 1.0
    needs: tuple[str, Sequence[str]] | None = None


def random_form(rng: random.Random) -> list[Piece]:
    """Organ, type, a grade of some types, questions with answers, findings that stand there or do not."""
    types = rng.sample(TYPES, rng.randint(2, 6))
    comma = rng.choice(("，", "；"))
    form = [Piece("organ", rng.sample(ORGANS, rng.randint(2, 8)), ""), Piece("type", types, comma)]
    if rng.random() < 0.6:
        form.append(Piece("grade", GRADES, comma, 1.0, ("type", types[: len(types) // 2])))
    for question in rng.sample(QUESTIONS, rng.randint(0, 4)):
        answers = rng.sample(ANSWERS, rng.randint(2, 4))
        form.append(Piece(question, answers, f"{comma}{question}：", rng.choice((1.0, 1.0, 0.5))))
    for finding in rng.sample(FINDINGS, rng.randint(0, 3)):
        form.append(Piece(finding, [finding], comma, rng.uniform(0.2, 0.7)))
    return form


def fill(form: Sequence[Piece], rng: random.Random) -> tuple[str, dict[str, str]]:
    """(text, {piece: value}) with random values."""
    text, fields = "", {}
    for piece in form:
        allowed = piece.needs is None or fields.get(piece.needs[0]) in piece.needs[1]
        if allowed and rng.random() < piece.chance:
            fields[piece.name] = rng.choice(list(piece.values))
            text += piece.before + fields[piece.name]
    return f"{text}。", fields


def free_text(rng: random.Random) -> str:
    """Three to nine clauses of random characters."""
    clauses = ("".join(chr(rng.randrange(0x4E00, 0x4F00)) for _ in range(rng.randint(3, 12)))
               for _ in range(rng.randint(3, 9)))
    return "，".join(clauses) + "。"


def same_partition(texts: Sequence[str], one: Callable[[str], object], other: Callable[[str], object]) -> bool:
    """Whether two readings of texts agree on which of them have the same value."""
    return len({(one(text), other(text)) for text in texts}) == len({one(text) for text in texts}) \
        == len({other(text) for text in texts})


def english(rng: random.Random, sites: Mapping[str, Sequence[str]]) -> str:
    """A report of two sentences."""
    site = rng.choice(list(sites))
    return f"{site}, biopsy: {rng.choice(list(sites[site]))}. Margins are {rng.choice(('clear', 'involved'))}."
