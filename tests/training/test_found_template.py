"""The template that training texts follow, in the checkpoints of a run and in a file for a person."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys

import pytest

from finetune.checkpoints.format import BEST, LAST, Checkpoint, write_pth
from finetune.checkpoints.hf_folder import read_folder, write_folder
from finetune.common.distributed import ALONE
from finetune.config.schema import Config, apply_overrides
from finetune.data.summed_json import read_summed, write_summed
from finetune.models import build
from finetune.templates.search import find_template
from finetune.templates.template import Template
from finetune.training import found_template, run
from finetune.training.found_template import template_of
from tests.helpers import kill_runs
from tests.helpers.files import ROOT, refused, write_json

SETTINGS = [*kill_runs.SETTINGS, "training.epochs=1", "training.eval_captions=0", "model.probe_tokens=0"]
TEXTS = [f"{organ}腺癌，{grade}分化，脉管侵犯：{answer}。" for organ in ("乳腺", "结肠") for grade in "高低" for answer in "有无"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    kill_runs.make_data(tmp_path)
    names = list(json.loads((tmp_path / "labels.json").read_text(encoding="utf-8")))
    write_json(tmp_path / "labels.json", {name: TEXTS[i % len(TEXTS)] for i, name in enumerate(names)})
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    monkeypatch.setattr(build, "load_prism", kill_runs.tiny_prism)
    return tmp_path


def train(*pairs, resume=None):
    return run.train(apply_overrides(Config(), [*SETTINGS, *pairs]), resume)


def test_a_run_keeps_the_template_of_its_training_texts_in_every_checkpoint_and_an_export(folder, tmp_path):
    assert train() == 0
    checkpoints = {path.name: Checkpoint.load(path) for path in (folder / "run").rglob("*.pth") if path.name != "nearest.pt"}
    held_out = checkpoints[LAST].data["validation_ids"]
    labels = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    expected = find_template([text for name, text in labels.items() if name not in held_out]).template.to_dict()
    assert {BEST, LAST} <= set(checkpoints)
    assert all(checkpoint.template == expected for checkpoint in checkpoints.values())
    best = next((folder / "run").rglob(BEST))
    write_folder(best, tmp_path / "exported")
    assert read_folder(tmp_path / "exported").template == expected
    log = next(folder.rglob("training.log")).read_text(encoding="utf-8")
    assert "training texts: template with 3 slots" in log and "脉管" not in log and "腺癌" not in log


def nothing_kept(*overrides: str) -> Config:
    return apply_overrides(Config(), ["data.latents_cache=null", *overrides])


class Slides:
    def __init__(self, texts):
        self.train = [type("Sample", (), {"references": (text,)})() for text in texts]


def test_texts_without_a_template_leave_none_and_say_why(caplog):
    rng = random.Random(0)
    free = Slides(["".join(rng.choices("胃肠肝肺乳癌变性坏死出血增生分化", k=20)) for _ in range(40)])
    with caplog.at_level("INFO", logger="prism_coca"):
        assert template_of(nothing_kept(), free, None, ALONE) is None
    assert "no template: " in caplog.text


def test_no_template_is_looked_for_where_no_captions_are_trained():
    without = nothing_kept("model.caption_loss_weight=0")
    assert template_of(without, Slides(TEXTS * 5), None, ALONE) is None
    assert template_of(nothing_kept(), Slides(TEXTS * 5), None, ALONE) is not None


def test_equal_texts_are_searched_once_and_a_damaged_result_is_not_believed(tmp_path, monkeypatch):
    config = apply_overrides(Config(), [f"data.latents_cache={tmp_path}"])
    first = template_of(config, Slides(TEXTS * 5), None, ALONE)
    monkeypatch.setattr(found_template, "find_template", lambda texts: pytest.fail("searched again"))
    assert template_of(config, Slides(TEXTS * 5), None, ALONE) == first
    monkeypatch.undo()
    kept, = tmp_path.glob("*_texts.json")
    for damage in ({"text": "{a}"}, {"text": "a", "slots": {1: 2}}, "x", 7):
        content = read_summed(kept, "texts 1")
        write_summed(kept, "texts 1", {key: {**value, "template": damage} for key, value in content.items()})
        assert template_of(config, Slides(TEXTS * 5), None, ALONE) == first
    about, rows = kept.read_bytes().split(b"\n")
    nothing = {key: {**value, "template": None} for key, value in json.loads(rows).items()}
    kept.write_bytes(about + b"\n" + json.dumps(nothing).encode())
    assert template_of(config, Slides(TEXTS * 5), None, ALONE) == first, "its checksum is not that of the file"


@pytest.mark.parametrize("template", [
    "text", {"text": "a"}, {"text": 1, "slots": {}}, {"text": "a", "slots": []}, {"text": "a", "slots": {1: ["x"]}},
    {"text": "a", "slots": {"b": [1]}}, {"text": "a", "slots": {"b": {"values": ["x"], "optional": 1}}},
    {"text": "a", "slots": {"b": {"values": ["x"], "more": []}}}, {"text": "a", "slots": {"b": {"values": None}}},
    {"text": "a", "slots": {"b": {"values": ["x"], "only_if": {"c": "x"}}}},
    {"text": "a", "slots": {"b": {"values": ["x"], "only_if": {"c": [["x"]]}}}}])
def test_a_template_of_other_types_is_refused(tmp_path, template):
    sections = {name: {} for name in ("config", "tokenizer", "prism", "data", "versions", "progress", "random_states",
                                      "model", "optimizer", "scaler")}
    write_pth(tmp_path, ["old.pth"], {"format_version": 2, **sections})
    assert Checkpoint.load(tmp_path / "old.pth").template is None
    write_pth(tmp_path, [LAST], {"format_version": 2, **sections, "template": template})
    with refused(LAST, "its template is not what a run writes"):
        Checkpoint.load(tmp_path / LAST)


def command(*args, cwd):
    return subprocess.run([sys.executable, "-m", "finetune.templates", *args], cwd=cwd, capture_output=True, text=True,
                          encoding="utf-8", env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_the_command_writes_a_file_to_edit_and_never_over_another_one(tmp_path):
    write_json(tmp_path / "labels.json", {f"s{i}": {"text": TEXTS[i % 8], "split": "train"} for i in range(40)}
               | {"test": {"text": "留作测试的文本。", "split": "test"}})
    done = command("labels.json", "-o", "template.yaml", cwd=tmp_path)
    assert done.returncode == 0 and "100% of 40 texts follow it" in done.stdout, done.stderr
    template = Template.from_file(tmp_path / "template.yaml")
    assert all(template.parse(text) for text in TEXTS) and template.slots["脉管侵犯"].values == ("有", "无")
    again = command("labels.json", "-o", "template.yaml", cwd=tmp_path)
    assert again.returncode == 2 and again.stderr.count("\n") == 1 and "already exists" in again.stderr
