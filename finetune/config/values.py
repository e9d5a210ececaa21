"""Settings: a field with default, help and range; and how the text of a flag or YAML scalar becomes its value."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from ..common.errors import UserError
from .yaml_slips import in_ascii

# Neither leading zeros nor `1:30`: YAML reads them as octal and sexagesimal, which nobody expects.
_INTEGER = re.compile(r"[+-]?(0|[1-9]\d{0,17})")
_FLOAT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?\.?(inf|nan)")
_EXPECTED = {bool: "true or false", int: "a whole number such as 8", float: "a number such as 1e-4"}


def setting(default: Any, help: str, low: float | None = None, high: float | None = None, *, open_low: bool = False,
            choices: tuple[str, ...] = ()) -> Any:
    """A dataclass field with what its flag and its YAML key need.

    Args:
        default: Its default value.
        help: One line with meaning, unit and the value that turns it off.
        low: Smallest allowed number.
        high: Largest allowed number.
        open_low: `low` itself is excluded.
        choices: The allowed texts; in a field of type `int | str` they are allowed besides numbers. One such as
            `hf:NAME` stands for all texts after `hf:`.
    """
    metadata = {"help": help, "low": low, "high": high, "open_low": open_low, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


def check_known(name: str, known: Iterable[str], where: str, kind: str, meant: str | None = None) -> None:
    """Raise UserError if `name` is not a known one, with the nearest that is.

    Args:
        kind: What it names, such as "section".
        meant: What it names elsewhere, if that is known.
    """
    names = list(known)
    if name in names:
        return
    if meant is not None:
        raise UserError(where, f"unknown {kind}: {name}", f"did you mean {meant}?")
    near = difflib.get_close_matches(name, names, n=1)
    fix = f"did you mean {near[0]}?" if near else f"one of: {', '.join(names)}"
    raise UserError(where, f"unknown {kind}: {name}", fix)


def set_field(owner: Any, name: str, key: str, text: str | None, where: str) -> None:
    """Parse a text by the type of a dataclass field, check its range and set the field.

    Args:
        owner: Instance of a dataclass whose fields are made by `setting`.
        name: The field.
        key: Its name in messages.
        text: The value as text, None for null.
        where: File and line, or flag, for messages.

    Raises:
        UserError: A text that does not fit the type, or a value out of range.
    """
    kind = typing.get_type_hints(type(owner))[name]
    limits = type(owner).__dataclass_fields__[name].metadata
    value = _null(key, kind, where) if text is None else _parse(key, text, kind, limits["choices"], where)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        _check_range(key, value, limits, where)
    setattr(owner, name, value)


def _null(key: str, kind: Any, where: str) -> tuple[()] | None:
    """The value of a key that is null: None where the type allows it, an empty list of texts."""
    if typing.get_origin(kind) is tuple:
        return ()
    if types.NoneType in typing.get_args(kind):  # X | None
        return None
    raise UserError(where, f"{key} is empty", "give a value or leave the key out")


def _parse(key: str, text: str, kind: Any, choices: tuple[str, ...], where: str) -> Any:
    if typing.get_origin(kind) is tuple:  # tuple[str, ...]
        return _parse_list(key, text, choices, where)
    if isinstance(kind, types.UnionType):  # X | None, or a number | str
        kind = typing.get_args(kind)[0]
    if kind is str:
        _check_choice(key, text, choices, where)
        return text
    return text if text in choices else _parse_scalar(key, text, kind, choices, where)


def _parse_list(key: str, text: str, choices: tuple[str, ...], where: str) -> tuple[str, ...]:
    """`[a, b]` or `a,b` without repeats."""
    names = []
    for part in text.strip("[]").split(","):
        name = part.strip()
        if name and name not in names:
            _check_choice(key, name, choices, where)
            names.append(name)
    return tuple(names)


def _check_choice(key: str, text: str, choices: tuple[str, ...], where: str) -> None:
    beginnings = tuple(choice[:choice.index(":") + 1] for choice in choices if ":" in choice)
    is_named = text.startswith(beginnings) and text not in beginnings
    if choices and text not in choices and not is_named:
        raise UserError(where, f"{key} is {text!r}", f"{_plainly(text)}it must be one of {', '.join(choices)}")


def _parse_scalar(key: str, text: str, kind: type, choices: tuple[str, ...], where: str) -> bool | int | float:
    """A bool, int or float. choices: the texts allowed besides, for the message."""
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        pattern = _INTEGER if kind is int else _FLOAT
        if pattern.fullmatch(text):
            return kind(text)
    except (KeyError, ValueError):  # ValueError: `.inf` and `.nan`, as YAML writes them
        pass
    expected = " or ".join((_EXPECTED[kind], *choices))
    raise UserError(where, f"{key} is {text!r}", f"{_plainly(text)}it must be {expected}")


def _plainly(text: str) -> str:
    """A hint for a value in full-width characters, which look like numbers and commas."""
    plain = in_ascii(text)
    return f"write {plain} in ASCII characters; " if plain else ""


def _check_range(key: str, value: float, limits: Mapping[str, Any], where: str) -> None:
    low, high = limits["low"], limits["high"]
    too_low = value <= low if limits["open_low"] else value < low
    too_high = high is not None and value > high
    if math.isfinite(value) and not too_low and not too_high:
        return
    bound = "above" if limits["open_low"] else "at least"
    upper = f" and at most {high:g}" if high is not None else ""
    raise UserError(where, f"{key} is {value}", f"it must be {bound} {low:g}{upper}")
