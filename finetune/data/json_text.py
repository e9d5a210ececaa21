"""JSON files read strictly: a repeated key, of which Python would silently keep the last value, is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from ..common.memory import require_memory

_SHOWN = 20  # characters of a text in a message: texts are private
# Bytes that Python takes for an object and for each of its values, measured on labels and records of one letter
_OBJECT_BYTES, _VALUE_BYTES = 350, 190
_FACTOR = 16  # times the size of the file that its values may take; those of reports take 2 to 5 times
_SMALL = 1 << 30  # bytes that they may always take


def require_few_values(text: str, path: Path, expected: str) -> None:
    """Refuse very many tiny values before they are made: `[{},{},...]` takes 120 times its size in memory.

    Args:
        text: A JSON text, or one in each line.
        path, expected: As in `parse_json`.

    Raises:
        UserError: There are many times more values than reports could have, or than the memory can hold.
    """
    num_objects = text.count("{")
    num_values = text.count(",") + text.count(":")  # those inside of texts are counted, too
    num_bytes = _OBJECT_BYTES * num_objects + _VALUE_BYTES * num_values
    if num_bytes > max(_SMALL, _FACTOR * len(text)):
        raise UserError(path, f"holds about {(num_objects + num_values) / 1e6:.0f} million values in "
                        f"{len(text) / 1e6:.0f} million characters: not a labels file", expected)
    require_memory(path, num_bytes, "its values")


def parse_json(text: str, path: Path, expected: str, first_line: int = 1) -> Any:
    """Parse a JSON text.

    Args:
        text: The text.
        path: Of its file, for messages.
        expected: What the file should hold, for messages.
        first_line: Number of the text's first line in its file.

    Raises:
        UserError: Naming file and position of what is not JSON, or a repeated key; many times more values than texts
            could have, or than the memory can.
    """
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                first, second = str(result[key])[:_SHOWN], str(value)[:_SHOWN]
                raise UserError(path, f"id {key!r} appears twice ({first!r} and {second!r})", "keep one of them")
            result[key] = value
        return result

    require_few_values(text, path, expected)
    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        fix = r"write the \ of a Windows path as \\ or /" if "escape" in error.msg else "correct the file there"
        raise UserError(f"{path}:{error.lineno + first_line - 1}:{error.colno}", f"not valid JSON ({error.msg})",
                        fix) from None
    except (RecursionError, ValueError):  # ValueError: a number of thousands of digits
        raise UserError(path, "not a labels file", expected) from None
