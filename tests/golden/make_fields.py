"""Golden values of the scores of a field, by scikit-learn. Run in an environment of its own:

    python -m venv /tmp/golden && /tmp/golden/bin/pip install scikit-learn==1.9.1
    /tmp/golden/bin/python make_fields.py > fields.json

A field of four values, one of them rare. Where neither text has a value the slide does not count.
"""
import json
import random
import sys

import numpy as np
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

VALUES = ["高分化", "中分化", "低分化", "未分化"]
random.seed(0)
said, true, probability = [], [], []
for _ in range(80):
    reference = random.choices([*VALUES, None], [5, 5, 3, 1, 4])[0]
    caption = reference if random.random() < 0.6 else random.choice([*VALUES, None])
    said.append(caption)
    true.append(reference)
    likely = 0.4 + 0.6 * random.random() if caption == reference else 0.3 + 0.6 * random.random()
    probability.append(None if caption is None else round(likely, 3))
stated = [row for row in range(80) if (said[row], true[row]) != (None, None)]
names = [[str(side[row]) for row in stated] for side in (true, said)]
comparable = [row for row in stated if probability[row] is not None and true[row] is not None]
areas = []
for value in VALUES:
    spread = [probability[r] if said[r] == value else (1 - probability[r]) / 3 for r in comparable]
    if any(true[r] == value for r in comparable):
        areas.append(roc_auc_score([true[r] == value for r in comparable], spread))
known = [row for row in stated if probability[row] is not None]
right = [said[row] == true[row] for row in known]
gap = 0.0
for low in range(10):
    inside = [i for i, row in enumerate(known) if low / 10 <= probability[row] < (low + 1) / 10]
    if inside:
        gap += len(inside) / len(known) * abs(np.mean([right[i] for i in inside]) - np.mean([probability[known[i]] for i in inside]))
json.dump({
    "made_by": "make_fields.py: scikit-learn 1.9.1", "values": VALUES, "said": said, "true": true, "probability": probability,
    "accuracy": accuracy_score(*names), "macro_f1": f1_score(*names, labels=VALUES, average="macro"),
    "auroc": float(np.mean(areas)), "auroc_right": roc_auc_score(right, [probability[row] for row in known]), "ece": float(gap),
    "slides": len(stated)}, sys.stdout, indent=1, ensure_ascii=False)
