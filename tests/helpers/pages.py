"""A run folder written by hand, and --explain as the script runs it."""

from __future__ import annotations

import json
import math
from pathlib import Path

from finetune.config.flags import Parser
from finetune.config.schema import Config
from finetune.config.yaml_file import dump_yaml
from finetune.inference.explain import run_explain
from finetune.inference.options import InferenceOptions, add_inference_flags
from tests.helpers.files import write_json

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>\u202e{{ 7*7 }}"


def lines(path: Path, records: list) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def make_run(folder: Path, epochs: int = 6, captions: list[dict] | None = None) -> Path:
    """A run folder as training leaves it, without its checkpoints."""
    folder.mkdir(exist_ok=True)
    config = Config()
    config.data.embeddings_dir, config.training.epochs = "/home/somebody/secret/embeddings", epochs
    (folder / "config.yaml").write_text(dump_yaml(config), encoding="utf-8")
    lines(folder / "metrics.jsonl", [{"epoch": e, "step": 5 * e, "lr": 1e-4 / e, "loss": 3 / e, "caption_loss": 2 / e,
                                      "contrastive_loss": 1 / e, "val_loss": 3 / e + 0.1, "val_caption_loss": 2 / e,
                                      "val_distinct_captions": 1 / e, "best": e < 5} for e in range(1, epochs + 1)])
    lines(folder / "events.jsonl", [
        {"kind": "start", "time": "2026-01-01 10:00:00", "about": {
            "slides": "9 training, 3 validation", "validation texts that also stand in training": "3 / 3", "Prism": "random-tiny",
            "Prism SHA-256": "abc123"}},
        *[{"kind": "warning", "text": f"odd file {HOSTILE}"}] * 3,
        *[{"kind": "epoch", "epoch": e, "slides_per_second": 8.0 + e, "memory_gb": 1.5} for e in range(1, epochs + 1)],
        {"kind": "end", "time": "2026-01-01 10:02:05", "status": "finished"}])
    if captions is None:
        captions = [{"epoch": 6, "id": "good", "caption": "胃腺癌，高分化", "references": ["胃腺癌，高分化"], "scores": {"rouge_l": 1.0}, "confidence": 0.9},
                    {"epoch": 5, "id": "old", "caption": "x", "references": ["y"], "scores": {}, "confidence": None},
                    {"epoch": 6, "id": HOSTILE, "caption": f"肺癌{HOSTILE}", "references": ["胃腺癌，高分化", "肺癌"], "scores": {}, "confidence": 0.2},
                    {"epoch": 6, "id": "near", "caption": "胃腺癌，低分化", "references": ["胃腺癌，高分化"], "scores": {"rouge_l": math.nan}, "confidence": None}]
    lines(folder / "validation_captions.jsonl", captions)
    write_json(folder / "retrieval.json", {"ids": ["a", "b"], "slides": 3, "similarity": [[0.9, 0.1], [0.5, 0.3]]})
    scores = {"exact_match": 0.5, "rouge_l": 0.75, "bleu_4": 0.25, "cider": 4.0}
    baseline, differences = dict.fromkeys(scores, 0.125), {name: [0.1, -0.375, 0.5] for name in scores}
    write_json(folder / "held_out.json", {"slides": 40, **scores, "baselines": {"linear_probe": baseline, "new_one": {}},
                                          "differences": {"linear_probe": differences}})
    return folder


def explain(run, *args):
    parser = Parser()
    add_inference_flags(parser)
    args = parser.parse_args(["--checkpoint", str(run / "run" / "best_model.pth"), *map(str, args)])
    return run_explain(InferenceOptions.from_flags(args))
