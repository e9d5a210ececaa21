"""The template that the training texts follow goes into the checkpoints, for `inference.py --template auto`."""

from __future__ import annotations

from functools import partial
from typing import Any

from ..checkpoints.format import Checkpoint
from ..common.distributed import World
from ..common.errors import UserError
from ..common.log import logger
from ..config.schema import Config
from ..data.kept_results import KeptResults, key_of
from ..data.prepare import Data
from ..templates.search import find_template
from ..templates.template import Template
from .setup import header_cache_path


def template_of(config: Config, data: Data, checkpoint: Checkpoint | None, world: World) -> dict[str, Any] | None:
    """What `Template.to_dict` has of the training texts, None if they follow none or no captions are trained.

    Args:
        checkpoint: Of the run that is resumed, which may have it.
    """
    if not config.trains_captions:
        return None
    if checkpoint and checkpoint.template:
        return checkpoint.template
    return world.broadcast_object(lambda: _found(data, KeptResults.beside(header_cache_path(config))))


def _found(data: Data, kept: KeptResults) -> dict[str, Any] | None:
    texts = [text for sample in data.train for text in sample.references]
    found = kept.get(key_of("template 1", texts), partial(_find, texts), _is_found)
    logger.info("training texts: %s", found["summary"])
    return found["template"]


def _find(texts: list[str]) -> dict[str, Any]:
    found = find_template(texts)
    return {"summary": found.summary(), "template": found.template and found.template.to_dict()}


def _is_found(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("summary"), str) or "template" not in value:
        return False
    try:
        return value["template"] is None or bool(Template.from_dict(value["template"]))
    except UserError:
        return False
