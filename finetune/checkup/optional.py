"""Packages that only some settings need."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from ..config.schema import Config
from .findings import ERROR, NOTE, OK, Finding
from .machine import import_failure


@dataclass(frozen=True)
class Optional:
    """A package that is not always needed.

    Attributes:
        module: What is imported.
        package: What pip calls it.
        purpose: The setting that needs it.
    """

    module: str
    package: str
    purpose: str


PACKAGES = (
    Optional("transformers", "transformers", "data.tokenizer or model.decoder: hf:... or ms:..."),
    Optional("peft", "peft", "model.lora_rank"),
    Optional("sacremoses", "sacremoses", "model.decoder: prism, and inference.py --prism_only"),
    Optional("modelscope", "modelscope", "names that begin with ms:"),
    Optional("starlette", "starlette", "inference.py --serve"),
    Optional("uvicorn", "uvicorn", "inference.py --serve"),
    Optional("tensorboard", "tensorboard", "training.report_to: [tensorboard]"),
    Optional("wandb", "wandb", "training.report_to: [wandb]"),
    Optional("swanlab", "swanlab", "training.report_to: [swanlab]"),
)


def check_optional(config: Config) -> list[Finding]:
    """One finding for each; an error for what the config needs and is not there."""
    return [_check(package, package.module in needed(config)) for package in PACKAGES]


def needed(config: Config) -> set[str]:
    """The modules that a config needs."""
    sources = (config.data.tokenizer, config.model.decoder, config.prism.weights)
    found = set(config.training.report_to)
    if any(source.startswith(("hf:", "ms:")) for source in sources[:2]):
        found.add("transformers")
    if any(source.startswith("ms:") for source in sources):
        found.add("modelscope")
    if config.model.lora_rank:
        found.add("peft")
    if config.model.decoder == "prism":
        found.add("sacremoses")
    return found


def _check(package: Optional, is_needed: bool) -> Finding:
    install = f"python -m pip install {package.package}"
    try:
        found = version(package.package)
    except PackageNotFoundError:
        return Finding(package.package, ERROR if is_needed else NOTE, f"not installed; for {package.purpose}", install)
    failure = import_failure(package.module) if is_needed else None
    if failure:
        return Finding(package.package, ERROR, f"{found}: {failure}", f"{install} --force-reinstall")
    return Finding(package.package, OK, found)
