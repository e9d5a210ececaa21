"""All texts of small templates, listed from what their slots say, and random templates."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

from finetune.templates.graph import Slot
from finetune.templates.template import Fields, Template


def by_brute_force(template: Template) -> Iterator[tuple[str, Fields]]:
    """(text, fields) of all texts, from the definition of slots alone."""
    slots = list(template.slots.values())
    for values in itertools.product(*[[*slot.values, None] for slot in slots]):
        fields = dict(zip(template.slots, values, strict=True))
        if all(is_allowed(slot, fields, template) for slot in slots):
            yield "".join(printed(template, fields)), fields


def is_allowed(slot: Slot, fields: Fields, template: Template) -> bool:
    """Whether a slot has a value exactly where its group is printed, and may be printed."""
    holds = all(fields[name] in values for name, values in slot.only_if.items())
    group = next((item for item in template.items if slot.name in getattr(item, "slots", ())), None)
    if group is None:
        return fields[slot.name] is not None
    together = {fields[name] is None for name in group.slots}
    all_hold = all(fields[n] in values for name in group.slots for n, values in template.slots[name].only_if.items())
    if len(together) == 2 or (fields[slot.name] is not None and not holds):
        return False
    return fields[slot.name] is not None or group.optional or not all_hold


def printed(template: Template, fields: Fields) -> Iterator[str]:
    skipped_until = 0
    for index, item in enumerate(template.items):
        if index < skipped_until:
            continue
        if isinstance(item, str):
            yield item
        elif hasattr(item, "values"):
            yield fields[item.name]
        elif fields[item.slots[0]] is None:
            skipped_until = item.end


def random_content(rng: random.Random) -> dict[str, Any]:
    """{text, slots} of a small template of few characters, so that texts coincide often."""
    def value():
        return "".join(rng.choices("ab", k=rng.randint(1, 3)))
    names = ["p", "q", "r", "s"][: rng.randint(1, 4)]
    text, slots = rng.choice(["", "a", "b"]), {}
    for number, name in enumerate(names):
        slot = {"values": list({value(): None for _ in range(rng.randint(1, 3))})}
        if rng.random() < 0.4:
            slot["optional"] = True
        earlier = rng.choice(names[:number]) if number and rng.random() < 0.4 else None
        if earlier:
            values = slots[earlier]["values"]
            slot["only_if"] = {earlier: rng.sample(values, rng.randint(1, len(values)))}
        slots[name] = slot
        border = rng.choice(["", "", "a", "，"])
        text += f"[{border}{{{name}}}]" if len(slot) > 1 else f"{border}{{{name}}}"
    return {"text": text + rng.choice(["b", "bb", "。"]), "slots": slots}
