"""Runs with a language model as decoder: killed and resumed, moved folders, other weights, export, two processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.checkpoints.format import Checkpoint
from finetune.checkpoints.hf_folder import write_folder
from finetune.config.flags import Parser
from finetune.config.schema import Config, apply_overrides
from finetune.inference.explain import run_explain
from finetune.inference.options import InferenceOptions, add_inference_flags
from finetune.inference.run import run_inference
from finetune.training.run import train
from tests.helpers.files import ROOT, refused, write_h5, write_json
from tests.helpers.kill_runs import fingerprint, make_data, train_in
from tests.helpers.language_models import TEXTS, make_language_model
from tests.helpers.scripts import without_judge
from tests.helpers.training import free_port

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytestmark = pytest.mark.full
SIZES = ["model.dim=16", "model.heads=2", "model.dim_head=8", "model.dim_latents=16", "model.num_img_queries=4"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """12 slides whose tiles lean towards one of three directions, which is what their text says; a language model."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    directions = rng.standard_normal((3, 2560))
    for i in range(12):
        write_h5(folder / "h5" / f"s{i}.h5", (rng.standard_normal((5, 2560)) + directions[i % 3]).astype(np.float16))
    write_json(folder / "labels.json", {f"s{i}": TEXTS[i % 3] for i in range(12)})
    make_language_model(folder / "lm")
    make_language_model(folder / "other", seed=1)
    return folder


def pairs_of(data: Path, out: Path, *pairs: str) -> list[str]:
    return [f"data.embeddings_dir={data / 'h5'}", f"data.labels_file={data / 'labels.json'}", "data.val_split=0.34",
            f"training.output_dir={out / 'run'}", f"training.log_dir={out}", "training.batch_size=4", "training.workers=0",
            "training.learning_rate=1e-2", "training.decoder_learning_rate=5e-3", "training.epochs=2",
            "training.precision=fp32", "training.eval_captions=2", "prism.weights=random-tiny",
            f"model.decoder=hf:{data / 'lm'}", "model.lora_rank=2", *SIZES, *pairs]


def trained_in(data: Path, out: Path, *pairs: str) -> Path:
    assert train(apply_overrides(Config(), pairs_of(data, out, *pairs))) == 0
    return out / "run"


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    return trained_in(data, tmp_path_factory.mktemp("run"))


def infer(tmp_path: Path, *args: object, call=run_inference) -> list[dict]:
    parser = Parser()
    add_inference_flags(parser)
    output = ["--output", tmp_path / "out.jsonl"] if call is run_inference else []
    parsed = parser.parse_args([str(a) for a in (*args, *output, "--max_length", 20, "--device", "cpu")])
    assert call(InferenceOptions.from_flags(parsed)) == 0
    return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()] if output else []


def test_a_run_learns_and_its_checkpoint_holds_only_what_trained(run, data):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows[-1]["caption_loss"] < rows[0]["caption_loss"] and "val_bleu_4" in rows[-1]
    content = torch.load(run / "last_model.pth", weights_only=True)
    of_lm = [key for key in content["model"] if key.startswith("coca.lm.")]
    assert of_lm and all("lora" in key for key in of_lm) and not any(key.startswith("prism.") for key in content["model"])
    about = content["prism"]
    assert (about["text_source"], about["text_revision"], about["text_licence"]) == (str(data / "lm"), None, "apache-2.0")
    assert len(about["text_sha256"]) == 64 and content["tokenizer"]["type"] == "hf"
    rates = {group.get("lr_factor", 1.0) for group in content["optimizer"]["param_groups"]}
    assert rates == {1.0, 0.5}


@pytest.mark.skipif(os.name != "posix", reason="needs fork and SIGKILL")
@pytest.mark.parametrize("settings", [["model.lora_rank=2"], ["model.freeze_decoder=false"]])
def test_a_killed_run_resumes_bit_equal(data, tmp_path, settings):
    make_data(tmp_path)
    more = [f"model.decoder=hf:{data / 'lm'}", "training.grad_checkpointing=true", *settings]
    assert train_in(tmp_path / "whole", "", "", *more) == 0
    assert train_in(tmp_path / "killed", "step:8", "", *more) == -9
    moved = shutil.copytree(data / "lm", tmp_path / "moved")
    assert train_in(tmp_path / "killed", "before_replace:4", "", f"model.decoder=hf:{moved}", *more[1:]) == -9
    assert train_in(tmp_path / "killed", "", "", *more) == 0
    assert fingerprint(tmp_path / "killed") == fingerprint(tmp_path / "whole")


def test_another_language_model_is_refused_when_resuming_and_at_inference(run, data, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    pairs = pairs_of(data, tmp_path, f"model.decoder=hf:{data / 'other'}", "training.epochs=3")
    with refused("another language model", str(data / "lm"), "model.decoder"):
        train(apply_overrides(Config(), pairs), "auto")
    flags = ["--checkpoint", run / "best_model.pth", "--embeddings_file", data / "h5" / "s0.h5"]
    with refused("another language model", "--language_model"):
        infer(tmp_path, *flags, "--language_model", data / "other")


def test_the_folder_may_move_and_its_absence_is_one_line(run, data, tmp_path):
    flags = ["--embeddings_dir", data / "h5", "--text", *TEXTS, "--num_beams", 2]
    here = infer(tmp_path, "--checkpoint", run / "best_model.pth", *flags)
    moved = shutil.copytree(data / "lm", tmp_path / "elsewhere")
    content = torch.load(run / "best_model.pth", weights_only=True)
    content["config"]["model"]["decoder"] = "hf:/gone/lm"
    torch.save(content, tmp_path / "best_model.pth")
    with refused("model.decoder", "/gone/lm", "--language_model"):
        infer(tmp_path, "--checkpoint", tmp_path / "best_model.pth", *flags)
    there = infer(tmp_path, "--checkpoint", tmp_path / "best_model.pth", "--language_model", moved, "--rerank", "false", *flags)
    assert [(r["caption"], r["similarity"]) for r in there] == [(r["caption"], r["similarity"]) for r in here]
    assert all(r["error"] is None for r in here)


def test_an_exported_folder_names_the_model_and_its_licence_and_captions_alike(run, data, tmp_path):
    write_folder(run / "best_model.pth", tmp_path / "out")
    words = "".join(p.read_text(encoding="utf-8") for p in (tmp_path / "out").iterdir() if p.suffix != ".safetensors")
    assert str(data) not in words and "hf:lm" in words
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "language model lm, licence: apache-2.0" in card and "is not in it" in card
    flags = ["--embeddings_dir", data / "h5", "--rerank", "false"]
    exported = infer(tmp_path, "--checkpoint", tmp_path / "out", "--language_model", data / "lm", *flags)
    assert list(map(without_judge, exported)) == \
        list(map(without_judge, infer(tmp_path, "--checkpoint", run / "best_model.pth", *flags)))


def test_a_language_model_trained_whole_is_in_the_folder_and_the_card_says_so(data, tmp_path):
    run = trained_in(data, tmp_path, "model.lora_rank=0", "model.freeze_decoder=false", "training.epochs=1",
                     "model.contrastive_loss_weight=0")
    write_folder(run / "best_model.pth", tmp_path / "out")
    assert "derived from it" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    infer(tmp_path, "--checkpoint", tmp_path / "out", "--language_model", data / "lm", "--embeddings_file", data / "h5" / "s0.h5")


def test_a_caption_is_explained_through_the_prefix(run, data, tmp_path):
    infer(tmp_path, "--checkpoint", run / "best_model.pth", "--embeddings_file", data / "h5" / "s0.h5", "--explain",
          tmp_path / "why", call=run_explain)
    explanation = json.loads((tmp_path / "why" / "explanation.json").read_text(encoding="utf-8"))
    assert explanation["tiles"] == 5 and all(0 < token["probability"] <= 1 for token in explanation["tokens"])
    assert explanation["phrases"] and {phrase["no_map"] for phrase in explanation["phrases"]} <= {"too few tiles", "no alternative"}


def test_a_run_starts_from_another_one_with_its_adapters(run, data, tmp_path):
    settings = [f"training.init_from={run}", "training.epochs=1", "training.learning_rate=1e-9", "training.decoder_learning_rate=1e-9"]
    with refused("training.init_from", "another text decoder"):
        trained_in(data, tmp_path, *settings, f"model.decoder=hf:{data / 'other'}")
    moved = shutil.copytree(data / "lm", tmp_path / "moved")
    again = trained_in(data, tmp_path, *settings, f"model.decoder=hf:{moved}")
    before, after = (Checkpoint.load(folder / "last_model.pth").model for folder in (run, again))
    adapters = [key for key in before if "lora_B" in key]
    assert adapters and all(torch.allclose(before[key], after[key], atol=1e-6) for key in adapters)


def test_two_processes_train_as_one(data, tmp_path):
    losses = {}
    for processes in (1, 2):
        out = tmp_path / str(processes)
        out.mkdir()
        launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
        pairs = pairs_of(data, out, f"training.batch_size={4 // processes}", "training.eval_captions=0")
        pairs = [pair for pair in pairs if not pair.startswith(("data.embeddings_dir", "data.labels_file"))]
        command = [sys.executable, *(launch if processes == 2 else []), str(ROOT / "train_finetune.py"), "--embeddings_dir",
                   str(data / "h5"), "--labels_file", str(data / "labels.json"), "--set", *pairs]
        done = subprocess.run(command, cwd=out, capture_output=True, text=True, encoding="utf-8", timeout=300,
                              env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr
        rows = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        losses[processes] = [row[key] for row in rows for key in ("caption_loss", "contrastive_loss", "val_loss")]
    assert losses[2] == pytest.approx(losses[1], rel=1e-3)
