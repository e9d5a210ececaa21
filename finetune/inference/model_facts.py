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
        confidence: What that number of a caption means.
        banners: What takes away the meaning of what it says.
    """

    name: str
    epoch: int | None
    slides: int | None
    prism: str
    confidence: Text
    banners: list[Text]

    @classmethod
    def of(cls, captioner: Captioner) -> ModelFacts:
        """The facts of a loaded model, without the folders of this disk."""
        checkpoint = captioner.checkpoint
        if checkpoint is None:
            weights = captioner.config.prism.weights
            return cls("Prism", None, None, _last_part(weights), _confidence(captioner), captioner.caveats)
        name = "/".join(checkpoint.path.parts[-2:]) if checkpoint.path else "?"
        slides = checkpoint.data.get("slides")
        return cls(name, checkpoint.progress.get("epoch"), slides.get("training") if isinstance(slides, dict) else None,
                   _last_part(str(checkpoint.prism.get("source"))), _confidence(captioner), captioner.caveats)


def _confidence(captioner: Captioner) -> Text:
    """What the confidence means."""
    chinese, english = _of_usual_slides(captioner)
    return f"{chinese}；异常切片为 0", f"{english}; 0 for an unusual slide, whatever its caption"


def _of_usual_slides(captioner: Captioner) -> Text:
    if captioner.form is not None:
        return ("全部字段同时正确的概率（各字段概率之积）",
                "probability that all fields are right: the product of theirs")
    if captioner.judges_captions:
        return ("整条描述正确的概率（由验证切片拟合）",
                "probability that the whole caption is right (fitted to the validation slides)")
    if captioner.temperature is None:
        return "词的平均概率（没有校准，偏高）", "mean probability of the words (not calibrated, too high)"
    if captioner.temperature == 1:  # also where they are too few to show anything else
        return ("词的平均概率（原样：验证切片没有表明需要校准）",
                "mean probability of the words (as it is: the validation slides did not show it to need a temperature)")
    return ("估计有多大比例的词是对的（已在验证集上校准）",
            "the share of words that should be right (calibrated on the validation slides)")


def _last_part(source: str) -> str:
    """`source` if it names a hub repository or known weights; of a path its last part."""
    is_path = source.startswith(("/", "~", ".")) or "\\" in source
    return source.replace("\\", "/").rstrip("/").split("/")[-1] if is_path else source
