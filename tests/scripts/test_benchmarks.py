"""Every case of the benchmark runs, ours and the peers' (which it installs); placement of its tables."""

import subprocess
import sys

import pytest

from benchmarks.__main__ import PARTS, with_part
from benchmarks.peers import install
from tests.helpers.files import ROOT

pytestmark = pytest.mark.full


def test_every_case_runs_in_the_small_mode_and_leaves_the_results_alone():
    results = ROOT / "benchmarks" / "RESULTS.md"
    before = results.read_bytes()
    try:
        install()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"pip could not install the peers: {error}")
    done = subprocess.run([sys.executable, "-m", "benchmarks", "--small"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for part in PARTS[:-1]:
        assert f"`python -m benchmarks {part}" in done.stdout
    assert done.stdout.count("x |") > 8  # ratios to the peers
    assert results.read_bytes() == before


def test_a_table_takes_the_place_of_its_part_alone():
    text = "# Results\n\n### step\nold\n\n### decode\nkept\n\n## What falls short\n- all\n"
    assert with_part(text, "step", "new") == text.replace("old", "new")
    assert with_part(text, "epochs", "new") == text.replace("## What", "### epochs\nnew\n\n## What")
