"""Every case of the benchmark runs, ours and the peers' (which it installs); placement of its tables."""

import subprocess
import sys

import pytest
import torch

from benchmarks import chart, gpu
from benchmarks.__main__ import BY_DEFAULT, with_part
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
    for part in BY_DEFAULT:
        assert f"`python -m benchmarks {part}" in done.stdout
    assert done.stdout.count("x |") > 8  # ratios to the peers
    assert results.read_bytes() == before


def test_a_table_takes_the_place_of_its_part_alone():
    text = "# Results\n\n### step\nold\n\n### decode\nkept\n\n## What falls short\n- all\n"
    assert with_part(text, "step", "new") == text.replace("old", "new")
    assert with_part(text, "epochs", "new") == text.replace("## What", "### epochs\nnew\n\n## What")


def test_the_checks_of_a_gpu_run_without_one_in_the_small_mode():
    done = subprocess.run([sys.executable, "-m", "benchmarks", "gpu", "--small"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    for case in ("largest difference", "tests marked gpu", "loss scale that overflows", "training step", "batch_size: auto",
                 "encode 8 tiles", "greedy captions", "two epochs", "cached slides", "resumed after an epoch", "all checks"):
        assert case in done.stdout
    assert "FAILED" not in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_its_checks_end_with_one_line():
    done = subprocess.run([sys.executable, "-m", "benchmarks", "gpu"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr == "gpu: torch finds no CUDA device here; --small is a dry run without one\n"


def test_a_check_that_fails_is_a_row_and_the_others_go_on():
    row, = gpu._checked("resume", lambda: (_ for _ in ()).throw(RuntimeError("a | b\n c")))
    assert (row.case, row.ours, row.floor) == ("resume", gpu.FAILED, "a / b c")


def test_the_speed_chart_shows_the_numbers_of_the_tables():
    values = chart.ratios()
    assert len(values) > 5 and (ROOT / "docs" / "speed.svg").read_text(encoding="utf-8") == chart.draw(values)
