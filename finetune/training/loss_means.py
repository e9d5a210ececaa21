"""Mean losses of an epoch, from running sums that a checkpoint can hold."""

from __future__ import annotations

from ..models.captioner import SlideCaptioner
from .step_records import StepLosses

# What each loss of the model is a mean over. Parts of a custom loss are means over slides.
_COUNT_OF = {"caption_loss": "num_tokens", "contrastive_loss": "num_slides", "negatives": "num_slides"}
_COUNTS = ("num_tokens", "num_slides")
_NOT_SUMMED = {"loss", "lr", "grad_norm", *_COUNTS}  # "loss" follows from the other means


def step_report(losses: StepLosses, model: SlideCaptioner) -> dict[str, float]:
    """The numbers of a step by name: counts, each loss, and `loss`, their weighted sum."""
    report = {name: getattr(losses, name) for name in (*_COUNTS, *_COUNT_OF)}
    report |= losses.custom
    report["loss"] = model.weighted(losses.caption_loss, losses.contrastive_loss) + sum(losses.custom.values())
    return report


def add_to_sums(sums: dict[str, float], report: dict[str, float]) -> None:
    """Add a step's means to the running sums, each times the number of tokens or slides it is a mean over."""
    for name, mean in report.items():
        if name not in _NOT_SUMMED:
            sums[name] = sums.get(name, 0.0) + mean * report[_COUNT_OF.get(name, "num_slides")]
    for name in _COUNTS:
        sums[name] = sums.get(name, 0.0) + report[name]


def means_of(sums: dict[str, float], model: SlideCaptioner) -> dict[str, float]:
    """`loss`, the weighted sum, and the mean of each loss, from running sums."""
    means: dict[str, float] = {}
    custom = 0.0
    for name, total in sums.items():
        if name in _NOT_SUMMED:
            continue
        means[name] = total / max(sums[_COUNT_OF.get(name, "num_slides")], 1.0)
        if name not in _COUNT_OF:
            custom += means[name]
    return {"loss": model.weighted(means["caption_loss"], means["contrastive_loss"]) + custom} | means
