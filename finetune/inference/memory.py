"""Out of memory as the error of a slide."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ..common.device import is_out_of_memory
from ..common.errors import UserError


def out_of_memory(where: str, when: str) -> UserError:
    """The error of a slide that does not fit into memory."""
    return UserError(where, f"out of memory {when}", "use a machine with more memory, or fewer tiles of it; "
                     "other slides are not affected")


@contextlib.contextmanager
def memory_errors(where: str, when: str) -> Iterator[None]:
    """Raise `out_of_memory` in place of what torch and numpy raise; other errors pass."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(where, when) from None
