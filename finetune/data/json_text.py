"""JSON files read strictly: a repeated key, of which Python would silently keep the last value, is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..common.errors import UserError

_SHOWN = 20  # characters of a text in a message: texts are private


def parse_json(text: str, path: Path, expected: str, first_line: int = 1) -> Any:
    """Parse a JSON text.

    Args:
        text: The text.
        path: Of its file, for messages.
        expected: What the file should hold, for messages.
        first_line: Number of the text's first line in its file.

    Raises:
        UserError: Naming file and position of what is not JSON, or a repeated key.
    """
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                first, second = str(result[key])[:_SHOWN], str(value)[:_SHOWN]
                raise UserError(path, f"id {key!r} appears twice ({first!r} and {second!r})", "keep one of them")
            result[key] = value
        return result

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        fix = r"write the \ of a Windows path as \\ or /" if "escape" in error.msg else "correct the file there"
        raise UserError(f"{path}:{error.lineno + first_line - 1}:{error.colno}", f"not valid JSON ({error.msg})",
                        fix) from None
    except (RecursionError, ValueError):  # ValueError: a number of thousands of digits
        raise UserError(path, "not a labels file", expected) from None
