"""Train a captioner of slides and use it. The scripts share what is here: config, data, models, training, inference.

    from finetune import Captioner
    captioner = Captioner.load("checkpoints")
    print(captioner("slide.h5")["caption"])
"""

from typing import Any

__all__ = ["Captioner"]


def __getattr__(name: str) -> Any:
    """`Captioner`, on first use: it imports torch, which `--help` of the scripts does not need."""
    if name != "Captioner":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .inference.captioner import Captioner

    return Captioner
