"""Text -> the value of a config field: parsed by the type of the field, checked against its range."""

from __future__ import annotations

import difflib
import math
import re
import types
import typing
from collections.abc import Iterable
from typing import Any

from ..common.errors import UserError


def _known(name: str, known: Iterable[str], where: str, kind: str) -> str:
    known = list(known)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise UserError(where, f"unknown {kind}: {name}",
                        f"did you mean {near[0]}?" if near else f"one of: {', '.join(known)}")
    return name


def _set_field(owner: Any, name: str, key: str, text: str | None, where: str) -> None:
    """Parse `text` by the type of the dataclass field, check its range and set it; `key` is its name in messages."""
    limits = type(owner).__dataclass_fields__[name].metadata
    value = _parse(key, text, typing.get_type_hints(type(owner))[name], limits["choices"], where)
    _check_range(key, value, limits, where)
    setattr(owner, name, value)


def _parse(key: str, text: str | None, kind: Any, choices: tuple[str, ...], where: str) -> Any:
    if typing.get_origin(kind) is tuple:  # tuple[str, ...]
        names = [name.strip() for name in (text or "").strip("[]").split(",") if name.strip()]
        return tuple(dict.fromkeys(_parse(key, name, str, choices, where) for name in names))
    if isinstance(kind, types.UnionType):  # X | None, or a number | str
        if text is None and types.NoneType in typing.get_args(kind):
            return None
        if text in choices:
            return text
        kind = next(k for k in typing.get_args(kind) if k is not types.NoneType)
    if text is None:
        raise UserError(where, f"{key} is empty", "give a value or leave the key out")
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind is int:
            # no leading zero, no `1:30`: YAML would read them as octal and sexagesimal, people would not
            return int(re.fullmatch(r"[+-]?(0|[1-9]\d{0,17})", text)[0])  # type: ignore[index]
        if kind is float:
            return float(re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?\.?(inf|nan)", text)[0])  # type: ignore[index]
    except (KeyError, TypeError, ValueError):
        wanted = {bool: "true or false", int: "a whole number such as 8", float: "a number such as 1e-4"}[kind]
        raise UserError(where, f"{key} is {text!r}", f"it must be {' or '.join((wanted, *choices))}") from None
    if choices and text not in choices:
        raise UserError(where, f"{key} is {text!r}", f"it must be one of {', '.join(choices)}")
    return text


def _check_range(key: str, value: Any, limits: Any, where: str) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return
    low, high = limits["low"], limits["high"]
    too_low = low is not None and (value <= low if limits["open_low"] else value < low)
    if not math.isfinite(value) or too_low or (high is not None and value > high):
        sign = "above" if limits["open_low"] else "at least"
        upper = f" and at most {high:g}" if high is not None else ""
        raise UserError(where, f"{key} is {value}", f"it must be {sign} {low:g}{upper}")
