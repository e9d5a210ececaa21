"""The --serve page without a browser: sizes, texts, flags. With a browser: test_browser.py."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from finetune.config.schema import Config
from finetune.inference.captioner import Captioner
from finetune.inference.explain import open_slide
from finetune.inference.model_facts import ModelFacts
from finetune.inference.nearest import judge_of
from finetune.inference.options import InferenceOptions
from finetune.inference.serve import answer, load_training_slides, make_app, parse_suffix, parse_texts
from finetune.inference.uploads import Uploads
from prism import GenerationOptions
from tests.helpers.files import ROOT, refused, write_h5

NO_MODEL = SimpleNamespace(caveats=[], checkpoint=None, config=Config(), temperature=None, form=None, judge=None, judges_captions=False)


def post(app, body: bytes, part: int = 1000, gone: bool = False) -> tuple[int, bytes]:
    """One request straight into the ASGI application, its body in parts and without a length. gone: the browser leaves."""
    sent, parts = [], [body[i:i + part] for i in range(0, len(body), part)]

    async def receive():
        if gone and not parts:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": parts.pop(0), "more_body": gone or bool(parts)}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/describe", "raw_path": b"/describe", "query_string": b"", "http_version": "1.1",
             "headers": [(b"host", b"127.0.0.1"), (b"x-prism-coca", b"1")], "scheme": "http", "root_path": ""}
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], b"".join(m.get("body", b"") for m in sent[1:])


def test_an_upload_over_the_limit_is_refused_before_it_is_read_to_its_end_and_leaves_nothing(tmp_path, monkeypatch):
    pytest.importorskip("starlette")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    app = make_app(NO_MODEL, GenerationOptions(), uploads=Uploads(5000))
    status, body = post(app, b"x" * 50_000)
    assert status == 413 and not list(tmp_path.iterdir())
    assert json.loads(body)["error"] == ["超过 5e-06 GB，请改用命令行", "is larger than 5e-06 GB: use the command line"]


def test_a_browser_that_leaves_and_a_disk_that_is_full_end_one_request_only(tmp_path, monkeypatch):
    pytest.importorskip("starlette")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    app = make_app(NO_MODEL, GenerationOptions())
    assert post(app, b"x" * 5000, gone=True)[0] == 400 and not list(tmp_path.iterdir())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("finetune.inference.uploads.open", full, raising=False)
    status, body = post(app, b"x")
    assert status == 507 and json.loads(body)["error"] == ["存不下：磁盘空间不足", "cannot be stored: no space on this disk"]


def test_a_slide_whose_numbers_overflow_is_one_line_and_the_nearest_texts_are_those_of_the_index(run_with_coords):
    path = write_h5(run_with_coords / "huge.h5", np.full((5, 2560), 1e30, np.float32))
    options = InferenceOptions(checkpoint=str(run_with_coords / "run" / "best_model.pth"))
    captioner = Captioner.load(options.checkpoint)
    training = load_training_slides(options, captioner)
    with refused("its tiles make the model overflow"):
        answer(captioner, path, [], GenerationOptions(), training)
    path = run_with_coords / "embeddings" / "s5.h5"
    records = captioner.describe([open_slide(captioner, path)], [], GenerationOptions(), vectors := {})
    index = torch.load(run_with_coords / "run" / "nearest.pt", weights_only=True)
    cosines = (index["embeddings"] @ torch.from_numpy(vectors["s5"].contrastive[0])).tolist()
    found = answer(captioner, path, [], GenerationOptions(), training)
    assert found["caption"] == records[0]["caption"] and len(found["nearest"]) == 5
    assert [cosine for _, cosine in found["nearest"]] == pytest.approx(sorted(cosines, reverse=True)[:5])
    best = max(range(len(cosines)), key=cosines.__getitem__)
    assert found["nearest"][0][0] == f"{index['ids'][best]}: {index['texts'][best][0]}"


def test_an_unusual_slide_has_its_reason_in_both_languages(run_with_coords):
    options = InferenceOptions(checkpoint=str(run_with_coords / "run" / "best_model.pth"))
    captioner = Captioner.load(options.checkpoint)
    training = load_training_slides(options, captioner)
    captioner.judge = judge_of(captioner, training)
    few = write_h5(run_with_coords / "few.h5", np.random.default_rng(0).standard_normal((3, 2560)).astype("f4"))
    found = answer(captioner, few, [], GenerationOptions(), training)
    assert (found["unusual"], found["confidence"]) == (True, 0.0) and found["unusual_reason"].startswith("fewer tiles than any")
    assert found["unusual_words"][0].startswith("图块比任何训练切片都少（3 个") and found["unusual_words"][1] == found["unusual_reason"]
    usual = answer(captioner, run_with_coords / "embeddings" / "s5.h5", [], GenerationOptions(), training)
    assert (usual["unusual"], usual["unusual_reason"]) == (False, None) and usual["confidence"] > 0
    json.dumps([found, usual], allow_nan=False)


def test_without_an_index_the_page_shows_none_and_asking_for_it_is_refused(run_with_coords, tmp_path, log_lines):
    shutil.copy(run_with_coords / "run" / "best_model.pth", tmp_path)
    options = InferenceOptions(checkpoint=str(tmp_path / "best_model.pth"))
    captioner = Captioner.load(options.checkpoint)
    assert load_training_slides(options, captioner) is None and "no nearest training texts: no nearest.pt" in log_lines[-1]
    options.nearest = 3
    with refused("--nearest", "no nearest.pt"):
        load_training_slides(options, captioner)


@pytest.mark.parametrize("header", ["", "{}", "[1]", "[[]]", "[" * 10_000, '["' + "x" * 201 + '"]', str(["x"] * 41).replace("'", '"')])
def test_texts_that_are_none_are_refused(header):
    with refused("texts"):
        parse_texts(header)


def test_texts_lose_blanks_repeats_and_control_characters():
    assert parse_texts('[" a ", "", "a", "b\\u202e"]') == ["a", "b\\u202e"]


def test_without_its_libraries_it_names_the_pip_command():
    code = ("import sys; sys.modules['uvicorn'] = None; sys.argv = ['inference.py', '--checkpoint', 'c.pth', '--serve'];"
            "import inference; from finetune.common.errors import run_script; run_script(inference.main)")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and 'pip install ".[serve]"' in done.stderr


@pytest.mark.parametrize("suffix", ["", ".exe", ".h5/../../x", "h5", ".h5\u202e"])
def test_a_file_of_another_name_is_refused(suffix):
    with refused("upload", "its name ends in"):
        parse_suffix(suffix)
    assert parse_suffix(".H5") == ".h5" and [parse_suffix(suffix) for suffix in (".pt", ".npy", ".npz")] == [".pt", ".npy", ".npz"]


def test_a_page_names_its_model_without_the_folders_of_this_disk(run_with_coords):
    facts = ModelFacts.of(Captioner.load(run_with_coords / "run" / "best_model.pth"))
    assert (facts.name, facts.epoch, facts.prism) == ("run/best_model.pth", 25, "random-tiny")
    assert facts.slides == 11 and len(facts.banners) == 2, "random weights, and both texts of the data stand in training"
    captioner = Captioner.load(run_with_coords / "run" / "best_model.pth")
    captioner.checkpoint.prism["source"] = "/home/somebody/models/Prism/"
    assert ModelFacts.of(captioner).prism == "Prism"


def test_a_page_says_calibrated_only_where_the_validation_slides_showed_it_and_why_a_confidence_is_0(run_with_coords):
    options = InferenceOptions(checkpoint=str(run_with_coords / "run" / "best_model.pth"))
    captioner = Captioner.load(options.checkpoint)
    said = []
    for temperature in (None, 1.0, 1.41):
        captioner.temperature = temperature
        said.append(ModelFacts.of(captioner).confidence)
    assert "not calibrated" in said[0][1] and "did not show" in said[1][1] and "calibrated on the validation slides" in said[2][1]
    assert "calibrated" not in said[1][1] and "已在验证集上校准" not in said[1][0]
    assert all("；异常切片为 0" in chinese and "; 0 for an unusual slide" in english for chinese, english in said)
    captioner.judge = replace(judge_of(captioner, load_training_slides(options, captioner)), confidence=None)
    chinese, english = ModelFacts.of(captioner).confidence
    assert "；异常切片为 0" in chinese and "; 0 for an unusual slide" in english and "share of words" in english
    captioner.form = SimpleNamespace()  # only its presence counts
    assert "all fields" in ModelFacts.of(captioner).confidence[1]
