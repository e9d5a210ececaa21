"""Functions of the user, named `package.module:function`."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from typing import Any

from .errors import UserError

_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_function_name(name: str) -> bool:
    """Whether a name is one of a function and not a path: C:\\folder has no word behind its colon."""
    return bool(_NAME.fullmatch(name))


def import_function(name: str, where: str) -> Callable[..., Any]:
    """The function `package.module:function`. Raises UserError naming `where`, the setting that has the name."""
    module, _, function_name = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), function_name)
    except Exception as error:  # whatever the user's module raises
        raise UserError(where, f"{name} cannot be imported ({type(error).__name__}: {error})",
                        "give package.module:function, importable from here (see PYTHONPATH)") from None
    if not callable(function):
        raise UserError(where, f"{name} is not a function", "give package.module:function")
    return function
