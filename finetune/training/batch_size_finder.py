"""`training.batch_size: auto`: the largest micro-batch that fits into the memory of the device, found by trying."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ..common.device import is_out_of_memory
from ..common.distributed import ALONE
from ..common.log import logger
from ..data.batch import Batch, Sample
from .objective import Objective

# On a CPU allocation does not fail: the system swaps or kills the process. Nor is a larger batch any faster there.
_PROBED = ("cuda",)
_UNPROBED_SIZE = 4


def largest_batch(objective: Objective, samples: Sequence[Sample], max_tiles: int | None, cached: bool) -> int:
    """The number of slides in a micro-batch that fits on every rank, if all have the longest text and most tiles.

    Doubled until it does not fit, then bisected to within an eighth; at most this rank's share of `samples`. Tensors of
    the size of the gradients and both moments of AdamW are in memory meanwhile, as they are in training.

    Args:
        cached: Whether slides come encoded, from the slide cache.
    """
    device, world = objective.precision.device, objective.world
    if device.type not in _PROBED:
        logger.info("training.batch_size auto: %d, as memory is not probed on a CPU", _UNPROBED_SIZE)
        return _UNPROBED_SIZE
    local = Objective(objective.model, objective.precision, ALONE, objective.custom_loss, halve_on_oom=False)
    scaler = objective.precision.scaler()
    moments = [torch.zeros_like(p) for p in objective.model.trained_parameters() for _ in range(2)]
    tried: list[str] = []

    def fits(size: int) -> bool:
        batch = _largest_possible(objective, samples, max_tiles, cached, size)
        # the loader copies the next batch ahead
        ahead = torch.empty_like(batch.image_tokens if cached else batch.tile_embeddings)
        try:
            local.backward([batch], scaler)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            tried.append(f"{size} does not fit")
            return False
        finally:
            del ahead
            objective.model.zero_grad(set_to_none=True)
            if device.type == "cuda":
                torch.cuda.empty_cache()
        tried.append(f"{size} fits")
        return True

    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        local_size = search(fits, max(1, len(samples) // world.size))
    del moments
    size = min(world.gather(local_size))
    logger.info("training.batch_size auto: %d (on this process: %s)", size, ", ".join(tried))
    return size


def search(fits: Callable[[int], bool], limit: int) -> int:
    """The largest size from 1 to `limit` that fits, or up to an eighth less. 1 is not tried: training will."""
    good, bad = 1, limit + 1
    while good * 2 < bad and fits(good * 2):
        good *= 2
    bad = min(bad, good * 2)
    while bad - good > max(1, good // 8):
        middle = (good + bad) // 2
        if fits(middle):
            good = middle
        else:
            bad = middle
    return good


def _largest_possible(objective: Objective, samples: Sequence[Sample], max_tiles: int | None, cached: bool,
                      size: int) -> Batch:
    """A batch of `size` random slides, each with the longest text and most tiles of all samples."""
    model, device = objective.model, objective.precision.device
    length = max(sample.most_tokens for sample in samples)
    vocabulary = 1 + max(max(sample.token_ids) for sample in samples)
    text = torch.randint(0, vocabulary, (size, length), device=device)
    text_mask = torch.ones_like(text, dtype=torch.bool)
    ids = [""] * size
    if cached:
        image_tokens = torch.randn(size, *model.image_tokens_shape, device=device)
        return Batch(ids, None, None, text, text, text_mask, image_tokens)
    num_tiles = max(sample.slide.num_tiles for sample in samples)
    if max_tiles:
        num_tiles = min(num_tiles, max_tiles)
    tiles = torch.randn(size, num_tiles, model.prism.tile_dim, device=device)
    tile_mask = torch.ones(size, num_tiles, dtype=torch.bool)
    return Batch(ids, tiles, tile_mask, text, text, text_mask)
