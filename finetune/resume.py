"""Which checkpoint a run goes on from, and whether it belongs to this run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .checkpoint import LAST, DamagedCheckpoint, find_resume, load_run
from .errors import UserError
from .runlog import logger


def open_checkpoint(resume: str | None, folder: Path) -> tuple[Path | None, dict[str, Any] | None]:
    """The checkpoint that `--resume` means and its content; (None, None) for a new run.

    `auto` goes on from the newest good checkpoint where last_model.pth is damaged or gone: the work since then is done
    again, with the same result. Raises UserError if there is none, or for a damaged file given by name.
    """
    path = find_resume(resume, folder)
    if path is None and (resume is None or not any(folder.glob("*.pth"))):
        return None, None
    try:
        if path is None:
            raise DamagedCheckpoint(folder / LAST, "not found, but the folder holds checkpoints of a run",
                                    "choose another --output_dir")
        return path, load_run(path)
    except DamagedCheckpoint as error:
        best = newest_good(folder)
        if best is None:
            raise
        if resume != "auto":
            raise UserError(error.where, error.what, f"newest good one: {best[0].name}") from None
        logger.warning("%s: %s; going on from %s instead", error.where, error.what, best[0].name)
        return best


def newest_good(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint in `folder` that is furthest in training among those that can be loaded, with its content."""
    best: tuple[Path, dict[str, Any]] | None = None
    for path in sorted(folder.glob("*.pth")):
        try:
            content = load_run(path)
            if best is None or _position(content) > _position(best[1]):
                best = path, content
        except UserError:
            continue
    return best


def _position(content: dict[str, Any]) -> tuple[int, int]:
    progress = content["progress"]
    return int(progress.get("epoch") or 0), int(progress.get("batches_done") or 0)
