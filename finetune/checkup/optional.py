"""Packages that only some settings need."""

from __future__ import annotations

from collections.abc import Callable
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
        purpose: The setting that needs it.
        is_needed: Whether a config does.
    """

    module: str
    purpose: str
    is_needed: Callable[[Config], bool]

    @property
    def package(self) -> str:
        """What pip calls it."""
        return _PACKAGES.get(self.module, self.module)


_PACKAGES = {"swanboard": '"swanlab[dashboard]"'}  # where it is not the name of the module


def _never(config: Config) -> bool:
    return False


def _reports_to(name: str) -> Callable[[Config], bool]:
    return lambda config: name in config.training.report_to


def _sources(config: Config) -> list[str]:
    return [config.data.tokenizer, config.model.decoder, config.prism.weights]


OPTIONAL = (
    Optional("transformers", "data.tokenizer or model.decoder: hf:... or ms:...",
             lambda config: any(source.startswith(("hf:", "ms:")) for source in _sources(config)[:2])),
    Optional("modelscope", "names that begin with ms:",
             lambda config: any(source.startswith("ms:") for source in _sources(config))),
    Optional("peft", "model.lora_rank", lambda config: config.model.lora_rank > 0),
    Optional("sacremoses", "model.decoder: prism, and inference.py --prism_only",
             lambda config: config.model.decoder == "prism"),
    Optional("starlette", "inference.py --serve", _never),
    Optional("uvicorn", "inference.py --serve", _never),
    Optional("tensorboard", "training.report_to: [tensorboard]", _reports_to("tensorboard")),
    Optional("wandb", "training.report_to: [wandb]", _reports_to("wandb")),
    Optional("swanlab", "training.report_to: [swanlab]", _reports_to("swanlab")),
    Optional("swanboard", "curves of swanlab on this machine", _reports_to("swanlab")),
)


def check_optional(config: Config) -> list[Finding]:
    """One finding for each; an error for what the config needs and is not there."""
    return [_check(package, package.is_needed(config)) for package in OPTIONAL]


def _check(package: Optional, is_needed: bool) -> Finding:
    install = f"python -m pip install {package.package}"
    try:
        found = version(package.module)
    except PackageNotFoundError:
        return Finding(package.module, ERROR if is_needed else NOTE, f"not installed; for {package.purpose}", install)
    failure = import_failure(package.module) if is_needed else None
    if failure:
        return Finding(package.module, ERROR, f"{found}: {failure}", f"{install} --force-reinstall")
    return Finding(package.module, OK, found)
