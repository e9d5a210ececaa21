"""Out of memory as the error of a slide."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ..common.device import is_out_of_memory
from ..common.errors import UserError


@contextlib.contextmanager
def memory_errors(where: str, when: str) -> Iterator[None]:
    """Raise UserError for a slide that does not fit, in place of what torch and numpy raise; other errors pass."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(where, f"out of memory {when}", "use a machine with more memory, or fewer tiles of it; "
                        "other slides are not affected") from None
