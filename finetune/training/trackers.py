"""Experiment trackers (`training.report_to`): TensorBoard, Weights & Biases, SwanLab; each imported only if asked for.

To add one: a class with the methods of `Tracker`, a line in `_TRACKERS`, and its name among the choices of
`training.report_to` in config/schema.py.
"""

from __future__ import annotations

import importlib.util
import math
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..common.errors import UserError
from ..common.log import logger
from ..common.run_folder import METRICS, read_records


class Tracker(Protocol):
    """A tracker as `RunLog` uses it. An exception disables the tracker and does not end the run."""

    def log(self, record: dict[str, Any], step: int) -> None:
        """Add the record of an epoch; step: its number, from 1."""

    def close(self) -> None:
        """Flush and end."""


def open_trackers(names: Sequence[str], folder: Path, config: dict[str, Any], first_epoch: int = 1) -> list[Tracker]:
    """One tracker for each name, writing below the run folder.

    Args:
        first_epoch: The next one that is logged, from 1. What an earlier start of the run has logged of it and of later
            ones is out of date.

    Raises:
        UserError: One is not installed or cannot start; raised before training.
    """
    return [_TRACKERS[name](folder, config, first_epoch) for name in names]


class _TensorBoard:
    """Event files in `folder`/tensorboard. A resumed run adds a file, and takes back the epochs it trains again."""

    def __init__(self, folder: Path, config: dict[str, Any], first_epoch: int = 1) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise _not_installed("tensorboard") from None
        try:
            self._writer = SummaryWriter(folder / "tensorboard", purge_step=first_epoch)
        except OSError as error:
            raise UserError(folder / "tensorboard", f"cannot be written ({error.strerror})",
                            "free some space, or leave tensorboard out of training.report_to") from None

    def log(self, record: dict[str, Any], step: int) -> None:
        for name, value in _numbers(record).items():
            group, short = ("validation", name[4:]) if name.startswith("val_") else ("train", name)
            self._writer.add_scalar(f"{group}/{short}", value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """A run named after the run folder. The settings of wandb itself hold (WANDB_PROJECT, WANDB_MODE).

    wandb ignores steps that a run has already. So a run resumed from an earlier epoch gets a new one there,
    which begins with the epochs before.
    """

    def __init__(self, folder: Path, config: dict[str, Any], first_epoch: int = 1) -> None:
        try:
            import wandb
        except ImportError:
            raise _not_installed("wandb") from None
        options = {"dir": str(folder), "name": folder.name, "resume": "allow", "config": config}
        try:
            self._run = wandb.init(id=_run_id(folder), **options)
            if getattr(self._run, "starting_step", 0) > first_epoch:  # the step after the last one that wandb has
                self._run.finish()
                self._run = wandb.init(id=_run_id(folder, new=True), **options)
                logger.warning("wandb: its run has epoch %d already and cannot take it back: the curves go on in a new "
                               "one", first_epoch)
                _log_again(self, folder, first_epoch)
        except Exception as error:  # of many types: no key, no network
            raise UserError("training.report_to", f"wandb cannot start ({type(error).__name__})",
                            "run `wandb login`, set WANDB_MODE=offline, or leave wandb out") from None

    def log(self, record: dict[str, Any], step: int) -> None:
        self._run.log(_numbers(record), step=step)

    def close(self) -> None:
        self._run.finish()


class _SwanLab:
    """A run named after the run folder, in `folder`/swanlab; SWANLAB_MODE=online sends it to SwanLab's server.

    By default nothing leaves the machine. A run of SwanLab's takes no epoch back, so every start is a run of its own,
    which begins with the epochs before. The terminal's lines are not recorded.
    """

    def __init__(self, folder: Path, config: dict[str, Any], first_epoch: int = 1) -> None:
        try:
            import swanlab
        except ImportError:
            raise _not_installed("swanlab", '"swanlab[dashboard]"') from None
        mode = os.environ.get("SWANLAB_MODE", "local")
        if mode == "local" and importlib.util.find_spec("swanboard") is None:  # SwanLab would go on and keep no curve
            raise _not_installed("swanlab's dashboard", '"swanlab[dashboard]"')
        settings = swanlab.Settings(interactive=False, terminal={"proxy_type": "none"})
        try:
            self._run = swanlab.init(project=os.environ.get("SWANLAB_PROJECT", "prism-coca"), name=folder.name,
                                     mode=mode, log_dir=str(folder / "swanlab"), config=config, settings=settings)
        except Exception as error:  # of many types: no key, no network, a full disk
            raise UserError("training.report_to", f"swanlab cannot start ({type(error).__name__})",
                            "run `swanlab login`, set SWANLAB_MODE=local, or leave swanlab out") from None
        _log_again(self, folder, first_epoch)

    def log(self, record: dict[str, Any], step: int) -> None:
        self._run.log(_numbers(record), step=step)

    def close(self) -> None:
        self._run.finish()


# Choices of `training.report_to`.
_TRACKERS: dict[str, Callable[[Path, dict[str, Any], int], Tracker]] = {
    "tensorboard": _TensorBoard, "wandb": _Wandb, "swanlab": _SwanLab}


def _log_again(tracker: Tracker, folder: Path, first_epoch: int) -> None:
    """Give a new run of a tracker the epochs before `first_epoch`."""
    for record in read_records(folder / METRICS):
        epoch = record.get("epoch")
        if isinstance(epoch, int) and epoch < first_epoch:
            tracker.log(record, epoch)


def _run_id(folder: Path, new: bool = False) -> str:
    """The id by which wandb finds a resumed run: random, as many run folders are named `checkpoints`.

    new: Replace the id.
    """
    path = folder / "wandb" / "run_id"
    if new or not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(secrets.token_hex(8), encoding="ascii")
    return path.read_text(encoding="ascii").strip()


def _numbers(record: dict[str, Any]) -> dict[str, float]:
    """The finite numbers of a record, without its position in the run."""
    numbers = {}
    for name, value in record.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if is_number and math.isfinite(value) and name not in ("epoch", "step"):
            numbers[name] = value
    return numbers


def _not_installed(name: str, package: str | None = None) -> UserError:
    return UserError("training.report_to", f"{name} is not installed",
                     f"python -m pip install {package or name}, or leave it out")
