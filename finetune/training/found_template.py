"""The template that the training texts follow goes into the checkpoints, for `inference.py --template auto`."""

from __future__ import annotations

from typing import Any

from ..checkpoints.format import Checkpoint
from ..common.distributed import World
from ..common.log import logger
from ..config.schema import Config
from ..data.prepare import Data
from ..evaluation.template_search import find_template


def template_of(config: Config, data: Data, checkpoint: Checkpoint | None, world: World) -> dict[str, Any] | None:
    """What `Template.to_dict` has of the training texts, None if they follow none or no captions are trained.

    Args:
        checkpoint: Of the run that is resumed, which may have it.
    """
    if not config.trains_captions:
        return None
    if checkpoint and checkpoint.template:
        return checkpoint.template
    return world.broadcast_object(lambda: _found(data))


def _found(data: Data) -> dict[str, Any] | None:
    found = find_template([text for sample in data.train for text in sample.references])
    logger.info("training texts: %s", found.summary())
    return found.template.to_dict() if found.template else None
