"""Are the tile maps faithful to the model? The deletion test on the held-out slides of a run, for both attributions.

    python -m benchmarks.explain --checkpoint runs/real/best_model.pth --embeddings_dir real_slides/embeddings

A phrase: did its probability fall further without its top tenth of tiles than without random tenths (the mean of ten
draws)? A slide: did the mean over its phrases? p: exact two-sided sign test against chance.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

from finetune.data.slides import find_files
from finetune.inference.captioner import Captioner
from finetune.inference.explain import explain_slide, open_slide
from prism import GenerationOptions

_WAYS = {"gradient": "without_top", "attention rollout": "without_top_by_attention"}


def sign_test(wins: int, total: int) -> float:
    tail = sum(math.comb(total, k) for k in range(max(wins, total - wins), total + 1)) / 2**total
    return min(1.0, 2 * tail)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--embeddings_dir", required=True)
    args = parser.parse_args()
    captioner, files = Captioner.load(args.checkpoint), find_files(args.embeddings_dir)
    options = GenerationOptions(max_length=captioner.trained_length)
    slides = []
    for slide_id in captioner.held_out["val"]:
        slide = open_slide(captioner, Path(files[slide_id][0]))
        caption = captioner.describe([slide], [], options)[0]["caption"]
        tests = [phrase["deletion_test"] for phrase in explain_slide(captioner, slide, caption)[0]["phrases"]]
        slides.append([test for test in tests if test["holds"] is not None])
    for name, key in _WAYS.items():
        # how much further log p falls without the top tenth
        gains = [[math.log(t["without_random"] / t[key]) for t in tests] for tests in slides if tests]
        phrases = [gain for row in gains for gain in row]
        means = [sum(row) / len(row) for row in gains]
        won, slides_won = sum(g > 0 for g in phrases), sum(m > 0 for m in means)
        print(json.dumps({"way": name, "phrases": len(phrases), "phrases that hold": won,
                          "p": sign_test(won, len(phrases)), "slides": len(means), "slides that hold": slides_won,
                          "p of slides": sign_test(slides_won, len(means)),
                          "mean gain (nat)": round(sum(phrases) / len(phrases), 3)}))


if __name__ == "__main__":
    main()
