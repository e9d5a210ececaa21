"""Make tests/golden/checkpoint_vN.pth and what it says: python -m tests.helpers.make_golden. Only for a new format version.

Prism is trained along, so that the file holds all weights and does not depend on any random initialization.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

from finetune.checkpoints.format import FORMAT_VERSION
from finetune.common.device import Precision, resolve_device
from finetune.config.schema import Config, apply_overrides
from finetune.data.slides import find_files, inspect_slide
from finetune.data.tile_reader import read_tiles
from finetune.inference.captioner import Captioner
from finetune.models import build as model
from finetune.training.run import train
from prism import GenerationOptions
from tests.helpers import kill_runs

FOLDER = Path(__file__).resolve().parents[1] / "golden"
TEXTS = ["胃腺癌，0级。", "肺腺癌，2级。"]
SETTINGS = [*kill_runs.SETTINGS, "prism.freeze=false", "model.dim=8", "model.heads=1", "training.epochs=80", "training.learning_rate=0.01",
            "training.save_every=0", "training.save_every_steps=0", "data.val_split=0"]


def golden_captioner(path: Path) -> Captioner:
    """In fp32 on the CPU on every machine."""
    captioner = Captioner.load(path, device="cpu")
    captioner.precision = Precision("fp32", resolve_device("cpu"), "golden")
    return captioner


def main() -> None:
    path = FOLDER / f"checkpoint_v{FORMAT_VERSION}.pth"
    assert not path.exists(), "a golden file is never replaced: raise FORMAT_VERSION first"
    with tempfile.TemporaryDirectory() as folder:
        kill_runs.make_data(Path(folder))
        (Path(folder) / "here").mkdir()
        os.chdir(Path(folder) / "here")
        model.load_prism = kill_runs.tiny_prism
        train(apply_overrides(Config(), SETTINGS))
        shutil.copyfile("run/last_model.pth", path)
        slides = [inspect_slide(paths[0], None, kill_runs.WIDTH) for paths in list(find_files("../h5").values())[:4]]
        records = golden_captioner(path).describe(slides, TEXTS, GenerationOptions(max_length=20))
        tiles = {s.slide_id: read_tiles(s).tolist() for s in slides}
        os.chdir("/")
    text = json.dumps({"tiles": tiles, "records": records}, ensure_ascii=False, indent=1)
    path.with_suffix(".json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
