"""Is the captioner right on slides it has never seen? The scripts as a user runs them, beside plain baselines.

    python -m benchmarks learning [--real FOLDER] [--captions FILE.csv] [--seeds 7 11] [--work DIR] [--small]

Each run is `train_finetune.py` with its defaults and the random-tiny encoder, then `inference.py` on the test side.
Without --real and --captions it judges slides that it makes itself. Runs that are done are kept in DIR and not
repeated, so that the table can be made in pieces; another commit wants another DIR.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from prism import load_prism

from .common import ROOT
from .learning_baselines import Answer, Probe, difference, most_common, nearest, score
from .learning_data import FOLD_KINDS, Task, made_tasks, real_tasks, report_tasks

_METHODS = ("captioner", "most common text", "nearest text, Prism's space", "nearest text, contrastive space",
            "linear probe", "training text of the probe")
# only to see that the benchmark runs: two epochs of a model that can learn nothing
_SMALL = ["model.dim=32", "model.unimodal_depth=1", "model.multimodal_depth=1", "model.dim_latents=16",
          "model.num_img_queries=4", "model.heads=2", "model.dim_head=16", "training.workers=0", "training.epochs=2"]
_LEAST_CLUSTERS = 8  # fewer say nothing of an interval
_HEADINGS = ("| data | method | F1 | exact | captioner - method, F1 | captioner - method, exact |\n"
             "|---|---|---|---|---|---|")


def table(arguments: Sequence[str]) -> tuple[str, bool]:
    """Run what the arguments ask for; (section for RESULTS.md, whether it is for keeping)."""
    args = _parser().parse_args(arguments)
    work = Path(args.work).resolve()
    results = defaultdict(list)
    for task in _tasks(args, work):
        print(f"{task.data_set}, {task.name}: {len(task.ids('train'))} train, {len(task.ids('val'))} validate, "
              f"{len(task.ids('test'))} test", file=sys.stderr, flush=True)
        results[task.data_set].append(_judge(task, args))
    lines = [f"`python -m benchmarks learning {' '.join(shown(arguments))}`: {platform.processor() or 'CPU'}, torch "
             f"{torch.__version__}, {date.today()}; --prism random-tiny", "", _HEADINGS]
    notes = []
    for name, rows in results.items():
        lines += _rows(name, rows)
        notes.append(_note(name, rows))
    return "\n".join([*lines, "", *notes]), not args.small


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks learning", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", metavar="FOLDER", type=Path, help="embeddings/ with coords, and labels.json")
    parser.add_argument("--folds", nargs="+", default=["edges", "corners", "pairs"], choices=FOLD_KINDS)
    parser.add_argument("--max_folds", type=int, default=40, help="of each kind (default: all)")
    parser.add_argument("--captions", metavar="FILE.csv", type=Path, help="reports (column text)")
    parser.add_argument("--sizes", nargs="+", type=int, default=[100, 300, 991], metavar="N",
                        help="numbers of report slides (default 100 300 991)")
    parser.add_argument("--made", nargs="*", type=int, help="made slides (default 300 without --real and --captions)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[7, 11, 13], help="of data and training")
    parser.add_argument("--work", default=".bench/learning", help="where slides and runs are kept")
    parser.add_argument("--curve", action="store_true", help="also the time until it beats the nearest text")
    parser.add_argument("--small", action="store_true", help="only check that every step runs")
    return parser


def _tasks(args: argparse.Namespace, work: Path) -> Iterator[Task]:
    if args.small:
        yield from made_tasks([24], [7], work)
        return
    if args.real:
        yield from real_tasks(args.real.resolve(), args.folds, args.seeds, work, args.max_folds)
    if args.captions:
        yield from report_tasks(args.captions, args.sizes, args.seeds, work)
    made = args.made if args.made is not None else [] if args.real or args.captions else [300]
    yield from made_tasks(made, args.seeds, work)


def shown(arguments: Sequence[str]) -> list[str]:
    """The arguments without folders of this machine."""
    return [Path(a).name if "/" in a else a for a in arguments]


def _judge(task: Task, args: argparse.Namespace) -> dict[str, Any]:
    """Scores (T, 2) of every method on one task, clusters of the test slides, seconds, and numbers of slides."""
    run = train_and_caption(task, args.small)
    train, test = task.ids("train"), task.ids("test")
    texts, truth = [task.texts[i] for i in train], [task.texts[i] for i in test]
    slide, mean = slide_features(task)
    probe = Probe(rows_of(mean, train), texts)
    answers = dict(zip(_METHODS, (
        [Answer.of(run["captions"][i]) for i in test],
        most_common(texts, len(test)),
        nearest(rows_of(slide, train), texts, rows_of(slide, test)),
        [Answer.of(run["nearest"][i]) for i in test],
        probe.answers(rows_of(mean, test)),
        probe.best_texts(rows_of(mean, test))), strict=True))
    scores = {name: score(given, truth) for name, given in answers.items()}
    if args.curve and run_folder(task).exists():
        beaten = _time_to_beat(task, scores["nearest text, Prism's space"][:, 0].mean())
        run["beats"] = beaten and beaten - run["started_at"]
        run_folder(task).with_suffix(".json").write_text(json.dumps(run, ensure_ascii=False), encoding="utf-8")
    shutil.rmtree(run_folder(task), ignore_errors=True)  # its checkpoints are large
    return {"scores": scores, "clusters": [task.cluster or f"{task.name} {i}" for i in test], "train": len(train),
            "run": run, "seen": np.mean([text in set(texts) for text in truth])}


def run_folder(task: Task) -> Path:
    """Where a task trains."""
    return task.folder / task.name


def train_and_caption(task: Task, small: bool, settings: Sequence[str] = (),
                      inference: Sequence[str] = ("--nearest", "1")) -> dict[str, Any]:
    """Run both scripts, or read what an earlier call of them said.

    Args:
        settings: Further `section.key=value` of the training.
        inference: Further flags of inference.py.
    """
    folder = run_folder(task)
    done = folder.with_suffix(".json")
    if done.exists():
        return json.loads(done.read_text(encoding="utf-8"))
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped
    start, started_at, used = time.perf_counter(), time.time(), _cpu_seconds()
    train(task, small, settings)
    seconds, cpu_seconds = time.perf_counter() - start, _cpu_seconds() - used
    records = _captions(task, "best_model.pth", *inference)
    run = {"seconds": seconds, "cpu_seconds": cpu_seconds, "started_at": started_at, "commit": commit_of(),
           "captions": {r["id"]: r["caption"] or "" for r in records},
           "nearest": {r["id"]: r["nearest"][0]["texts"][0] for r in records if "nearest" in r}}
    done.write_text(json.dumps(run, ensure_ascii=False), encoding="utf-8")
    return run


def train(task: Task, small: bool, settings: Sequence[str] = ()) -> None:
    """Run train_finetune.py; a run that is there goes on, and a finished one is left as it is."""
    inputs = task.folder / f"{task.name}-inputs"
    inputs.mkdir(parents=True, exist_ok=True)
    kept = {i: task.texts[i] for i in task.sides}
    (inputs / "labels.json").write_text(json.dumps(kept, ensure_ascii=False), encoding="utf-8")
    (inputs / "split.json").write_text(json.dumps(task.sides), encoding="utf-8")
    settings = [f"data.split_file={inputs / 'split.json'}", f"training.seed={task.seed}", *_SMALL * small, *settings]
    _script(task, "train_finetune.py", "--embeddings_dir", task.embeddings, "--labels_file", inputs / "labels.json",
            "--output_dir", run_folder(task), "--prism", "random-tiny", "--resume", "auto", "--set", *settings)


def _cpu_seconds() -> float:
    """What finished child processes have used: on a shared machine it says more than the clock."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _captions(task: Task, checkpoint: str, *more: str) -> list[dict[str, Any]]:
    """Records of the test slides."""
    inputs, output = task.folder / f"{task.name}-inputs", run_folder(task) / "test.jsonl"
    _script(task, "inference.py", "--checkpoint", run_folder(task) / checkpoint, "--embeddings_dir", task.embeddings,
            "--labels_file", inputs / "labels.json", "--split", "test", "--output", output, *more)
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


def _script(task: Task, name: str, *arguments: object) -> None:
    done = subprocess.run([sys.executable, str(ROOT / name), *map(str, arguments)], cwd=task.folder,
                          capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        raise RuntimeError(f"{name} failed for {task.data_set}, {task.name}: {done.stderr[-1500:]}")


def _time_to_beat(task: Task, wanted: float) -> float | None:
    """When the first kept checkpoint was written whose captions have a higher F1; None if there is none.

    Captions of an early epoch are those of a run that was to go on: its learning rate is still high.
    """
    kept = sorted(run_folder(task).glob("checkpoint_epoch_*.pth"), key=lambda p: p.stat().st_mtime)
    for path in [*kept, run_folder(task) / "last_model.pth"]:
        records = _captions(task, path.name)
        scores = score([Answer.of(r["caption"] or "") for r in records], [task.texts[r["id"]] for r in records])
        if scores[:, 0].mean() > wanted:
            return path.stat().st_mtime
    return None


def commit_of() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def slide_features(task: Task) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Slide embedding and mean of the latents, (1280,) each, of every slide of the data set; kept on disk."""
    path = task.folder / "features.npz"
    known: dict[str, np.ndarray] = dict(np.load(path)) if path.exists() else {}
    missing = [i for i in task.sides if i not in known]
    if missing:
        encoder = load_prism("random-tiny")
        for i in missing:
            with h5py.File(task.embeddings / f"{i}.h5") as file:
                tiles = torch.from_numpy(file["embeddings"][:]).float()
            with torch.no_grad():
                output = encoder.slide_representations(tiles[None])
            known[i] = torch.stack([output["image_embedding"][0], output["image_latents"][0].mean(0)]).numpy()
        np.savez(path, **known)
    return {i: rows[0] for i, rows in known.items()}, {i: rows[1] for i, rows in known.items()}


def rows_of(features: dict[str, np.ndarray], ids: list[str]) -> np.ndarray:
    return np.stack([features[i] for i in ids])


def _rows(name: str, results: list[dict[str, Any]]) -> list[str]:
    """The lines of one data set, over its runs."""
    clusters = [cluster for result in results for cluster in result["clusters"]]
    scores = {method: np.concatenate([result["scores"][method] for result in results]) for method in _METHODS}
    ours = scores["captioner"]
    lines = []
    for method in _METHODS:
        cells = [name, method, f"{scores[method][:, 0].mean():.3f}", f"{scores[method][:, 1].mean():.3f}", "", ""]
        if method != "captioner":
            cells[4:] = [compared(ours[:, i], scores[method][:, i], clusters) for i in (0, 1)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def compared(ours: np.ndarray, other: np.ndarray, clusters: list[str]) -> str:
    """The mean difference and its interval, if there are clusters enough to draw from."""
    mean, low, high = difference(ours, other, clusters)
    count = len(set(clusters))
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]" if count >= _LEAST_CLUSTERS else f"{mean:+.3f} ({count} clusters)"


def _note(name: str, results: list[dict[str, Any]]) -> str:
    """One line on the slides and the time of a data set."""
    minutes = [result["run"]["seconds"] / 60 for result in results]
    train = np.mean([result["train"] for result in results])
    tests = sum(len(result["clusters"]) for result in results)
    seen = np.mean([result["seen"] for result in results])
    commits = sorted({result["run"]["commit"] for result in results})
    line = (f"- {name}: runs: {len(results)}, {train:.0f} training slides each, {tests} test slides in all, {seen:.0%} "
            f"of their texts also in training; {np.mean(minutes):.1f} min to train (first run {minutes[0]:.1f}), "
            f"commit {', '.join(commits)}")
    beats = [result["run"].get("beats", ...) for result in results]
    if ... not in beats:
        line += "; F1 above the nearest text in Prism's space after " + ", ".join(
            f"{seconds / 60:.1f} min" if seconds is not None else "never" for seconds in beats)
    return line
