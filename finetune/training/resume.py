"""Which checkpoint a run goes on from, and whether it belongs to this run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..checkpoints.format import LAST, DamagedCheckpoint, load_run
from ..common.distributed import World
from ..common.errors import UserError
from ..common.log import logger
from ..config.schema import from_dict


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


def find_resume(resume: str | None, folder: Path) -> Path | None:
    """The checkpoint to go on from: a path, or for `auto` the folder's last_model.pth if there is one.

    Raises UserError if the folder holds a run and nothing was said of resuming it, or the path is in another folder.
    """
    if resume == "auto":
        return folder / LAST if (folder / LAST).exists() else None
    if resume is not None:
        path = Path(resume).expanduser().absolute()
        if path.is_file() and path.parent.resolve() != folder.resolve():
            raise UserError(path, f"is not in the run folder {folder}", f"add --output_dir {path.parent}")
        return path
    if folder.is_dir() and (any(folder.glob("*.pth")) or (folder / "metrics.jsonl").exists()):
        raise UserError(folder, "holds another run", "go on with --resume auto, or choose another --output_dir")
    return None


# What may differ when a run is resumed. `epochs` stretches the learning-rate schedule from there on.
_MAY_CHANGE = {"data.embeddings_dir", "data.labels_file", "data.split_file", "data.sha256_file", "data.on_bad",
               "data.max_bad_fraction", "data.latents_cache", "data.tile_encoder", "prism.weights", "prism.revision",
               "training.epochs", "training.save_every", "training.save_every_steps", "training.eval_captions",
               "training.output_dir", "training.log_dir", "training.device", "training.workers", "training.compile",
               "training.grad_checkpointing", "training.report_to"}


def _open_everywhere(resume: str | None, folder: Path, world: World) -> tuple[Path | None, dict[str, Any] | None]:
    """The checkpoint that rank 0 has chosen, read by each rank for itself: sent around it would need its size twice."""
    opened: list[Any] = [None, None]

    def choose() -> Path | None:
        opened[:] = open_checkpoint(resume, folder)
        return opened[0]

    path = world.broadcast_object(choose)
    if path and not world.is_main:
        if not path.exists():
            raise UserError(path, "is not on this machine", "put training.output_dir on a disk that all machines share")
        opened = [path, load_run(path)]
    return opened[0], opened[1]


def _check_same_run(content: dict[str, Any], about: dict[str, Any], where: str) -> None:
    """Raises UserError if the checkpoint belongs to other settings, data or Prism weights than this run."""
    before, now = from_dict(content["config"], where).to_dict(), about["config"]
    for section, keys in now.items():
        for key, value in keys.items():
            if before[section][key] != value and f"{section}.{key}" not in _MAY_CHANGE:
                raise UserError(where, f"was trained with {section}.{key}={before[section][key]}, this run has {value}",
                                "use the same value, or start anew in another --output_dir")
    if content["data"].get("fingerprint") != about["data"]["fingerprint"]:
        raise UserError(where, "was trained on other data (slides, texts, tile counts or split changed)",
                        "put the data back, or start anew in another --output_dir")
    if any(content["prism"].get(key) != about["prism"].get(key) for key in ("sha256", "text_sha256")):
        raise UserError(where, f"was trained with other Prism weights ({content['prism'].get('source')})",
                        "give the same weights with prism.weights")
    if now["training"]["accum_freq"] > 1 and content["format_version"] == 1:
        raise UserError(where, "is of an older version, where accum_freq did not enlarge the contrastive batch",
                        "start anew in another --output_dir, or go on with that version")
    for name, value in content["versions"].items():
        if about["versions"].get(name) != value:
            logger.warning("%s was %s, now %s: the resumed run may differ in the last bits", name, value,
                           about["versions"].get(name))
