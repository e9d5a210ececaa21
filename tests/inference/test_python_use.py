"""Captioner in three lines: the same records as inference.py writes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import finetune
from finetune import Captioner
from finetune.inference.options import InferenceOptions
from finetune.inference.run import run_inference
from tests.helpers.files import ROOT, refused

TEXTS = ["胃腺癌", "正常胃黏膜"]


@pytest.mark.parametrize("options", [{}, {"rerank": "true"}, {"rerank": "false", "num_beams": 2, "max_length": 9},
                                     {"choices": "texts.txt"}])
def test_a_call_gives_the_record_of_inference_py(run_with_coords, tmp_path, options, monkeypatch):
    if "choices" in options:
        labels = json.loads((run_with_coords / "labels.json").read_text(encoding="utf-8"))
        (tmp_path / options["choices"]).write_text("\n".join(sorted(set(labels.values()))), encoding="utf-8")
        monkeypatch.chdir(tmp_path)
    slides = [run_with_coords / "embeddings" / f"s{i}.h5" for i in (0, 1)]
    wanted = []
    for slide in slides:
        run_inference(InferenceOptions(checkpoint=str(run_with_coords / "run"), embeddings_file=str(slide), device="cpu",
                                       text=tuple(TEXTS), output=str(tmp_path / f"{slide.stem}.jsonl"), **options).check())
        wanted.append(json.loads((tmp_path / f"{slide.stem}.jsonl").read_text(encoding="utf-8")))
        del wanted[-1]["made_from"]
    captioner = Captioner.load(run_with_coords / "run", device="cpu")
    assert captioner(slides, TEXTS, **options) == wanted
    assert captioner(str(slides[1]), TEXTS, **options) == wanted[1]


def test_a_file_that_cannot_be_read_is_a_user_error(run_with_coords, tmp_path):
    captioner = Captioner.load(run_with_coords / "run", device="cpu")
    with refused(tmp_path / "no.h5"):
        captioner(tmp_path / "no.h5")
    with refused("unknown option: num_beam", "did you mean num_beams?"):
        captioner(run_with_coords / "embeddings" / "s0.h5", num_beam=2)
    with refused("unknown option: prompts"):  # a flag of a job, which a call would not heed
        captioner(run_with_coords / "embeddings" / "s0.h5", prompts="p.yaml")


def test_the_package_names_it_without_importing_torch():
    code = "import sys, finetune; print('torch' in sys.modules, finetune.__all__, hasattr(finetune, 'Nothing'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "False ['Captioner'] False"
    assert finetune.Captioner is Captioner
