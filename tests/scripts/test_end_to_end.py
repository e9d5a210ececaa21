"""The scripts as users run them: subprocesses, tiny models, real files."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from tests.helpers.files import ROOT
from tests.helpers.scripts import TEXTS, TINY, assert_equal_state, assert_one_error, flags, run


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    """A folder in which `train_finetune.py` has run 30 epochs."""
    cwd = tmp_path_factory.mktemp("trained")
    result = run("train_finetune.py", *flags(data, "--epochs", 30, "--save_every", 10), "--set", *TINY, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return cwd


def test_a_run_folder_holds_what_the_guide_promises(trained):
    names = {p.name for p in (trained / "run").iterdir()}
    assert names == {"best_model.pth", "last_model.pth", "checkpoint_epoch_10.pth", "checkpoint_epoch_20.pth",
                     "checkpoint_epoch_30.pth", "config.yaml", "metrics.jsonl", "tokenizer.json", "nearest.pt", "report.html",
                     "events.jsonl", "held_out.json", "held_out_captions.jsonl", "held_out_fields.json"}
    rows = [json.loads(line) for line in (trained / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [r["epoch"] for r in rows] == list(range(1, 31))
    assert rows[-1]["loss"] < 0.3 * rows[0]["loss"]
    assert torch.load(trained / "run" / "best_model.pth", weights_only=True)["progress"]["epoch"] == 30
    log = (trained / "logs" / "training.log").read_text(encoding="utf-8")
    assert "held-out slides: exact text 1.00, nearest training text 1.00" in log
    assert "epoch 30" in log and not any(text in log for text in TEXTS), "label texts are private"


def test_the_checkpoint_holds_no_weight_of_frozen_prism(trained):
    content = torch.load(trained / "run" / "last_model.pth", weights_only=True)
    assert all(key.startswith("coca.") for key in content["model"])
    assert len(content["prism"]["sha256"]) == 64 and content["prism"]["source"] == "random-tiny"


def test_inference_captions_and_scores_a_slide_from_the_checkpoint_alone(data, trained, tmp_path):
    output = tmp_path / "out.jsonl"
    result = run("inference.py", "--checkpoint", trained / "run" / "best_model.pth", "--embeddings_file",
                 data / "embeddings" / "s00.h5", "--text", *TEXTS, "--max_length", 40, "--output", output, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    record = json.loads(output.read_text(encoding="utf-8"))
    assert set(record) == {"id", "caption", "similarity", "probability", "confidence", "finished",
                           "error", "made_from", "unusual"} and record["error"] is None and record["unusual"] is False
    assert record["caption"] == TEXTS[0] and record["caption"] in result.stdout
    assert max(record["similarity"], key=record["similarity"].get) == TEXTS[0]
    assert sum(record["probability"].values()) == pytest.approx(1, abs=1e-5)
    assert all(-1 <= c <= 1 for c in record["similarity"].values())


@pytest.mark.full
def test_K21_all_files_of_equal_weights_caption_alike(data, trained, tmp_path):
    captions = {name: run("inference.py", "--checkpoint", trained / "run" / name, "--embeddings_file",
                          data / "embeddings" / "s04.h5", cwd=tmp_path).stdout
                for name in ("last_model.pth", "checkpoint_epoch_30.pth")}
    assert len(set(captions.values())) == 1 and "caption: " in captions["last_model.pth"]


@pytest.mark.full
def test_a_bad_slide_in_a_folder_does_not_stop_the_others(data, trained, tmp_path):
    folder = tmp_path / "slides"
    folder.mkdir()
    for i in range(3):
        os.symlink(data / "embeddings" / ("nested" if i % 2 else "") / f"s{i:02d}.h5", folder / f"s{i:02d}.h5")
    (folder / "broken.h5").write_bytes(b"not an h5 file")
    with h5py.File(folder / "poisoned.h5", "w") as file:
        file["embeddings"] = np.full((4, 2560), np.nan, np.float32)
    result = run("inference.py", "--checkpoint", trained / "run" / "best_model.pth", "--embeddings_dir", folder,
                 "--labels_file", data / "labels.json", "--output", tmp_path / "out.csv", cwd=tmp_path)
    assert result.returncode == 0, "the labels choose the slides, the broken ones are not among them"
    assert json.loads((tmp_path / "out.scores.json").read_text(encoding="utf-8"))["exact_match"] == 1
    assert "bleu_4" in result.stdout and "tok:zh" in result.stdout
    result = run("inference.py", "--checkpoint", trained / "run" / "best_model.pth", "--embeddings_dir", folder,
                 "--output", tmp_path / "out.csv", cwd=tmp_path)
    assert_one_error(result, "2 of 5")
    with open(tmp_path / "out.csv", encoding="utf-8-sig", newline="") as file:
        rows = {r["id"]: r for r in csv.DictReader(file)}
    assert [rows[f"s{i:02d}"]["caption"] for i in range(3)] == TEXTS
    assert "not an HDF5 file" in rows["broken"]["error"] and "NaN" in rows["poisoned"]["error"]


@pytest.mark.full
def test_findings_and_classes_are_scored_beside_the_texts(data, trained, tmp_path):
    (tmp_path / "prompts.yaml").write_text("".join(f"class{i}: ['{t}']\n" for i, t in enumerate(TEXTS)), encoding="utf-8")
    classes = {f"s{i:02d}": f"class{i % 3}" for i in range(11)}  # one slide has none
    (tmp_path / "classes.json").write_text(json.dumps(classes), encoding="utf-8")
    result = run("inference.py", "--checkpoint", trained / "run" / "best_model.pth", "--embeddings_dir",
                 data / "embeddings", "--labels_file", data / "labels.json", "--findings", "breast", "--prompts", "prompts.yaml",
                 "--classes_file", "classes.json", "--nearest", 2, "--output", "out.jsonl", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert max(map(len, result.stdout.splitlines())) < 500, "no line of kilobytes"
    summary = json.loads((tmp_path / "out.scores.json").read_text(encoding="utf-8"))
    assert summary["slides"] == 12 and summary["bleu_4"] == 1 and summary["zero_shot_balanced_accuracy"] == 1
    assert summary["image_to_text_r1"] == 1 and summary["baselines"]["most_common_text"]["exact_match"] == pytest.approx(1 / 3)
    assert summary["findings"]["invasive_carcinoma"] == {"present": 4, "absent": 0, "precision": 1, "recall": 1,
                                                         "contradictions": 0}
    first = json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert max(first["classes"], key=first["classes"].get) == "class0" and sum(first["classes"].values()) == pytest.approx(1)
    near = first["nearest"]
    assert [n["texts"] for n in near] == [[TEXTS[0]]] * 2 and near[0]["similarity"] >= near[1]["similarity"]
    assert "most_common_text:of training" in summary["signature"]
    assert 0.3 < first["confidence"] <= 1, "three slides without an error do not sharpen it"
    for flag, word in ((["--classes_file", "classes.json"], "--prompts"), (["--findings", "breast"], "--labels_file")):
        assert_one_error(run("inference.py", "--checkpoint", "no.pth", "--embeddings_dir", data, *flag, cwd=tmp_path), word)


@pytest.mark.full
def test_yaml_and_flags_train_the_same_weights(data, tmp_path):
    (tmp_path / "config.yaml").write_text(f"""
data: {{embeddings_dir: "{data}/embeddings", labels_file: "{data}/labels.json", val_split: 0.25}}
prism: {{weights: random-tiny}}
training: {{batch_size: 3, epochs: 2, learning_rate: 3e-3, output_dir: yaml}}
""", encoding="utf-8")
    result = run("train_with_config.py", "--config", "config.yaml", "--set", *TINY, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    result = run("train_finetune.py", *flags(data, "--epochs", 2), "--set", *TINY, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert_equal_state(tmp_path / "yaml" / "last_model.pth", tmp_path / "run" / "last_model.pth")


@pytest.mark.full
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_and_resumed_run_ends_bit_equal_to_an_uninterrupted_one(data, tmp_path, stop):
    args = [*flags(data, "--epochs", 6, "--save_every", 2, "--resume", "auto"), "--set", *TINY,
            "training.precision=fp32", "training.accum_freq=2", "data.max_tiles=4"]
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    assert run("train_finetune.py", *args, cwd=tmp_path / "whole").returncode == 0
    command = [sys.executable, str(ROOT / "train_finetune.py"), *map(str, args)]
    with subprocess.Popen(command, cwd=tmp_path / "stopped", stderr=subprocess.DEVNULL,
                          env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
        while process.poll() is None and not (tmp_path / "stopped/run/checkpoint_epoch_2.pth").exists():
            time.sleep(0.01)
        process.send_signal(stop)
    assert process.returncode == (-stop if stop == signal.SIGKILL else 128 + stop)
    done = torch.load(tmp_path / "stopped/run/last_model.pth", weights_only=True)["progress"]
    assert done["epoch"] < 6, "the run was over before it could be stopped"
    result = run("train_finetune.py", *args, cwd=tmp_path / "stopped")
    assert result.returncode == 0, result.stderr
    for name in ("last_model.pth", "best_model.pth", "checkpoint_epoch_4.pth"):
        assert_equal_state(tmp_path / "whole/run" / name, tmp_path / "stopped/run" / name)
    assert (tmp_path / "whole/run/metrics.jsonl").read_bytes() == (tmp_path / "stopped/run/metrics.jsonl").read_bytes()




@pytest.mark.full
def test_a_run_resumes_from_each_kind_of_checkpoint(data, trained, tmp_path):
    import shutil

    for name, epoch in (("checkpoint_epoch_20.pth", 20), ("last_model.pth", 30)):
        folder = tmp_path / name
        shutil.copytree(trained, folder)
        result = run("train_finetune.py", *flags(data, "--epochs", 31, "--resume", f"run/{name}"), "--set", *TINY,
                     cwd=folder)
        assert result.returncode == 0, result.stderr
        rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
        assert [r["epoch"] for r in rows] == list(range(1, 32)), f"resumed after epoch {epoch}"


@pytest.mark.full
def test_a_trained_prism_changes_and_is_in_the_checkpoint(data, tmp_path):
    result = run("train_finetune.py", *flags(data, "--epochs", 1), "--set", *TINY, "prism.freeze=false",
                 "training.save_every=0", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    content = torch.load(tmp_path / "run" / "last_model.pth", weights_only=True)
    from prism import load_prism

    before = load_prism("random-tiny").state_dict()
    moved = [k for k, v in before.items() if not torch.equal(v, content["model"][f"prism.{k}"])]
    assert len(moved) > 0.5 * len(before)
    result = run("inference.py", "--checkpoint", tmp_path / "run" / "last_model.pth", "--embeddings_file",
                 data / "embeddings" / "s00.h5", cwd=tmp_path)
    assert result.returncode == 0, result.stderr


BAD = {
    "unknown_key": (["--set", "training.learnig_rate=1e-4"], ["learnig_rate", "did you mean learning_rate"]),
    "missing_h5": (["--labels_file", "extra.json"], ["nowhere", "no H5 file"]),
    "wrong_width": (["--embeddings_dir", "narrow"], ["1280", "2560"]),
    "empty_text": (["--labels_file", "empty.json"], ["s01", "empty text"]),
    "cut_json": (["--labels_file", "cut.json"], ["cut.json"]),
    "truncated_checkpoint": (["--resume", "run/last_model.pth"], ["last_model.pth", "truncated"]),
    "no_prism_access": (["--prism", "no/such-prism"], ["no/such-prism"]),
}


@pytest.mark.full
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line_and_writes_nothing(data, trained, tmp_path, case):
    more, words = BAD[case]
    labels = json.loads((data / "labels.json").read_text(encoding="utf-8"))
    (tmp_path / "extra.json").write_text(json.dumps(labels | {"nowhere": "胃腺癌"}), encoding="utf-8")
    (tmp_path / "empty.json").write_text(json.dumps(labels | {"s01": "  "}), encoding="utf-8")
    (tmp_path / "cut.json").write_text(json.dumps(labels)[:-5], encoding="utf-8")
    (tmp_path / "narrow").mkdir()
    for slide_id in labels:
        with h5py.File(tmp_path / "narrow" / f"{slide_id}.h5", "w") as file:
            file["features"] = np.ones((3, 1280), np.float32)
    if case == "truncated_checkpoint":
        (tmp_path / "run").mkdir()
        whole = (trained / "run" / "last_model.pth").read_bytes()
        (tmp_path / "run" / "last_model.pth").write_bytes(whole[: len(whole) // 2])
    before = sorted(p for p in tmp_path.rglob("*"))
    result = run("train_finetune.py", *flags(data), *more, cwd=tmp_path, env={"HF_HUB_OFFLINE": "1"})
    assert_one_error(result, *words)
    assert sorted(p for p in tmp_path.rglob("*")) == before, "something was written"


def test_C12_a_second_run_does_not_overwrite_the_first(data, trained):
    before = (trained / "run" / "last_model.pth").stat().st_mtime_ns
    assert_one_error(run("train_finetune.py", *flags(data), "--set", *TINY, cwd=trained), "holds another run", "--resume")
    assert (trained / "run" / "last_model.pth").stat().st_mtime_ns == before


@pytest.mark.full
def test_check_reads_every_tile_and_writes_nothing(data, tmp_path):
    config = f'data: {{embeddings_dir: "{data}/embeddings", labels_file: "{data}/labels.json", val_split: 0.25}}'
    (tmp_path / "c.yaml").write_text(config, encoding="utf-8")
    assert run("train_with_config.py", "--config", "c.yaml", "--check", cwd=tmp_path).returncode == 0
    (tmp_path / "bad").mkdir()
    for i in range(12):
        with h5py.File(tmp_path / "bad" / f"s{i:02d}.h5", "w") as file:
            file["embeddings"] = np.full((3, 2560), np.inf if i in (3, 7) else 1.0, np.float32)
    result = run("train_with_config.py", "--config", "c.yaml", "--check", "--set",
                 f"data.embeddings_dir={tmp_path}/bad", cwd=tmp_path)
    assert_one_error(result, "2 bad files", "NaN or infinity in 3 of 3")
    assert {p.name for p in tmp_path.iterdir()} == {"c.yaml", "bad"}


@pytest.mark.parametrize("script", ["train_finetune.py", "train_with_config.py", "inference.py"])
def test_help_is_quick_and_needs_no_torch(script, tmp_path):
    code = f"import sys, runpy; sys.argv = [{script!r}, '--help']\n" \
           f"try: runpy.run_path({str(ROOT / script)!r}, run_name='__main__')\n" \
           "except SystemExit as e: assert e.code == 0 and 'torch' not in sys.modules and 'h5py' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and "usage:" in result.stdout, result.stderr


def losses(folder: Path) -> list[float]:
    return [value for line in (folder / "metrics.jsonl").read_text().splitlines()
            for name, value in json.loads(line).items() if name.endswith("loss")]


@pytest.mark.full
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 5e-2)])
def test_a_run_from_the_slide_cache_equals_one_that_encodes_in_each_epoch(data, tmp_path, precision, tolerance):
    # a small learning rate: Adam turns rounding noise of tiny gradients into whole steps
    common = [*flags(data, "--epochs", 3, "--lr", "1e-4"), "--set", *TINY, "data.views=1", f"training.precision={precision}"]
    for name, more in (("cached", "data.latents_cache=auto"), ("uncached", "data.latents_cache=null")):
        (tmp_path / name).mkdir()
        result = run("train_finetune.py", *common, more, cwd=tmp_path / name)
        assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "cached" / "prism_latents").rglob("*.npy"))) == 12
    assert not (tmp_path / "uncached" / "prism_latents").exists()
    cached, uncached = losses(tmp_path / "cached" / "run"), losses(tmp_path / "uncached" / "run")
    assert cached == pytest.approx(uncached, rel=tolerance) and len(cached) == 18
    again = run("train_finetune.py", *common, "training.output_dir=second", cwd=tmp_path / "cached")
    log = (tmp_path / "cached" / "logs" / "training.log").read_text(encoding="utf-8")
    assert again.returncode == 0 and "all 12 slides are there" in log
    assert_equal_state(tmp_path / "cached" / "run" / "last_model.pth", tmp_path / "cached" / "second" / "last_model.pth")


@pytest.mark.full
def test_resume_from_an_older_checkpoint_drops_what_came_after_also_if_it_is_killed(data, tmp_path):
    args = [*flags(data, "--epochs", 4, "--save_every", 1), "--set", *TINY, "training.precision=fp32"]
    for name in ("whole", "back"):
        (tmp_path / name).mkdir()
        assert run("train_finetune.py", *args, cwd=tmp_path / name).returncode == 0
    back = tmp_path / "back"
    command = [sys.executable, str(ROOT / "train_finetune.py"), *map(str, args), "--resume", "run/checkpoint_epoch_1.pth"]
    with subprocess.Popen(command, cwd=back, stderr=subprocess.PIPE, text=True, encoding="utf-8",
                          env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
        while "resumed from" not in process.stderr.readline():
            assert process.poll() is None
        process.kill()
    assert run("train_finetune.py", *args, "--resume", "auto", cwd=back).returncode == 0
    assert_equal_state(tmp_path / "whole" / "run" / "last_model.pth", back / "run" / "last_model.pth")
    logs = [(tmp_path / name / "run" / "metrics.jsonl").read_bytes() for name in ("whole", "back")]
    assert logs[0] == logs[1]


@pytest.mark.full
def test_a_signal_to_the_whole_group_stops_the_run_not_its_loaders(data, tmp_path):
    args = [*flags(data, "--epochs", 100), "--set", *TINY[:-1], "training.workers=1", "data.latents_cache=null"]
    with subprocess.Popen([sys.executable, str(ROOT / "train_finetune.py"), *map(str, args)], cwd=tmp_path,
                          stderr=subprocess.PIPE, text=True, encoding="utf-8", start_new_session=True) as process:
        while "epoch   2/" not in process.stderr.readline():
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGTERM)
        rest = process.stderr.read()
    assert process.returncode == 143 and "loader process died" not in rest and "stopped by SIGTERM" in rest
    assert (tmp_path / "run" / "last_model.pth").exists()


@pytest.mark.full
def test_inference_refuses_what_cannot_be_answered_before_the_work(trained, data, tmp_path):
    common = ["--checkpoint", trained / "run" / "best_model.pth", "--embeddings_dir", data / "embeddings"]
    (tmp_path / "folder.json").mkdir()
    assert_one_error(run("inference.py", *common, "--output", "folder.json", cwd=tmp_path), "is a folder")
    assert_one_error(run("inference.py", *common, "--text", " ", cwd=tmp_path), "--text", "is empty")


@pytest.mark.full
def test_files_of_one_name_are_known_by_folder_or_an_error_record_and_unknown_words_a_warning(trained, data, tmp_path):
    for place in ("a", "b"):
        (tmp_path / "h5" / place).mkdir(parents=True)
        shutil.copy(data / "embeddings" / "s00.h5", tmp_path / "h5" / place / "s00.h5")
    for name in ("s01.h5", "s01.hdf5", "s02.h5"):
        shutil.copy(data / "embeddings" / "s02.h5", tmp_path / "h5" / name)
    result = run("inference.py", "--checkpoint", trained / "run" / "best_model.pth", "--embeddings_dir", "h5",
                 "--output", "out.jsonl", "--text", "肝", "肝", "胃", cwd=tmp_path)
    rows = {r["id"]: r for r in map(json.loads, (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines())}
    assert_one_error(result, "s01", "1 of 4 slides failed")
    assert rows.keys() == {"a/s00", "b/s00", "s01", "s02"} and "other files have this name" in rows["s01"]["error"]
    assert rows["a/s00"]["error"] is None and rows["a/s00"]["caption"] == rows["b/s00"]["caption"]
    assert sum(rows["s02"]["probability"].values()) == pytest.approx(1) and len(rows["s02"]["probability"]) == 2
    assert "'肝': 1 of its 1 tokens are not in the vocabulary" in result.stderr
