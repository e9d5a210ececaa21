"""The benchmark of fields: its probe against a plain truth, and that it runs."""

import subprocess
import sys

import numpy as np
import pytest

from benchmarks.fields import field_probe
from tests.helpers.files import ROOT


def test_the_probe_reads_fields_that_are_linear_in_the_features_also_those_that_may_be_missing():
    rng = np.random.default_rng(0)
    numbers, directions = rng.integers(0, 3, (200, 2)), rng.standard_normal((2, 3, 64))
    features = directions[0][numbers[:, 0]] + directions[1][numbers[:, 1]] + 0.1 * rng.standard_normal((200, 64))
    known = [{"organ": "胃肠肺"[a], "grade": (None, "高分化", "低分化")[b]} for a, b in numbers]
    assert field_probe(features[:150], known[:150], features[150:]) == known[150:]


@pytest.mark.full
def test_the_small_mode_compares_filled_templates_with_free_captions_and_leaves_the_results_alone(tmp_path):
    results = ROOT / "benchmarks" / "RESULTS.md"
    before = results.read_bytes()
    command = [sys.executable, "-m", "benchmarks", "fields", "--small", "--work", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "captions that follow it: filled 100%" in done.stdout and "found by the training" in done.stdout
    assert "| sample slides, 40 | filled template |" in done.stdout and results.read_bytes() == before
