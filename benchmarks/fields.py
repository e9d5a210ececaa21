"""Are the fields of a filled template right? Beside free captions that are read the same way, and a probe per field.

    python -m benchmarks fields [--real FOLDER] [--captions FILE.csv] [--seeds 7] [--work DIR] [--small]

Each run is `train_finetune.py` with its defaults and the random-tiny encoder, as in `learning`; its best model then
captions the test side freely and along the template that training has found, or, where there is none, that of all
texts given (`python -m finetune.templates`). Always judged: the sample slides of `finetune.demo`. What was measured is
kept in DIR. Time: greedy, both ways in turn, of encoded slides, four at once, with their confidences.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune.data.slides import open_case
from finetune.data.tile_reader import read_tiles
from finetune.demo import make_slides
from finetune.inference.captioner import Captioner
from finetune.inference.form import Form
from finetune.models.template_tokens import TemplateTokens
from finetune.templates.search import find_template
from finetune.templates.template import Fields, Template
from prism import GenerationOptions

from .learning import compared, rows_of, run_folder, shown, slide_features, train_and_caption
from .learning_baselines import best_penalty, ridge
from .learning_data import Task, real_tasks, report_tasks

_OURS = "filled template"
_METHODS = (_OURS, "free caption", "free caption, as inference.py (re-ranked)", "linear probe per field",
            "most common value")
_BATCH, _REPEATS = 4, 3
_SHARES = {"train": 0.7, "val": 0.8, "test": 1.0}
_HEADINGS = ("| data | method | fields right | all fields right | filled - method, fields | filled - method, all |\n"
             "|---|---|---|---|---|---|")


def table(arguments: Sequence[str]) -> tuple[str, bool]:
    """Run what the arguments ask for; (section for RESULTS.md, whether it is for keeping)."""
    args = _parser().parse_args(arguments)
    work = Path(args.work).resolve()
    results: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for task in _tasks(args, work):
        print(f"{task.data_set}, {task.name}: {len(task.ids('train'))} train, {len(task.ids('test'))} test",
              file=sys.stderr, flush=True)
        results[task.data_set].append(_judge(task, args.small))
    lines = [f"`python -m benchmarks fields {' '.join(shown(arguments))}`: {platform.processor() or 'CPU'}, torch "
             f"{torch.__version__}, {date.today()}; --prism random-tiny", "", _HEADINGS]
    notes = []
    for name, of_data in results.items():
        lines += _rows(name, of_data)
        notes += _notes(name, of_data)
    return "\n".join([*lines, "", *notes]), not args.small


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks fields", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", metavar="FOLDER", type=Path, help="embeddings/ with coords, and labels.json")
    parser.add_argument("--max_folds", type=int, default=4, help="of the edges of real images (default: all 4)")
    parser.add_argument("--captions", metavar="FILE.csv", type=Path, help="reports (column text)")
    parser.add_argument("--size", type=int, default=300, metavar="N", help="number of report slides (default 300)")
    parser.add_argument("--samples", type=int, default=240, metavar="N", help="number of sample slides (default 240)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[7], help="of data and training")
    parser.add_argument("--work", default=".bench/fields", help="where slides and runs are kept")
    parser.add_argument("--small", action="store_true", help="only check that every step runs")
    return parser


def _tasks(args: argparse.Namespace, work: Path) -> Iterator[Task]:
    for seed in args.seeds:
        yield _sample_task(40 if args.small else args.samples, seed, work)
    if args.real and not args.small:
        yield from real_tasks(args.real.resolve(), ["edges"], args.seeds, work, args.max_folds)
    if args.captions and not args.small:
        yield from report_tasks(args.captions, [args.size], args.seeds, work)


def _sample_task(size: int, seed: int, work: Path) -> Task:
    """The slides of the demo, of another seed than its own."""
    folder = work / f"samples-{size}-{seed}"
    if not (folder / "labels.json").exists():
        make_slides(folder, size, seed)
    texts = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    places = np.random.default_rng(seed).permutation(len(texts)) / len(texts)
    sides = {i: next(side for side, end in _SHARES.items() if place < end)
             for i, place in zip(texts, places, strict=True)}
    return Task(f"sample slides, {size}", f"seed-{seed}", folder, folder / "embeddings", texts, sides, seed)


def _judge(task: Task, small: bool) -> dict[str, Any]:
    """Which fields (T, slots) each method has right, the clusters of the T test slides, and what was measured."""
    run = _measured(task, small)
    template = Template.from_dict(run["template"])
    truth = {i: fields for i in task.ids("test") if (fields := template.parse(task.texts[i])) is not None}
    known = {i: fields for i in task.ids("train") if (fields := template.parse(task.texts[i])) is not None}
    features = slide_features(task)[1]
    answers: dict[str, list[Fields | None]] = {
        _OURS: [run["filled"][i]["fields"] for i in truth],
        _METHODS[1]: [template.parse(run["free"][i]) for i in truth],
        _METHODS[2]: [template.parse(run["as_inference"][i]) for i in truth],
        _METHODS[3]: field_probe(rows_of(features, list(known)), list(known.values()), rows_of(features, list(truth))),
        _METHODS[4]: [_most_common(list(known.values()))] * len(truth)}
    right = {name: np.array([[bool(given) and given[slot] == fields[slot] for slot in template.slots]
                             for given, fields in zip(of_method, truth.values(), strict=True)], dtype=float)
             for name, of_method in answers.items()}
    parsed = {key: np.mean([template.parse(texts[i]) is not None for i in task.ids("test")])
              for key, texts in (("free", run["free"]), ("filled", {i: f["text"] for i, f in run["filled"].items()}))}
    return {"right": right, "clusters": [task.cluster or f"{task.name} {i}" for i in truth], "parsed": parsed,
            "slots": list(template.slots), "run": run, "tests": len(task.ids("test"))}


def _measured(task: Task, small: bool) -> dict[str, Any]:
    """Train and caption both ways, or read what an earlier call measured."""
    kept = task.folder / f"{task.name}.fields.json"
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))
    done = train_and_caption(task, small)
    captioner = Captioner.load(run_folder(task) / "best_model.pth")
    assert captioner.checkpoint is not None
    content = captioner.checkpoint.template
    is_auto = content is not None
    if content is None:
        found = find_template(list(task.texts.values())).candidate
        assert found is not None
        content = found.to_dict()
    run = {"template": content, "is_auto": is_auto, "as_inference": done["captions"], "seconds": done["seconds"],
           "commit": done["commit"], **_captions(captioner, Template.from_dict(content), task)}
    kept.write_text(json.dumps(run, ensure_ascii=False), encoding="utf-8")
    shutil.rmtree(run_folder(task), ignore_errors=True)  # its checkpoints are large
    return run


def _captions(captioner: Captioner, template: Template, task: Task) -> dict[str, Any]:
    """Captions of the test slides both ways and the seconds of each: the least of several rounds."""
    ids = task.ids("test")
    data = captioner.config.data
    slides = [open_case(i, [[str(task.embeddings / f"{i}.h5")]], data.h5_key, data.image_dim) for i in ids]
    tokens = np.stack([captioner.encode(read_tiles(slide)) for slide in slides])
    options = GenerationOptions(max_length=captioner.trained_length)
    form = Form(TemplateTokens(template, captioner.tokenizer))
    seconds: dict[str, list[float]] = {"free": [], "filled": []}
    records: dict[str, list[Any]] = {}
    for _ in range(_REPEATS):
        for name, of_round in (("free", None), ("filled", form)):
            captioner.form = of_round
            start = time.process_time()
            records[name] = [record for place in range(0, len(ids), _BATCH) for record in captioner.describe_encoded(
                ids[place:place + _BATCH], tokens[place:place + _BATCH], [], options)]
            seconds[name].append(time.process_time() - start)
    filled = {record["id"]: {"text": record["caption"], "fields": {name: one["value"] for name, one in
                                                                  record["fields"].items()}}
              for record in records["filled"]}
    return {"free": {record["id"]: record["caption"] for record in records["free"]}, "filled": filled,
            "seconds_free": min(seconds["free"]), "seconds_filled": min(seconds["filled"])}


def field_probe(train: np.ndarray, known: list[Fields], test: np.ndarray) -> list[Fields | None]:
    """For each field the value of the highest score of a ridge regression to its values, as of `learning`."""
    fields: list[Fields] = [{} for _ in test]
    train, test = train.astype(np.float64), test.astype(np.float64)
    for slot in known[0]:
        values = list(dict.fromkeys(of_slide[slot] for of_slide in known))
        present = np.array([[of_slide[slot] == value for value in values] for of_slide in known], dtype=float)
        scores = ridge(train, present, test, best_penalty(train, present)[0])
        for of_slide, best in zip(fields, scores.argmax(1), strict=True):
            of_slide[slot] = values[best]
    return list(fields)


def _most_common(known: list[Fields]) -> Fields:
    return {slot: Counter(of_slide[slot] for of_slide in known).most_common(1)[0][0] for slot in known[0]}


def _rows(name: str, results: list[dict[str, Any]]) -> list[str]:
    """The lines of one data set, over its runs: of all fields together, then of each."""
    clusters = [cluster for result in results for cluster in result["clusters"]]
    means = _joined(results, lambda right: right.mean(1))
    exact = _joined(results, lambda right: right.all(1).astype(float))
    lines = []
    for method in _METHODS:
        cells = [name, method, f"{means[method].mean():.3f}", f"{exact[method].mean():.3f}", "", ""]
        if method != _OURS:
            cells[4:] = [compared(of[_OURS], of[method], clusters) for of in (means, exact)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _joined(results: list[dict[str, Any]], per_slide: Callable[[np.ndarray], np.ndarray]) -> dict[str, np.ndarray]:
    """{method: score (T,) of the test slides of all runs}."""
    return {method: np.concatenate([per_slide(result["right"][method]) for result in results]) for method in _METHODS}


def _notes(name: str, results: list[dict[str, Any]]) -> Iterator[str]:
    """What was run; then of each field how often filled template, free caption and probe are right."""
    runs = [result["run"] for result in results]
    num_tests = sum(result["tests"] for result in results)
    parsed = {key: np.mean([result["parsed"][key] for result in results]) for key in ("filled", "free")}
    free, filled = (sum(run[key] for run in runs) for key in ("seconds_free", "seconds_filled"))
    origin = "found by the training" if all(run["is_auto"] for run in runs) else "of all texts (none found in training)"
    yield (f"- {name}: runs: {len(runs)}, {num_tests} test slides, of which "
           f"{sum(len(result['clusters']) for result in results)} have texts that follow the template, {origin}; "
           f"captions that follow it: filled {parsed['filled']:.0%}, free {parsed['free']:.0%}; CPU time of a caption: "
           f"filled {1000 * filled / num_tests:.0f} ms, free {1000 * free / num_tests:.0f} ms ({filled / free:.2f}x); "
           f"commit {', '.join(sorted({run['commit'] for run in runs}))}")
    slots = results[0]["slots"]
    if all(result["slots"] == slots for result in results):
        for number, slot in enumerate(slots):
            filled, free, probe = (
                np.concatenate([result["right"][method][:, number] for result in results]).mean()
                for method in (_OURS, _METHODS[1], _METHODS[3]))
            yield f"  - field {number + 1} (`{slot}`): filled {filled:.3f}, free {free:.3f}, probe {probe:.3f}"
