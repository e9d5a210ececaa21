"""The lines of a captions file: findings and scores of each slide by itself."""

from __future__ import annotations

import json

import pytest

from finetune.evaluation.scoring import Answers
from finetune.training.caption_lines import caption_lines


def test_each_line_has_the_findings_of_both_texts_and_its_own_scores():
    answers = Answers(["胃腺癌，未见坏死", "x"], [["胃腺癌，可见坏死", "伴溃疡"], ["胃腺癌"]])
    text = caption_lines(3, ["a", "b"], answers, answers.statistics(), [{"finished": True}, {"finished": False}])
    first, second = (json.loads(line) for line in text.splitlines())
    assert {name: first["findings"][name] for name in ("adenocarcinoma", "necrosis", "ulcer")} == {
        "adenocarcinoma": ["present", "present"], "necrosis": ["absent", "present"], "ulcer": [None, "present"]}
    assert second["findings"] == {"adenocarcinoma": [None, "present"]} and (second["id"], second["epoch"], second["finished"]) == ("b", 3, False)
    alone = Answers(answers.captions[:1], answers.references[:1]).statistics()
    assert first["scores"]["rouge_l"] == pytest.approx(alone["rouge_l"]([0]), abs=1e-6) and second["scores"]["exact_match"] == 0
