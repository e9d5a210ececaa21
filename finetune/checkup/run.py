"""All checks in order: what needs torch is left out where it cannot be imported."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from ..common.errors import say
from ..common.files import expand
from ..common.log import logger
from ..config.schema import Config, apply_overrides
from .findings import ERROR, NOTE, OK, WARNING, Finding, attempt, summary
from .machine import check_disk, check_memory, check_packages, check_python, import_failure
from .optional import check_optional
from .torch_build import check_gpu, check_torch, import_torch, read_driver


def run_checks(config_file: str | None, settings: list[str], prism: str | None) -> int:
    """Print the findings and a summary.

    Args:
        config_file: YAML file of the run to come; None: the defaults, without data.
        settings: `section.key=value`.
        prism: Value of prism.weights; None: that of the config.

    Returns:
        0, or 2 if training would not start.
    """
    read = _Config(config_file, settings, prism)
    findings = [attempt("config", read)] if config_file or settings else []
    say(*(line for finding in findings for line in finding.lines()))
    for finding in checks(read.config, config_file is not None):
        say(*finding.lines())
        findings.append(finding)
    say(summary(findings))
    return 2 if any(finding.status == ERROR for finding in findings) else 0


class _Config:
    """The config as far as it can be read."""

    def __init__(self, path: str | None, settings: list[str], prism: str | None) -> None:
        self._path, self._settings, self._prism, self.config = path, settings, prism, Config()
        self.config.prism.weights = prism or self.config.prism.weights

    def __call__(self) -> Finding:
        """Read it. Raises UserError."""
        if self._path is not None and import_failure("yaml"):
            return Finding("config", NOTE, f"{self._path}: not read, as PyYAML cannot be imported")
        self._read()
        return Finding("config", OK, self._path or " ".join(self._settings))

    def _read(self) -> None:
        if self._path is not None:
            from ..config.yaml_file import load_yaml  # PyYAML may be missing

            self.config = load_yaml(self._path, self.config)
        apply_overrides(self.config, self._settings)
        self.config.prism.weights = self._prism or self.config.prism.weights
        if self._path is not None:
            self.config.check(self._path)


def checks(config: Config, is_wanted: bool) -> Iterator[Finding]:
    """The findings, each as soon as it is there.

    Args:
        config: Of the run to come.
        is_wanted: Whether the user named it; without, there is no data to look at.
    """
    yield check_python()
    yield (packages := check_packages())
    yield check_torch()
    torch = import_torch()
    if torch is not None:
        yield check_gpu(torch, read_driver(), config.training.device)
    yield check_memory()
    for what, folder in _folders(config, is_wanted):
        yield check_disk(folder, what)
    yield from check_optional(config)
    if torch is None or packages.status != OK:
        yield Finding("models and data", NOTE, "not looked at: what they need cannot be imported",
                      "mend the above first")
        return
    yield from _models_and_data(config, is_wanted)


def _folders(config: Config, is_wanted: bool) -> list[tuple[str, Path]]:
    if not is_wanted:
        return [("this folder", Path.cwd())]
    cache = config.data.latents_cache
    folders = [("run folder", expand(config.training.output_dir))]
    return folders if cache in (None, "auto") else [*folders, ("slide cache", expand(cache))]


def _models_and_data(config: Config, is_wanted: bool) -> Iterator[Finding]:
    from .models import check_language_model, check_prism, check_tokenizer  # torch

    yield check_prism(config, is_wanted)
    yield attempt("tokenizer", lambda: check_tokenizer(config))
    if config.model.language_model is not None:
        yield attempt("language model", lambda: check_language_model(config.model.language_model or ""))
    if is_wanted:
        yield attempt("data", lambda: _check_data(config))
    else:
        yield Finding("data", NOTE, "not looked at", "name the config of the run: --config config.yaml")


def _check_data(config: Config) -> Finding:
    """Labels and the headers of all files, as before a training. Raises UserError."""
    from ..data.prepare import prepare_data

    warnings = _Warnings()
    logger.addHandler(warnings)
    try:
        data = prepare_data(config.data, config.training.seed)
    finally:
        logger.removeHandler(warnings)
    counts = (f"{len(data.train)} slides for training, {len(data.validation)} for validation, "
              f"{len(data.test)} for testing")
    if not warnings.lines:
        return Finding("data", OK, counts)
    return Finding("data", WARNING, f"{counts}; {len(warnings.lines)} warning(s), the first: {warnings.lines[0]}",
                   "train_with_config.py --check shows them all")


class _Warnings(logging.Handler):
    """Keeps the warnings of a check: the doctor says them in its own lines."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
