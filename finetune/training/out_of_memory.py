"""Out-of-memory errors: how they are recognised and reported."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ..common.device import is_out_of_memory
from ..common.errors import UserError
from ..data.batch import Batch


@contextlib.contextmanager
def oom_as_user_error(where: str, micro_batches: list[Batch]) -> Iterator[None]:
    """Raise a UserError for a step that does not fit into memory although its micro-batches were halved."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise UserError("training", f"out of memory at {where} ({_largest_input(micro_batches)})",
                        "halving did not help: lower data.max_tiles or make the model smaller, in another folder; "
                        "the last checkpoint is good") from None


def _largest_input(micro_batches: list[Batch]) -> str:
    """What takes the most memory: the longest text of encoded slides, else the largest slide."""
    if any(batch.tile_mask is None for batch in micro_batches):
        longest = max(batch.text.shape[1] for batch in micro_batches)
        return f"texts of up to {longest} tokens"
    largest = (0, "of another process")
    for batch in micro_batches:
        num_tiles = batch.tile_mask.sum(1).tolist()
        largest = max(largest, *zip(num_tiles, batch.ids, strict=True))
    return f"{largest[0]} tiles in slide {largest[1]}"
