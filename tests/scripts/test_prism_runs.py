"""Runs with Prism's own text side: captions of Prism alone, fine-tuning its decoder, export; on random small weights."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from finetune.checkpoints.hf_folder import read_folder, write_folder
from finetune.common.device import resolve_precision
from finetune.common.errors import UserError
from finetune.config.flags import Parser
from finetune.config.schema import Config, apply_overrides
from finetune.config.yaml_file import load_yaml
from finetune.inference.captioner import Captioner
from finetune.inference.explain import explain_slide, open_slide
from finetune.inference.options import InferenceOptions, add_inference_flags
from finetune.inference.run import run_inference
from finetune.training.run import train
from prism import Prism
from prism.tokenizer import letters_tokenizer
from tests.helpers.files import ROOT, refused, write_h5, write_json
from tests.helpers.prism import put
from tests.helpers.scripts import without_judge
from tests.parity.prism_weights import small_state

pytestmark = pytest.mark.full

TEXTS = ["breast: ductal carcinoma", "stomach: adenocarcinoma", "colon: no tumor"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """9 slides whose tiles lean towards one of three directions, which is what their text says."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    directions = rng.standard_normal((3, 2560))
    for i in range(9):
        write_h5(folder / "h5" / f"s{i}.h5", (rng.standard_normal((5, 2560)) + directions[i % 3]).astype(np.float16))
    write_json(folder / "labels.json", {f"s{i}": TEXTS[i % 3] for i in range(9)})
    return folder


def config_of(data: Path, out: Path, *pairs: str) -> Config:
    return apply_overrides(Config(), [
        f"data.embeddings_dir={data / 'h5'}", f"data.labels_file={data / 'labels.json'}", "data.val_split=0.34",
        f"training.output_dir={out / 'run'}", f"training.log_dir={out}", "training.batch_size=3", "training.workers=0",
        "training.learning_rate=1e-3", "training.epochs=2", "training.precision=fp32", "prism.weights=random-tiny",
        *pairs])


def fine_tuned(data: Path, out: Path, *pairs: str) -> Path:
    assert train(config_of(data, out, "model.decoder=prism", *pairs)) == 0
    return out / "run"


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    """The run folder of a fine-tuned `decoder: prism`."""
    return fine_tuned(data, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def adapted(data, tmp_path_factory) -> Path:
    """The same with adapters."""
    return fine_tuned(data, tmp_path_factory.mktemp("run"), "model.lora_rank=2")


@pytest.fixture(params=["trained", "adapted"])
def either(request) -> Path:
    return request.getfixturevalue(request.param)


def infer(tmp_path: Path, *args: object, length: int = 30, run=run_inference) -> list[dict]:
    parser = Parser()
    add_inference_flags(parser)
    output = ["--output", tmp_path / "out.jsonl"] if run is run_inference else []
    parsed = parser.parse_args([str(a) for a in (*args, *output, "--max_length", length)])
    assert run(InferenceOptions.from_flags(parsed)) == 0
    return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]


def test_prism_alone_gives_the_records_and_scores_of_a_checkpoint(data, trained, tmp_path):
    flags = ["--embeddings_dir", data / "h5", "--labels_file", data / "labels.json", "--latents_cache", "null", "--text", *TEXTS]
    alone = infer(tmp_path, "--prism_only", "--prism", "random-tiny", *flags)
    of_prism = (tmp_path / "out.scores.json").read_text(encoding="utf-8")
    ours = infer(tmp_path, "--checkpoint", trained / "last_model.pth", *flags)
    assert [set(r) for r in map(without_judge, alone)] == [set(r) for r in map(without_judge, ours)] and len(alone) == 9
    scores = [json.loads(text) for text in (of_prism, (tmp_path / "out.scores.json").read_text(encoding="utf-8"))]
    assert set(scores[0]) == set(scores[1]) and scores[0]["slides"] == 9


def test_prism_alone_writes_and_scores_what_prism_does(tmp_path):
    """A folder as from the hub, small: caption, cosines and zero-shot classes against the model itself."""
    folder = put(tmp_path / "prism", small_state(text=True))
    letters_tokenizer().save(folder)
    tiles = np.random.default_rng(1).standard_normal((6, 20)).astype(np.float32)
    write_h5(tmp_path / "s.h5", tiles)
    record, = infer(tmp_path, "--prism_only", "--prism", folder, "--embeddings_file", tmp_path / "s.h5", "--text", "a b",
                    "--prompts", write_json(tmp_path / "prompts.json", {"no": ["a b"], "yes": ["c d", "e f"]}))
    prism = Prism.from_pretrained(folder)
    slide = prism.slide_representations(torch.from_numpy(tiles)[None])
    with resolve_precision("auto", torch.device("cpu")).autocast():
        ids = prism.generate(key_value_states=slide["image_latents"], max_length=30)
    assert record["caption"] == prism.tokenizer.decode(ids[0].tolist())
    text = prism.text_decoder.unimodal(prism.tokenize(["a b"])[:, :-1])[0]
    cosine = prism.similarity(text, slide["image_embedding"]) / prism.temperature.exp()
    assert record["similarity"]["a b"] == pytest.approx(cosine.item(), abs=0.02)
    # prompts of one length, where the published zero_shot cuts `</s>` off all of them
    odds = prism.zero_shot(slide["image_embedding"], neg_prompts=["a b"], pos_prompts=["c d", "e f"])
    assert list(record["classes"].values()) == pytest.approx(odds[0].tolist(), abs=0.05)
    assert max(odds[0].tolist()) < 0.95


def test_a_fine_tuned_decoder_learns_and_its_checkpoint_holds_only_what_trained(either):
    rows = [json.loads(line) for line in (either / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows[-1]["caption_loss"] < rows[0]["caption_loss"]
    content = torch.load(either / "last_model.pth", weights_only=True)
    assert content["model"] and not any("embed" in k or "layers.0." in k or k.startswith("prism.")
                                        for k in content["model"])
    assert len(content["prism"]["text_sha256"]) == 64 and content["tokenizer"]["type"] == "biogpt"


def test_a_fine_tuned_decoder_resumes_bit_equal(data, either, tmp_path, capsys):
    rank = torch.load(either / "last_model.pth", weights_only=True)["config"]["model"]["lora_rank"]
    pairs = "model.decoder=prism", f"model.lora_rank={rank}", "training.save_every=1"
    assert train(config_of(data, tmp_path, *pairs)) == 0
    shutil.copytree(tmp_path / "run", tmp_path / "again" / "run")
    for name in ("last_model.pth", "checkpoint_epoch_2.pth", "best_model.pth"):
        (tmp_path / "again" / "run" / name).unlink()
    assert train(config_of(data, tmp_path / "again", *pairs), "auto") == 0
    assert "resumed from checkpoint_epoch_1.pth" in capsys.readouterr().err
    left, right = (torch.load(p / "run" / "last_model.pth", weights_only=True)["model"] for p in
                   (tmp_path, tmp_path / "again"))
    assert left.keys() == right.keys() and all(torch.equal(v, right[k]) for k, v in left.items())


@pytest.mark.parametrize("pairs", [["model.contrastive_loss_weight=0", "model.lora_rank=2"],
                                   ["model.caption_loss_weight=0"], ["model.contrastive_loss_weight=0"]])
def test_with_one_loss_alone_it_trains_resumes_and_holds_nothing_of_prism_untouched(data, tmp_path, pairs):
    run = fine_tuned(data, tmp_path, *pairs, "training.epochs=1")
    assert train(config_of(data, tmp_path, "model.decoder=prism", *pairs), "auto") == 0
    saved = torch.load(run / "last_model.pth", weights_only=True)["model"]
    of_prism = {f"coca.{key}": value for key, value in Prism.from_pretrained("random-tiny").state_dict().items()}
    assert saved and not any(torch.equal(value, of_prism[key]) for key, value in saved.items() if key in of_prism)
    record, = infer(tmp_path, "--checkpoint", run / "last_model.pth", "--embeddings_file", data / "h5" / "s0.h5")
    assert record["error"] is None


def test_other_prism_weights_are_refused_at_inference(trained, data, tmp_path):
    content = torch.load(trained / "last_model.pth", weights_only=True)
    content["prism"]["text_sha256"] = "0" * 64
    torch.save(content, tmp_path / "other.pth")
    with refused("other.pth", "text_sha256", "--prism"):
        infer(tmp_path, "--checkpoint", tmp_path / "other.pth", "--embeddings_file", data / "h5" / "s0.h5")


def test_init_prism_starts_a_coca_that_trains_and_opens_without_its_text_side(data, tmp_path):
    tiny = [f"model.{key}" for key in ("dim=32", "unimodal_depth=1", "multimodal_depth=1", "dim_latents=16",
                                       "num_img_queries=4", "heads=2", "dim_head=16", "init=prism")]
    assert train(config_of(data, tmp_path, "training.epochs=1", *tiny)) == 0
    assert "taken from Prism: the embeddings of" in next(tmp_path.rglob("training.log")).read_text(encoding="utf-8")
    record, = infer(tmp_path, "--checkpoint", tmp_path / "run" / "last_model.pth", "--embeddings_file",
                    data / "h5" / "s0.h5")
    assert record["error"] is None


def test_the_export_command_works_and_its_help_needs_no_torch(trained, tmp_path):
    command = [sys.executable, "-X", "importtime", "-m", "finetune.export"]
    shown = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert shown.returncode == 0 and "FOLDER" in shown.stdout and "torch" not in shown.stderr
    written = subprocess.run([*command[:1], *command[3:], "--checkpoint", trained / "best_model.pth", "--output",
                              tmp_path / "out"], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert written.stdout == f"written: {tmp_path / 'out'}\n" and (tmp_path / "out" / "model.safetensors").is_file()


@pytest.fixture(scope="module")
def exported(trained) -> Path:
    write_folder(trained / "best_model.pth", trained.parent / "exported")
    return trained.parent / "exported"


def test_an_exported_folder_captions_and_scores_as_its_checkpoint(either, data, tmp_path):
    write_folder(either / "best_model.pth", tmp_path / "out")
    flags = ["--embeddings_dir", data / "h5", "--text", *TEXTS]
    exported = infer(tmp_path, "--checkpoint", tmp_path / "out", *flags)
    assert list(map(without_judge, exported)) == \
        list(map(without_judge, infer(tmp_path, "--checkpoint", either / "best_model.pth", *flags)))


def test_an_exported_folder_holds_what_the_hub_wants_and_nothing_private(trained, exported, data):
    assert {p.name for p in exported.iterdir()} == {"README.md", "config.json", "config.yaml", "model.safetensors",
                                                    "tokenizer.json"}
    with safe_open(exported / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(torch.load(trained / "best_model.pth", weights_only=True)["model"])
    card = (exported / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n") and "6 training slides, 3 validation slides" in card and "| val_loss |" in card
    assert "do not distribute this folder" in card  # it is derived from Prism
    words = "".join(p.read_text(encoding="utf-8") for p in exported.iterdir() if p.suffix != ".safetensors")
    assert str(data) not in words and not any(f'"s{i}"' in words for i in range(9))
    assert not any(text in words for text in TEXTS)


def test_the_command_of_the_model_card_trains_again(exported, data, tmp_path, monkeypatch):
    """From config.yaml and the two data paths alone: what a checkpoint leaves empty, such as output_dir, is the default."""
    monkeypatch.chdir(tmp_path)
    config = apply_overrides(load_yaml(exported / "config.yaml", Config()), [
        f"data.embeddings_dir={data / 'h5'}", f"data.labels_file={data / 'labels.json'}", "prism.weights=random-tiny"])
    assert train(config) == 0
    again, first = (torch.load(p / "last_model.pth", weights_only=True)["data"]["fingerprint"]
                    for p in (tmp_path / "checkpoints", exported.parent / "run"))
    assert again == first and {p.name for p in tmp_path.iterdir()} == {"checkpoints", "logs", "prism_latents"}


@pytest.mark.parametrize("flags", [["--prism_only"], ["--checkpoint", "last_model.pth"]])
def test_captions_longer_than_the_decoder_are_refused_and_those_of_prism_explained(trained, data, tmp_path, flags):
    flags = [trained / f if f.endswith(".pth") else f for f in flags]
    flags += ["--prism", "random-tiny", "--embeddings_file", data / "h5" / "s0.h5"]
    with refused("--max_length", 1025, "1024 or less"):
        infer(tmp_path, *flags, length=1025)
    captioner = Captioner.load(flags[1], "random-tiny") if flags[0] == "--checkpoint" else Captioner.of_prism("random-tiny")
    found, _ = explain_slide(captioner, open_slide(captioner, data / "h5" / "s0.h5"), "ab, cd.")
    assert [p["text"] for p in found["phrases"]] == ["ab", " cd"] and all(p["no_map"] or p["weights"] for p in found["phrases"])


@pytest.mark.parametrize("spoil", ["weights", "config", "version", "tokenizer", "size"])
def test_spoiled_folders_are_refused(exported, tmp_path, spoil):
    folder = shutil.copytree(exported, tmp_path / "folder")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if spoil == "weights":
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    elif spoil == "size":
        with open(folder / "config.json", "ab") as file:
            file.truncate(1 << 27)
    elif spoil == "tokenizer":
        (folder / "tokenizer.json").write_text("[1]", encoding="utf-8")
    else:
        write_json(folder / "config.json", {**config, "config": 3} if spoil == "config" else
                   {**config, "format_version": 99})
    with refused(folder.name):
        read_folder(folder)


def test_a_folder_is_never_written_over(trained, tmp_path):
    (tmp_path / "x").write_text("mine", encoding="utf-8")
    with refused("already exists"):
        write_folder(trained / "best_model.pth", tmp_path)
    with pytest.raises(UserError):
        write_folder(tmp_path / "none.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("*.tmp"))


def test_A01_an_export_leaves_a_folder_of_the_user_beside_it(trained, tmp_path):
    (tmp_path / "model.tmp").mkdir()
    (tmp_path / "model.tmp" / "mine").write_text("mine", encoding="utf-8")
    write_folder(trained / "best_model.pth", tmp_path / "model")
    assert (tmp_path / "model.tmp" / "mine").read_text(encoding="utf-8") == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.tmp"]
    assert read_folder(tmp_path / "model").model
