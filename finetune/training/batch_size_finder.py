"""`training.batch_size: auto`: the largest micro-batch that fits into the memory of the device, found by trying."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ..common.distributed import ALONE
from ..common.log import logger
from ..data.batch import Batch, Sample
from .objective import Objective, is_out_of_memory

# On a CPU nothing says no: the system swaps, or kills the process. There a larger batch is no faster either.
_PROBED = ("cuda",)
_UNPROBED = 4


def largest_batch(objective: Objective, samples: Sequence[Sample], max_tiles: int | None, cached: bool) -> int:
    """The number of slides in a micro-batch on each rank: all of them of the longest text and of the largest slide.

    Doubled until it does not fit, then bisected to within an eighth; at most this rank's share of `samples`. The
    gradients and both moments of AdamW are in memory meanwhile, as they will be.
    """
    device, world = objective.precision.device, objective.world
    if device.type not in _PROBED:
        logger.info("training.batch_size auto: %d, as memory is not probed on a CPU", _UNPROBED)
        return _UNPROBED
    local = Objective(objective.model, objective.precision, ALONE, objective.user_loss, retry=False)
    scaler = objective.precision.scaler()
    moments = [torch.zeros_like(p) for p in objective.model.trained_parameters() for _ in range(2)]
    tried: list[str] = []

    def fits(size: int) -> bool:
        batch = _largest(objective, samples, max_tiles, cached, size)
        try:
            local.backward([batch], scaler)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            tried.append(f"{size} does not fit")
            return False
        finally:
            objective.model.zero_grad(set_to_none=True)
            if device.type == "cuda":
                torch.cuda.empty_cache()
        tried.append(f"{size} fits")
        return True

    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        found = search(fits, max(1, len(samples) // world.size))
    del moments
    size = min(world.gather(found))
    logger.info("training.batch_size auto: %d (on this process: %s)", size, ", ".join(tried))
    return size


def search(fits: Callable[[int], bool], most: int) -> int:
    """The largest size from 1 to `most` that fits, or up to an eighth less; 1 if none does: training will tell."""
    good, bad = 1, most + 1
    while good * 2 < bad and fits(good * 2):
        good *= 2
    bad = min(bad, good * 2)
    while bad - good > max(1, good // 8):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def _largest(objective: Objective, samples: Sequence[Sample], max_tiles: int | None, cached: bool, size: int) -> Batch:
    """A batch of random numbers, of the size of the longest text and the largest slide; (size, ...) each."""
    model, device = objective.model, objective.precision.device
    length = max(s.most_tokens for s in samples)
    text = torch.randint(0, 1 + max(max(s.token_ids) for s in samples), (size, length), device=device)
    mask, ids = torch.ones_like(text, dtype=torch.bool), [""] * size
    if cached:
        tokens = torch.randn(size, *model.image_tokens_shape, device=device)
        return Batch(ids, None, None, text, text, mask, tokens)
    tiles = max(min(s.slide.num_tiles, max_tiles or s.slide.num_tiles) for s in samples)
    embeddings = torch.randn(size, tiles, model.prism.tile_dim, device=device)
    return Batch(ids, embeddings, torch.ones(embeddings.shape[:2], dtype=torch.bool, device=device), text, text, mask)
