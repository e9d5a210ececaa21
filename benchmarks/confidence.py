"""Can the confidence be trusted? AUROC of "this caption is wrong" on slides that neither trained nor calibrated.

    python -m benchmarks confidence [--real FOLDER] [--captions FILE.csv] [--seeds 7] [--work DIR] [--small]

A run is `train_finetune.py`; its confidence comes from its own validation slides. It is judged on test slides, among
them a tenth of strange ones, in equal parts: slides made after other words in other directions, noise in the place of
tiles, and the halves of two test slides of different texts mixed; what is said of these is always wrong. Without --real
and --captions it judges the slides of `finetune.demo`. Runs that are done are kept in DIR.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import torch

from finetune.data.tile_facts import facts_of
from finetune.demo import make_slides
from finetune.evaluation.reliability import calibration_error
from finetune.inference.captioner import Captioner
from finetune.inference.nearest import TrainingSlides, texts_to_rerank_with
from finetune.inference.options import InferenceOptions

from .learning import run_folder, train
from .learning_data import Task, made_tasks, real_tasks, report_tasks

_DEMO = ["model.dim=128", "model.unimodal_depth=2", "model.multimodal_depth=2", "model.dim_latents=128",
         "model.num_img_queries=32", "model.heads=4", "model.dim_head=32", "training.batch_size=12",
         "training.epochs=24", "training.learning_rate=1e-3", "training.workers=0", "training.save_every=8",
         "data.views=1"]
_STRANGE = ("foreign", "noise", "mixed")
_SHARE = 0.1  # of strange slides among all
_RESAMPLES = 1000
_HEADINGS = ("| data | slides judged, right | AUROC, clean slides | AUROC, a tenth strange | token probability alone, "
             "the same | calibration error, clean | unusual: clean, foreign, noise, mixed |\n" + "|---" * 7 + "|")


class Judged(NamedTuple):
    """Captions of one run; arrays over its slides.

    Attributes:
        kind: clean, or one of the strange ones.
        right: Whether the caption is the slide's text, word for word.
        confidence: What the record says.
        token_probability: The confidence without what the run learned of its validation slides but a temperature.
        unusual: What the record says.
    """

    kind: np.ndarray
    right: np.ndarray
    confidence: np.ndarray
    token_probability: np.ndarray
    unusual: np.ndarray

    @property
    def weights(self) -> np.ndarray:
        """Of each slide, so that strange ones are a tenth, in equal parts."""
        clean = int((self.kind == "clean").sum())
        each = clean * _SHARE / (1 - _SHARE) / len(_STRANGE)
        counts = {kind: int((self.kind == kind).sum()) for kind in _STRANGE}
        return np.array([1.0 if kind == "clean" else each / counts[kind] for kind in self.kind])

    def rows(self, chosen: np.ndarray) -> Judged:
        """Of some slides."""
        return Judged(*(array[chosen] for array in self))


def table(arguments: Sequence[str]) -> tuple[str, bool]:
    """Run what the arguments ask for; (section for RESULTS.md, whether it is for keeping)."""
    args = _parser().parse_args(arguments)
    work = Path(args.work).resolve()
    (foreign,) = made_tasks([12], [99], work)
    results = defaultdict(list)
    for task, settings in _tasks(args, work):
        print(f"{task.data_set}, {task.name}", file=sys.stderr, flush=True)
        train(task, args.small, settings)
        results[task.data_set].append(_judge(task, foreign, 3 if args.small else 30))
    shown = " ".join(Path(a).name if "/" in a else a for a in arguments)
    lines = [f"`python -m benchmarks confidence {shown}`: {platform.processor() or 'CPU'}, torch {torch.__version__}, "
             f"{date.today()}; --prism random-tiny; 95 % intervals over slides", "", _HEADINGS]
    for name, runs in results.items():
        lines.append(_row(name, Judged(*map(np.concatenate, zip(*runs, strict=True)))))
    return "\n".join(lines), not args.small


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks confidence", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", action="store_true", help="the slides of finetune.demo (default without data)")
    parser.add_argument("--real", metavar="FOLDER", type=Path, help="embeddings/ with coords, and labels.json")
    parser.add_argument("--max_folds", type=int, default=4, help="of --real (default: all four edges)")
    parser.add_argument("--captions", metavar="FILE.csv", type=Path, help="reports (column text)")
    parser.add_argument("--size", type=int, default=300, help="number of report slides (default 300)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[7], help="of data and training")
    parser.add_argument("--work", default=".bench/confidence", help="where slides and runs are kept")
    parser.add_argument("--small", action="store_true", help="only check that every step runs")
    return parser


def _tasks(args: argparse.Namespace, work: Path) -> Iterator[tuple[Task, list[str]]]:
    """The runs, with their settings."""
    if args.small:
        yield from ((task, []) for task in made_tasks([40], [7], work))
        return
    if args.demo or not (args.real or args.captions):
        yield from ((_demo_task(work, seed), _DEMO) for seed in args.seeds)
    if args.captions:
        yield from ((task, []) for task in report_tasks(args.captions, [args.size], args.seeds, work))
    if args.real:
        yield from ((task, []) for task in real_tasks(args.real.resolve(), ["edges"], args.seeds, work, args.max_folds))


def _demo_task(work: Path, seed: int) -> Task:
    """240 slides as the demo makes them, 36 of them to validate; 120 more to judge."""
    folder = work / f"demo-{seed}"
    if not (folder / "labels.json").exists():
        make_slides(folder, 360, seed)
    texts = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    sides = dict(zip(texts, ["train"] * 204 + ["val"] * 36 + ["test"] * 120, strict=True))
    return Task("slides of the demo", f"seed-{seed}", folder, folder / "embeddings", texts, sides, seed)


def _judge(task: Task, foreign: Task, num_strange: int) -> Judged:
    captioner = Captioner.load(run_folder(task) / "best_model.pth", device="cpu")
    options = InferenceOptions(checkpoint=str(run_folder(task) / "best_model.pth"))
    training = TrainingSlides.load(options.checkpoint, captioner, searchable=False)
    captioner.rerank_with = texts_to_rerank_with(options, captioner, training)
    generation = options.generation(captioner.trained_length)
    columns = defaultdict(list)
    for kind, text, tiles in _slides(task, foreign, num_strange):
        tokens = captioner.encode(tiles)[None]
        captioner.judge = None
        plain = captioner.describe_encoded(["slide"], tokens, [], generation, None, [facts_of(tiles)])[0]
        captioner.judge = training.judge
        record = captioner.describe_encoded(["slide"], tokens, [], generation, None, [facts_of(tiles)])[0]
        values = (kind, record["caption"] == text, record["confidence"], plain["confidence"], record["unusual"])
        for name, value in zip(Judged._fields, values, strict=True):
            columns[name].append(value)
    return Judged(**{name: np.array(values) for name, values in columns.items()})


def _slides(task: Task, foreign: Task, num_strange: int) -> Iterator[tuple[str, str | None, np.ndarray]]:
    """(kind, text, tiles) of each slide to judge."""
    rng = np.random.default_rng(task.seed)
    tiles = {i: _tiles(task, i) for i in task.ids("test")}
    yield from (("clean", task.texts[i], of_slide) for i, of_slide in tiles.items())
    for number in range(num_strange):
        strange = foreign.ids("train")[number % len(foreign.ids("train"))]
        yield "foreign", None, _tiles(foreign, strange)[: 4 + number]  # each time another piece of it
        like = tiles[str(rng.choice(list(tiles)))]
        yield "noise", None, (like.std(dtype=np.float32) * rng.standard_normal(like.shape)).astype(np.float16)
        yield "mixed", None, _mixed(task, tiles, rng)


def _tiles(task: Task, slide_id: str) -> np.ndarray:
    with h5py.File(task.embeddings / f"{slide_id}.h5") as file:
        return file["embeddings"][:]


def _mixed(task: Task, tiles: dict[str, np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Half of the tiles of each of two slides with different texts."""
    first = str(rng.choice(list(tiles)))
    second = str(rng.choice([i for i in tiles if task.texts[i] != task.texts[first]]))
    halves = [rng.permutation(tiles[i])[: (len(tiles[i]) + 1) // 2] for i in (first, second)]
    return np.concatenate(halves)


def weighted_auroc(confidence: np.ndarray, right: np.ndarray, weights: np.ndarray) -> float:
    """Probability that a wrong caption has a lower confidence than a right one, ties counting half; NaN where all or
    none are right. All (slides,)."""
    wrong, wrong_weights = confidence[~right], weights[~right]
    over = confidence[right][None] - wrong[:, None]  # (wrong, right)
    pairs = wrong_weights[:, None] * weights[right][None]
    return float((pairs * ((over > 0) + 0.5 * (over == 0))).sum() / pairs.sum()) if pairs.size else np.nan


def _row(name: str, judged: Judged) -> str:
    is_clean = judged.kind == "clean"
    clean = judged.rows(is_clean)
    error = calibration_error(clean.confidence, clean.right)
    unusual = [f"{judged.unusual[judged.kind == kind].mean():.0%}" for kind in ("clean", *_STRANGE)]
    cells = [name, f"{len(clean.kind)}, {clean.right.mean():.0%}", _cell(clean, clean.confidence),
             _cell(judged, judged.confidence), _cell(judged, judged.token_probability), f"{error:.3f}",
             ", ".join(unusual)]
    return f"| {' | '.join(cells)} |"


def _cell(judged: Judged, confidence: np.ndarray) -> str:
    """AUROC and its interval; clean and strange slides are drawn apart, so that the shares stay."""
    value = weighted_auroc(confidence, judged.right, judged.weights)
    if np.isnan(value):
        return "all right" if judged.right.all() else "none right"
    rng, kinds, values = np.random.default_rng(0), [np.flatnonzero(judged.kind == k) for k in set(judged.kind)], []
    for _ in range(_RESAMPLES):
        rows = np.concatenate([rng.choice(of_kind, len(of_kind)) for of_kind in sorted(kinds, key=len)])
        values.append(weighted_auroc(confidence[rows], judged.right[rows], judged.weights[rows]))
    low, high = np.nanpercentile(values, (2.5, 97.5))
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"
