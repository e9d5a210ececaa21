"""What a page says about the model it shows."""

from __future__ import annotations

from dataclasses import dataclass

from ..common.caveats import Text
from .captioner import Captioner


@dataclass(frozen=True)
class ModelFacts:
    """The model of a page.

    Attributes:
        name: Folder and file of its checkpoint.
        epoch: After which it was saved; None for Prism itself.
        slides: Training slides; None where a checkpoint does not say.
        prism: Where Prism's weights are from.
        is_calibrated: Whether the confidence is.
        judges_captions: Whether it is the probability that a whole caption is right.
        banners: What takes away the meaning of what it says.
    """

    name: str
    epoch: int | None
    slides: int | None
    prism: str
    is_calibrated: bool
    judges_captions: bool
    banners: list[Text]

    @classmethod
    def of(cls, captioner: Captioner) -> ModelFacts:
        """The facts of a loaded model, without the folders of this disk."""
        checkpoint = captioner.checkpoint
        if checkpoint is None:
            weights = captioner.config.prism.weights
            return cls("Prism", None, None, _last_part(weights), is_calibrated=False,
                       judges_captions=False, banners=captioner.caveats)
        name = "/".join(checkpoint.path.parts[-2:]) if checkpoint.path else "?"
        slides = checkpoint.data.get("slides")
        return cls(name, checkpoint.progress.get("epoch"), slides.get("training") if isinstance(slides, dict) else None,
                   _last_part(str(checkpoint.prism.get("source"))), captioner.temperature is not None,
                   captioner.judges_captions, captioner.caveats)


def _last_part(source: str) -> str:
    """`source` if it names a hub repository or known weights; of a path its last part."""
    is_path = source.startswith(("/", "~", ".")) or "\\" in source
    return source.replace("\\", "/").rstrip("/").split("/")[-1] if is_path else source
