"""Random templates with values that are easily confused: beginnings of each other, digits, mixed scripts, punctuation."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from finetune.common.errors import UserError
from finetune.templates.template import Template

FAMILIES = (
    ("癌", "癌变", "癌前病变", "原位癌", "非癌"), ("胃", "胃窦", "胃窦部", "窦部", "胃体、胃窦"),
    ("高分化", "中分化", "低分化", "中-低分化", "高—中分化", "未分化"), ("1", "10", "100", "1+", "1+～2+", "10%", "10%-20%"),
    ("grade 1", "grade 10", "grade 1-2", "grade", "low grade"), ("HER2（0）", "HER2（2+）", "HER2 (2+)", "HER2", "Ki-67约30%"),
    ("a", "ab", "abc", "b", "bc", "ca"), ("有", "无", "未见", "可见", "不除外"), ("3/12", "3/1", "0/12", "12/3"),
    ("A、B", "A，B", "A", "B；C", "A。B"), ("invasive carcinoma", "carcinoma", "carcinoma in situ", "in situ carcinoma"),
    ("pT1", "pT1a", "pT1b", "pT2", "T1"), ("é", "Ω", "①", "²", "μm", "🙂"), ("(a)", "[a]", "{a}", "\"a\"", "a:b", "a'b"))
BETWEEN = ("", "", "", "", "，", "、", "：", " ", ", ", "（", "伴", "; ", " with ", "[[x]]", "{{y}}", "1", "-")
ENDS = ("", "。", ".", "）", "!", "分化")


def alphabet() -> list[str]:
    """Texts with all characters of the templates, to make a tokenizer of."""
    literal = [piece.replace("[[", "[").replace("]]", "]").replace("{{", "{").replace("}}", "}") for piece in BETWEEN]
    return [value + other for family in FAMILIES for value in family for other in (*literal, *ENDS)]


def odd_content(rng: random.Random) -> dict[str, Any]:
    """{text, slots} with one to six slots, some optional, some with conditions, some together in brackets."""
    text, slots = rng.choice(BETWEEN), {}
    inside: list[str] = []
    for number in range(rng.randint(1, 6)):
        name = rng.choice(("项目", "slot", "Ki-67 值")) + str(number)
        slot: dict[str, Any] = {"values": _values(rng)}
        if rng.random() < 0.35:
            slot["optional"] = True
        outside = [other for other in slots if other not in inside]
        if outside and rng.random() < 0.35:
            earlier = rng.choice(outside)
            allowed = slots[earlier]["values"]
            slot["only_if"] = {earlier: rng.sample(allowed, rng.randint(1, len(allowed)))}
        piece = f"{rng.choice(BETWEEN)}{{{name}}}{rng.choice(('', '', '）', '%'))}"
        if len(slot) > 1 or inside:
            if not inside:
                text += "["
            inside.append(name)
        slots[name] = slot
        text += piece
        if inside and rng.random() < 0.7:
            text, inside = text + "]", []
    return {"text": text + "]" * bool(inside) + rng.choice(ENDS), "slots": slots}


def _values(rng: random.Random) -> list[str]:
    family = rng.choice(FAMILIES)
    values = rng.sample(family, rng.randint(1, len(family)))
    if rng.random() < 0.3:
        values += rng.sample(rng.choice(FAMILIES), 2)
    return list(dict.fromkeys(values))


def odd_templates(seed: int) -> Iterator[Template]:
    """Those of random ones that are unambiguous; no end."""
    rng = random.Random(seed)
    while True:
        try:
            yield Template.from_dict(odd_content(rng))
        except UserError:
            continue
