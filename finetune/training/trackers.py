"""Where else curves go (`training.report_to`): TensorBoard or Weights & Biases, asked for by name, imported then."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from ..common.errors import UserError


class Tracker(Protocol):
    def log(self, record: dict[str, Any], step: int) -> None: ...
    def close(self) -> None: ...


def open_trackers(names: Sequence[str], folder: Path, config: dict[str, Any]) -> list[Tracker]:
    """One tracker for each name, writing below the run folder. Raises UserError, before training, if it cannot."""
    return [{"tensorboard": _TensorBoard, "wandb": _Wandb}[name](folder, config) for name in names]


class _TensorBoard:
    """Event files in `folder`/tensorboard. A resumed run adds a file; of an epoch done twice TensorBoard shows both."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise _absent("tensorboard") from None
        try:
            self._writer = SummaryWriter(folder / "tensorboard")
        except OSError as error:
            raise UserError(folder / "tensorboard", f"cannot be written ({error.strerror})",
                            "free the place, or leave tensorboard out of training.report_to") from None

    def log(self, record: dict[str, Any], step: int) -> None:
        for name, value in _numbers(record).items():
            group, short = ("validation", name[4:]) if name.startswith("val_") else ("train", name)
            self._writer.add_scalar(f"{group}/{short}", value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """A run of Weights & Biases named after the run folder; its own settings (WANDB_PROJECT, WANDB_MODE) hold."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        try:
            import wandb
        except ImportError:
            raise _absent("wandb") from None
        try:
            self._run = wandb.init(dir=str(folder), name=folder.name, id=_own_id(folder), resume="allow", config=config)
        except Exception as error:  # of many kinds: no key, no network
            raise UserError("training.report_to", f"wandb cannot start ({type(error).__name__})",
                            "run `wandb login`, set WANDB_MODE=offline, or leave wandb out") from None

    def log(self, record: dict[str, Any], step: int) -> None:
        self._run.log(_numbers(record), step=step)

    def close(self) -> None:
        self._run.finish()


def _own_id(folder: Path) -> str:
    """What a resumed run is found by: made once for a run folder, as many of them are named `checkpoints`."""
    path = folder / "wandb" / "run_id"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(secrets.token_hex(8), encoding="ascii")
    return path.read_text(encoding="ascii").strip()


def _numbers(record: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in record.items() if name not in ("epoch", "step")
            and isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)}


def _absent(name: str) -> UserError:
    return UserError("training.report_to", f"{name} is not installed", f"python -m pip install {name}, or leave it out")
