"""`training.init_from`: a new run from the weights of a trained model; what is taken, what is new, what is refused."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from finetune.checkpoints.format import BEST, LAST, Checkpoint
from finetune.checkpoints.hf_folder import write_folder
from finetune.config.schema import Config, apply_overrides, from_dict
from finetune.data.tokenizer import FastTokenizer, VocabTokenizer, extend_tokenizer, tokenizer_from_dict
from finetune.models import build
from finetune.training import run
from finetune.training.init_from import StartingPoint, take_weights
from tests.helpers import kill_runs
from tests.helpers.files import refused, write_json, write_slides

# no sizes: they are those of the model
SETTINGS = [pair for pair in kill_runs.SETTINGS if not pair.startswith(("model.", "training.monitor", "training.eval"))]
SETTINGS += ["model.image_dim=16", "training.epochs=1", "training.monitor=last"]
PROBE = "coca.img_context."  # of probe tokens, which the first run has, and another one only if it says so
TABLES = ("coca.token_emb.weight", "coca.to_logits.1.weight")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A folder with a finished run in first/run, its data, and data of another hospital beside it."""
    base = tmp_path_factory.mktemp("init_from")
    kill_runs.make_data(base)
    write_slides(base / "other" / "h5", {f"t{i}": 3 for i in range(12)}, kill_runs.WIDTH)
    write_json(base / "other" / "labels.json", {f"t{i}": f"{'胃肠'[i % 2]}腺癌，{i % 10}级，窦部，gastric。" for i in range(12)})
    (base / "first").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        assert train(base / "first", patch, *kill_runs.SETTINGS, "model.probe_tokens=2", "training.epochs=2",
                     "training.monitor=last", "training.eval_captions=0") == 0
    return base


@pytest.fixture
def folder(base, tmp_path) -> Path:
    """An empty folder to train in, beside links to the data."""
    for name in ("h5", "labels.json", "other", "first"):
        (tmp_path / name).symlink_to(base / name)
    (tmp_path / "second").mkdir()
    return tmp_path / "second"


def train(folder: Path, patch: pytest.MonkeyPatch, *pairs: str, resume: str | None = None) -> int:
    patch.chdir(folder)
    patch.setattr(build, "load_prism", kill_runs.tiny_prism)
    return run.train(apply_overrides(Config(), [*SETTINGS, *pairs]), resume)


OTHER_DATA = ("data.embeddings_dir=../other/h5", "data.labels_file=../other/labels.json")


def test_a_new_run_on_other_texts_starts_from_all_weights_and_an_extended_vocabulary(folder, monkeypatch, capfd):
    monkeypatch.setattr("finetune.training.loop.train_step", lambda *a: pytest.fail("not to be trained"))
    seen: dict = {}

    def stop(parts, state):
        seen["weights"], seen["moments"], seen["state"] = parts.model.saved_state(), parts.optimizer.state, state
        return dataclasses.replace(state)

    monkeypatch.setattr(run, "fit", stop)
    assert train(folder, monkeypatch, *OTHER_DATA, "training.init_from=../first/run") == 143
    best, written = Checkpoint.load(folder.parent / "first" / "run" / BEST), capfd.readouterr().err
    old = tokenizer_from_dict(best.tokenizer, "")
    new = tokenizer_from_dict(json.loads((folder / "run" / "tokenizer.json").read_text(encoding="utf-8")), "")
    assert new.pieces[:len(old.pieces)] == old.pieces and "gastric" in new.pieces and "窦" in new.pieces
    for name, weight in best.model.items():
        if name.startswith(PROBE):
            continue
        assert torch.equal(seen["weights"][name][:len(weight)], weight) if name in TABLES else torch.equal(seen["weights"][name], weight), name
    table, logits = (seen["weights"][name] for name in TABLES)
    assert table.data_ptr() == logits.data_ptr() and len(table) == len(new) > len(old)
    assert table[len(old):].std() > 0, "new tokens have embeddings of their own"
    assert not seen["moments"] and (seen["state"].epoch, seen["state"].step) == (0, 0)
    assert f"{len(best.model)} weights taken, the embeddings of {len(old)} tokens, {len(new) - len(old)} more are new" in written
    assert "gastric" not in written, "a log holds no texts"


def test_of_the_probe_tokens_what_was_learned_of_known_tokens_is_taken_and_the_probe_is_the_new_slides_own(folder, monkeypatch):
    seen: dict = {}

    def stop(parts, state):
        seen.update(parts.model.saved_state())
        return dataclasses.replace(state)

    monkeypatch.setattr(run, "fit", stop)
    old = Checkpoint.load(folder.parent / "first" / "run" / BEST).model
    with monkeypatch.context() as patch:
        assert train(folder, patch, *OTHER_DATA, "model.probe_tokens=2", "training.init_from=../first/run") == 143
    ids, old_ids = (state[PROBE + "token_ids"].tolist() for state in (seen, old))
    known = [(ids.index(token), old_ids.index(token)) for token in ids if token in old_ids]
    assert known and len(known) < len(ids), "some tokens are new"
    project = seen[PROBE + "project.weight"]
    for column, token in enumerate(ids):
        if token in old_ids:
            assert torch.equal(project[:, column], old[PROBE + "project.weight"][:, old_ids.index(token)])
        else:
            assert project[:, column].std() > 0
    assert torch.equal(seen[PROBE + "norm.weight"], old[PROBE + "norm.weight"])
    assert not torch.equal(seen[PROBE + "mean"], old[PROBE + "mean"]), "of the new slides"
    other = folder.parent / "another"
    other.mkdir()
    with monkeypatch.context() as patch:
        assert train(other, patch, *OTHER_DATA, "model.probe_tokens=3", "training.init_from=../first/run") == 143
    assert seen[PROBE + "project.weight"].shape == (3 * 16, len(ids)), "another number of them starts anew"


def test_the_trained_run_names_its_source_in_checkpoint_card_and_export_and_starts_its_calibration_anew(folder, monkeypatch):
    assert train(folder, monkeypatch, *OTHER_DATA, "training.init_from=../first/run") == 0
    source = folder.parent / "first" / "run" / BEST
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    for name in (BEST, LAST):
        content = Checkpoint.load(folder / "run" / name)
        assert content.init_from == {"source": f"run/{BEST}", "sha256": digest, "epoch": 2}
        assert content.config["training"]["init_from"] == "" and content.progress["epoch"] == 1
    before, after = (Checkpoint.load(p).calibration for p in (source, folder / "run" / BEST))
    assert before and after and before != after
    write_folder(folder / "run" / BEST, folder / "exported")
    assert f"run/{BEST}, epoch 2 (SHA-256 {digest})" in (folder / "exported" / "README.md").read_text(encoding="utf-8")
    assert StartingPoint.load(str(folder / "exported")).checkpoint.init_from["sha256"] == digest
    other = apply_overrides(Config(), ["training.init_from=x"])
    assert from_dict(other.to_dict(), "x").training.init_from == "x"


@pytest.mark.parametrize("source", ["run", "best", "last", "exported"])
def test_run_folder_file_and_exported_folder_give_the_same_weights(folder, monkeypatch, source):
    first = folder.parent / "first" / "run"
    write_folder(first / BEST, folder / "exported")
    path = {"run": first, "best": first / BEST, "last": first / LAST, "exported": folder / "exported"}[source]
    point = StartingPoint.load(str(path))
    monkeypatch.setattr(build, "load_prism", kill_runs.tiny_prism)
    model = build.build_model(point.config, point.tokenizer("vocab"))
    size = len(point.tokenizer("vocab"))
    take_weights(model, point, size, size)
    of_run = {name: weight for name, weight in Checkpoint.load(first / LAST).model.items() if not name.startswith(PROBE)}
    assert of_run.keys() == model.saved_state().keys()
    assert all(torch.equal(weight, model.saved_state()[name]) for name, weight in of_run.items())
    assert not point.checkpoint.optimizer
    weights = path / "model.safetensors" if source == "exported" else first / (LAST if source == "last" else BEST)
    assert point.sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()


def test_a_run_started_from_a_model_resumes_bit_equal_with_the_same_command(folder, monkeypatch):
    pairs = (*OTHER_DATA, "training.init_from=../first/run", "training.epochs=3", "training.save_every=1")
    assert train(folder, monkeypatch, *pairs, resume="auto") == 0
    whole = kill_runs._hash(Checkpoint.load(folder / "run" / LAST).__dict__ | {"path": ""})
    shutil.copy(folder / "run" / "checkpoint_epoch_1.pth", folder / "run" / LAST)
    assert train(folder, monkeypatch, *pairs, resume="auto") == 0
    assert kill_runs._hash(Checkpoint.load(folder / "run" / LAST).__dict__ | {"path": ""}) == whole
    assert Checkpoint.load(folder / "run" / LAST).init_from["source"] == f"run/{BEST}"


def test_the_vocabulary_of_the_same_texts_is_the_model_s_own(folder, monkeypatch, capfd):
    assert train(folder, monkeypatch, "training.init_from=../first/run") == 0
    one, other = (Checkpoint.load(path / "run" / LAST).tokenizer for path in (folder, folder.parent / "first"))
    assert one == other and "more are new" not in capfd.readouterr().err


@pytest.mark.parametrize(("pairs", "words"), [
    (["model.dim=32"], ["model.dim=16", "this run has 32", "set model.dim=16"]),
    (["model.size=base"], ["model.size=small", "set model.size=small"]),
    (["model.contrastive=siglip"], ["model.contrastive=clip"]),
    (["model.ff_mult=2"], ["set model.ff_mult=4"]),
    (["data.tokenizer=bpe"], ["data.tokenizer=vocab", "this run has bpe"]),
    (["data.normalize=true"], ["data.normalize=False"]),
    (["training.init_from=../nowhere"], ["nowhere", "not found"]),
    (["training.init_from=../h5"], ["h5", "neither"])])
def test_what_does_not_fit_is_refused_before_anything_is_written(folder, monkeypatch, pairs, words):
    with refused(*words):
        train(folder, monkeypatch, *OTHER_DATA, "training.init_from=../first/run", *pairs)
    assert not list(folder.rglob("*.pth")) and not list(folder.rglob("metrics.jsonl"))


def test_other_prism_weights_are_refused(folder, monkeypatch):
    point = StartingPoint.load(str(folder.parent / "first" / "run"))
    monkeypatch.setattr(build, "load_prism", kill_runs.tiny_prism)
    model = build.build_model(point.config, point.tokenizer("vocab"))
    model.prism.sha256 = "1" * 64
    with refused("training.init_from", "other Prism weights", "prism.weights"):
        take_weights(model, point, 1, 1)
    model.prism.sha256 = "0" * 64
    point.checkpoint.prism["text_sha256"] = "2" * 64
    with refused("training.init_from", "another text decoder", "model.decoder"):
        take_weights(model, point, 1, 1)


def test_a_model_trained_together_with_prism_wants_its_prism(folder):
    point = StartingPoint.load(str(folder.parent / "first" / "run"))
    point.config.prism.freeze = False
    with refused("trained together with Prism", "prism.freeze=false"):
        point.adopt_sizes(Config(data=point.config.data, model=point.config.model))


def test_a_language_model_may_lie_in_another_folder_than_before(folder):
    point = StartingPoint.load(str(folder.parent / "first" / "run"))
    point.config.model.decoder, here = "hf:gpt", Config(data=point.config.data, model=copy.deepcopy(point.config.model))
    here.model.decoder = "hf:/models/gpt"
    assert point.adopt_sizes(here).model.decoder == "hf:/models/gpt"
    here.model.decoder = "coca"
    with refused("its model has model.decoder=hf:gpt"):
        point.adopt_sizes(here)


def test_resuming_a_run_that_started_from_nothing_with_init_from_is_explained(base, tmp_path, monkeypatch):
    shutil.copytree(base, tmp_path / "copy")
    with refused("training.init_from", "did not start from other weights", "leave it out to resume", "--output_dir"):
        train(tmp_path / "copy" / "first", monkeypatch, *kill_runs.SETTINGS, "training.init_from=run/best_model.pth",
              "training.monitor=last", "training.eval_captions=0", resume="auto")


def test_other_data_and_other_settings_name_init_from_as_the_way_on(base, tmp_path, monkeypatch):
    shutil.copytree(base, tmp_path / "copy")
    pairs = [*kill_runs.SETTINGS, "training.monitor=last", "training.eval_captions=0", "training.epochs=3"]
    with refused("other data", "training.init_from=run/last_model.pth", "another --output_dir"):
        labels = {f"s{i}": f"{'胃肠肺'[i % 3]}腺癌，{i}级。" for i in range(13)}
        write_json(tmp_path / "copy" / "labels.json", labels)
        train(tmp_path / "copy" / "first", monkeypatch, *pairs, resume="auto")
    shutil.copy(base / "labels.json", tmp_path / "copy" / "labels.json")
    with refused("training.seed=42", "training.init_from takes the weights along"):
        train(tmp_path / "copy" / "first", monkeypatch, *pairs, "training.seed=1", resume="auto")


def test_the_check_of_the_data_knows_the_vocabulary_of_the_model(folder, monkeypatch):
    monkeypatch.chdir(folder)
    pairs = [*SETTINGS, *OTHER_DATA]
    assert run.check(apply_overrides(Config(), [*pairs, "training.init_from=../first/run"])) == 0
    with refused("set model.dim=16"):
        run.check(apply_overrides(Config(), [*pairs, "training.init_from=../first/run", "model.dim=32"]))


def test_an_extended_vocabulary_encodes_known_texts_as_before():
    old = VocabTokenizer.build(["胃腺癌。", "gastric cancer"])
    new = extend_tokenizer(old, ["胃窦部 12 mm", "gastric antrum"])
    assert all(new.encode(text) == old.encode(text) for text in ("胃腺癌。", "gastric cancer"))
    assert new.decode(new.encode("胃窦部 12 mm antrum")) == "胃窦部 12 mm antrum"
    assert extend_tokenizer(old, ["胃癌"]) is old
    bpe = FastTokenizer.train(["胃腺癌。"] * 3, 300, False)
    assert extend_tokenizer(bpe, ["窦"]) is bpe
