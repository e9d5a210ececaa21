"""Can tile maps be trusted? The deletion test on the held-out slides of a run, and planted tiles where they are known.

    python -m benchmarks.explain --checkpoint demo/run/best_model.pth --embeddings_dir demo/embeddings \\
        --planted demo/necrotic_tiles.json
    python -m benchmarks.explain --checkpoint runs/real/best_model.pth --embeddings_dir real_slides/embeddings

A phrase passes as `--explain` decides it. AUROC: of a map against the tiles that were planted, for each slide that has
some and whose caption has the phrase; without a map (no effect) it counts as 0.5.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from finetune.data.slides import find_files
from finetune.inference.captioner import Captioner
from finetune.inference.explain import explain_slide, open_slide
from finetune.inference.nearest import TrainingSlides, judge_of
from prism import GenerationOptions


def auroc(weights: list[float], is_planted: np.ndarray) -> float:
    """Share of the pairs of a planted tile and another one where the planted one weighs more; half for equals."""
    values = np.array(weights)
    planted, others = values[is_planted][:, None], values[~is_planted]
    return float((planted > others).mean() + (planted == others).mean() / 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--embeddings_dir", required=True)
    parser.add_argument("--planted", type=Path, help="JSON {id: numbers of its planted tiles}")
    parser.add_argument("--phrase", default="可见坏死", help="what the planted tiles show (default 可见坏死)")
    args = parser.parse_args()
    captioner, files = Captioner.load(args.checkpoint), find_files(args.embeddings_dir)
    training = TrainingSlides.load(args.checkpoint, captioner, searchable=False)
    captioner.judge = judge_of(captioner, training)
    planted = json.loads(args.planted.read_text(encoding="utf-8")) if args.planted else {}
    options = GenerationOptions(max_length=captioner.trained_length)
    rows: dict[str, list[dict[str, Any]]] = {}
    agreement, seconds = {}, []
    for slide_id in captioner.held_out["val"]:
        slide = open_slide(captioner, Path(files[slide_id][0]))
        record = captioner.describe([slide], [], options)[0]
        begin = time.process_time()
        found = explain_slide(captioner, slide, record["caption"], training=training,
                              unusual=record.get("unusual", False))[0]
        seconds.append(time.process_time() - begin)
        for phrase in found["phrases"]:
            rows.setdefault(phrase["text"], []).append(phrase)
            if phrase["text"] == args.phrase and planted.get(slide_id):
                is_planted = np.isin(np.arange(found["tiles"]), planted[slide_id])
                agreement[slide_id] = auroc(phrase["weights"], is_planted) if phrase["weights"] else 0.5
    for text, phrases in sorted(rows.items()):
        print(json.dumps({"phrase": text} | summary(phrases), ensure_ascii=False))
    print(json.dumps({"phrase": "all"} | summary([p for phrases in rows.values() for p in phrases])
                     | {"CPU seconds per slide": round(float(np.mean(seconds)), 2)}))
    if agreement:
        values = list(agreement.values())
        print(json.dumps({"planted": args.phrase, "slides": len(values), "mean AUROC": round(float(np.mean(values)), 3),
                          "lowest": round(min(values), 3), "each": {i: round(v, 2) for i, v in agreement.items()}},
                         ensure_ascii=False))


def summary(phrases: list[dict[str, Any]]) -> dict[str, Any]:
    """How many phrases have a map, why the others have none, and what the tests of those with a map say."""
    passed = [phrase["deletion_test"] for phrase in phrases if phrase["weights"]]
    reasons = [phrase["no_map"] for phrase in phrases if phrase["no_map"]]
    found: dict[str, Any] = {"count": len(phrases), "map": len(passed)}
    found |= {reason: reasons.count(reason) for reason in sorted({*reasons})}
    for name in ("log_odds", "without_top", "without_random") if passed else ():
        found[f"mean {name}"] = round(sum(test[name] for test in passed) / len(passed), 2)
    return found


if __name__ == "__main__":
    main()
