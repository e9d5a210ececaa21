"""Jobs that are interrupted, damaged, resumed, run out of memory or out of disk: nothing lost, nothing mixed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
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

from finetune.common.errors import UserError
from finetune.config.flags import Parser
from finetune.inference import job
from finetune.inference.captioner import Captioner
from finetune.inference.interruption import Interrupted
from finetune.inference.options import InferenceOptions, add_inference_flags
from finetune.inference.record_file import RecordFile
from finetune.inference.run import run_inference
from tests.helpers.files import ROOT, random_tiles, refused, write_h5


@pytest.fixture(autouse=True, scope="module")
def loaded_once():
    """A model is loaded once for all jobs: they do not change it."""
    load, models = Captioner.load, {}

    def load_once(path, *more):
        key = os.path.realpath(path)
        if key not in models:
            models[key] = load(path, *more)
        return models[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Captioner, "load", load_once)
        yield


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(job, "_SLIDES", 5)


def flags_of(folder: Path, output: Path, *more: object) -> list[str]:
    return ["--checkpoint", str(folder / "run"), "--embeddings_dir", str(folder / "embeddings"), "--output", str(output),
            "--text", "未见癌。", "胃腺癌。", *map(str, more)]


def infer(flags: list[str]) -> int:
    parser = Parser()
    add_inference_flags(parser)
    return run_inference(InferenceOptions.from_flags(parser.parse_args(flags)))


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@contextlib.contextmanager
def interrupted_after(count: int, error: BaseException):
    """The job gets a signal, or another error, after so many records."""
    with pytest.MonkeyPatch.context() as patch:
        append, done = RecordFile.append, []

        def append_and_count(file, record):
            if len(done) == count:
                raise error
            append(file, record)
            done.append(record)

        patch.setattr(RecordFile, "append", append_and_count)
        yield


@pytest.mark.parametrize(("suffix", "count"), [("jsonl", 0), ("jsonl", 5), ("jsonl", 7), ("jsonl", 11), ("json", 4), ("csv", 7)])
def test_I02_a_job_that_is_interrupted_goes_on_to_the_same_bytes_and_scores(run_with_coords, tmp_path, small_batches, capsys,
                                                                        suffix, count):
    scoring = ["--labels_file", run_with_coords / "labels.json", "--nearest", 1]
    assert infer(flags_of(run_with_coords, whole := tmp_path / f"whole.{suffix}", *scoring)) == 0
    scores = capsys.readouterr().out.split("scores of ")[1]
    output = tmp_path / f"out.{suffix}"
    with interrupted_after(count, Interrupted(signal.SIGTERM)):
        assert infer(flags_of(run_with_coords, output, *scoring)) == 143
    assert "scores of" not in capsys.readouterr().out
    growing = output if suffix == "jsonl" else tmp_path / f"out.{suffix}.jsonl"
    assert len(records(growing)) == count and output.exists()
    assert infer(flags_of(run_with_coords, output, *scoring, "--resume")) == 0
    printed = capsys.readouterr().out
    assert len(re.findall(r"^s\d+  ", printed, re.MULTILINE)) == 12 - count and printed.split("scores of ")[1] == scores
    assert (tmp_path / "out.scores.json").read_bytes() == (tmp_path / "whole.scores.json").read_bytes()
    assert output.read_bytes() == whole.read_bytes()
    assert infer(flags_of(run_with_coords, output, *scoring, "--resume")) == 0  # nothing is left to do
    assert output.read_bytes() == whole.read_bytes() and not list(tmp_path.glob(".*"))


def test_I01_a_file_torn_at_any_byte_is_repaired(run_with_coords, tmp_path, small_batches):
    infer(flags_of(run_with_coords, whole := tmp_path / "whole.jsonl"))
    content, output = whole.read_bytes(), tmp_path / "out.jsonl"
    cuts = [0, 1, len(content) - 1, len(content), *random.Random(0).sample(range(len(content)), 25)]
    for cut in cuts:
        output.write_bytes(content[:cut])
        infer(flags_of(run_with_coords, output, "--resume"))
        assert output.read_bytes() == content, cut


def test_I03_what_is_in_the_file_is_kept_only_if_it_would_be_the_same_again(run_with_coords, tmp_path, log_lines):
    folder = tmp_path / "slides"
    shutil.copytree(run_with_coords / "embeddings", folder / "embeddings")
    (folder / "run").symlink_to(run_with_coords / "run")
    (folder / "embeddings" / "broken.h5").write_bytes(b"not an h5 file")
    with refused("broken", "1 of 13 slides failed"):
        infer(flags_of(folder, output := tmp_path / "out.jsonl", "--latents_cache", "null"))
    before = {record["id"]: record for record in records(output)}
    os.remove(folder / "embeddings" / "s3.h5")  # its record stays
    write_h5(folder / "embeddings" / "s5.h5", random_tiles(9, 2560, 99), key="features")  # another slide of this name
    write_h5(folder / "embeddings" / "broken.h5", random_tiles(9, 2560, 98), key="features")  # mended
    write_h5(folder / "embeddings" / "new.h5", random_tiles(9, 2560, 97), key="features")
    infer(flags_of(folder, output, "--latents_cache", "null", "--resume"))
    after = {record["id"]: record for record in records(output)}
    assert len(records(output)) == len(after) == 14 and set(after) == {*before, "new"}
    same = {name for name in before if before[name] == after[name]}
    assert same == {*before} - {"s5", "broken"} and all(record["error"] is None for record in after.values())
    assert any("10 of 13 captions are in out.jsonl already; 1 failed slides and 1 whose file" in line for line in log_lines)


@pytest.mark.parametrize(("more", "words"), [
    (["--max_length", 30], "other options"), (["--num_beams", 2], "other options"), (["--text", "another"], "other options"),
    (["--nearest", 1], "other options"), (["--abstain_below", 0.1], "other options"), (["--do_sample"], "other options"),
    (["--rerank", "true"], "other options"), (["--checkpoint", "other"], "another model")])
def test_I03_records_of_another_model_or_other_options_are_not_mixed(run_with_coords, tmp_path, more, words):
    with interrupted_after(3, Interrupted(signal.SIGINT)):
        infer(flags_of(run_with_coords, output := tmp_path / "out.jsonl"))
    content = output.read_bytes()
    flags = flags_of(run_with_coords, output, "--resume", *more)
    if more[0] == "--checkpoint":
        from finetune.checkpoints.format import Checkpoint

        changed = Checkpoint.load(run_with_coords / "run" / "best_model.pth")
        changed.model["coca.temperature"] = changed.model["coca.temperature"] + 0.01
        changed.save(tmp_path, ["other.pth"])
        flags[flags.index("other")] = str(tmp_path / "other.pth")
        flags = flags[2:]
    with refused("out.jsonl", words, "give another --output"):
        infer(flags)
    assert output.read_bytes() == content


def test_the_same_model_from_another_place_goes_on(run_with_coords, tmp_path):
    from finetune.checkpoints.hf_folder import write_folder

    infer(flags_of(run_with_coords, whole := tmp_path / "whole.jsonl"))
    with interrupted_after(3, Interrupted(signal.SIGINT)):
        infer(flags_of(run_with_coords, output := tmp_path / "out.jsonl"))
    write_folder(run_with_coords / "run", tmp_path / "run")
    shutil.copytree(run_with_coords / "embeddings", tmp_path / "embeddings")  # keeps the times of change
    with refused("out.jsonl", "other options"):  # nothing judges its slides
        infer(flags_of(tmp_path, output, "--resume", "--prism", "random-tiny"))
    shutil.copy(run_with_coords / "run" / "nearest.pt", tmp_path)
    infer(flags_of(tmp_path, output, "--resume", "--prism", "random-tiny"))
    assert [(r["id"], r["caption"], r["made_from"]) for r in records(output)] == \
        [(r["id"], r["caption"], r["made_from"]) for r in records(whole)]


def test_I06_beginning_again_over_a_part_of_the_same_job_is_refused_and_over_anything_else_is_as_ever(run_with_coords, tmp_path):
    with interrupted_after(3, Interrupted(signal.SIGINT)):
        infer(flags_of(run_with_coords, output := tmp_path / "out.jsonl"))
    with refused("out.jsonl", "holds 3 of the 12 captions of this job", "--resume"):
        infer(flags_of(run_with_coords, output))
    assert len(records(output)) == 3
    for content in (None, b"", b"someone's notes\n\xff", b'{"id": "s1", "caption": "of an older version"}\n', b"torn"):
        if content is not None:
            output.write_bytes(content)
        infer(flags_of(run_with_coords, output, "--max_length", 40))
        assert len(records(output)) == 12
    output.write_bytes(b'{"id": "s1", "caption": "t"}\nnotes\n')
    with refused("out.jsonl", "line 2 is not a record"):
        infer(flags_of(run_with_coords, output, "--resume"))
    with refused("--resume", "needs --output"):
        infer(["--checkpoint", "c", "--embeddings_dir", "d", "--resume"])


def test_I06_two_jobs_do_not_write_one_file(run_with_coords, tmp_path):
    output = tmp_path / "out.csv"
    with RecordFile(output), refused("is in use by another run", "--output"):
        infer(flags_of(run_with_coords, output))
    infer(flags_of(run_with_coords, output))


def test_I04_a_full_disk_loses_nothing(run_with_coords, tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("Linux only")
    infer(flags_of(run_with_coords, whole := tmp_path / "whole.jsonl"))
    output = tmp_path / "out.jsonl"
    full = UserError(output, "cannot be written (No space left on device)", "free some space")
    with refused("No space left"), interrupted_after(4, full):
        infer(flags_of(run_with_coords, output))
    infer(flags_of(run_with_coords, output, "--resume"))
    assert output.read_bytes() == whole.read_bytes()
    with RecordFile(tmp_path / "link.jsonl") as file:
        (tmp_path / "link.jsonl").symlink_to("/dev/full")
        file._file = open("/dev/full", "r+b")  # noqa: SIM115
        file._file.seek = lambda *_: 0
        with refused("No space left on device", "--resume"):
            file.append({"id": "a", "caption": "x" * 100_000, "error": None})


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(),
                                   RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate")])
def test_I05_out_of_memory_halves_the_batch_and_spares_the_other_slides(run_with_coords, tmp_path, monkeypatch, log_lines, error):
    infer(flags_of(run_with_coords, whole := tmp_path / "whole.jsonl", "--latents_cache", "null"))
    describe, encode, sizes = Captioner.describe_encoded, Captioner.encode, []

    def small_memory(self, ids, *args):
        sizes.append(len(ids))
        if len(ids) > 3 or "s4" in ids:
            raise error
        return describe(self, ids, *args)

    def less_memory(self, tiles):
        if np.array_equal(tiles, seventh.astype(tiles.dtype)):
            raise error
        return encode(self, tiles)

    with h5py.File(run_with_coords / "embeddings" / "s7.h5") as file:
        seventh = file["features"][()]
    monkeypatch.setattr(Captioner, "describe_encoded", small_memory)
    monkeypatch.setattr(Captioner, "encode", less_memory)
    with refused("2 of 12 slides failed"):
        infer(flags_of(run_with_coords, output := tmp_path / "out.jsonl", "--latents_cache", "null"))
    found = {record["id"]: record for record in records(output)}
    assert "s4: out of memory while it is captioned" in found["s4"]["error"]
    assert "s7.h5: out of memory while its tiles are encoded" in found["s7"]["error"]
    for record in records(whole):
        if record["id"] not in ("s4", "s7"):
            assert found[record["id"]]["caption"] == record["caption"]
            assert found[record["id"]]["confidence"] == pytest.approx(record["confidence"], abs=1e-5)
    assert max(sizes) == 11 and any("captioning 5 slides together instead of 11" in line for line in log_lines)


def test_other_errors_are_not_taken_for_out_of_memory(run_with_coords, tmp_path, monkeypatch):
    def broken(self, *args):
        raise RuntimeError("a bug")

    for name in ("describe_encoded", "encode"):
        with monkeypatch.context() as patch:
            patch.setattr(Captioner, name, broken)
            with pytest.raises(RuntimeError, match="a bug"):
                infer(flags_of(run_with_coords, tmp_path / "out.jsonl", "--latents_cache", "null"))


def encodings(monkeypatch) -> list[int]:
    """The number of tiles of each slide that is encoded from here on."""
    counted: list[int] = []
    encode = Captioner.encode
    monkeypatch.setattr(Captioner, "encode", lambda self, tiles: counted.append(len(tiles)) or encode(self, tiles))
    return counted


def test_encodings_are_kept_where_the_training_keeps_them(run_with_coords, tmp_path, monkeypatch, log_lines):
    counted, outputs = encodings(monkeypatch), []
    for cache in ("auto", "null", tmp_path / "own", tmp_path / "own"):
        infer(flags_of(run_with_coords, tmp_path / "out.jsonl", "--latents_cache", cache))
        outputs.append(records(tmp_path / "out.jsonl"))
        counted.append(-1)
    assert counted == [-1, *[20] * 12, -1, *[20] * 12, -1, -1], "the cache of the training is used"
    assert outputs[1] == outputs[2] == outputs[3]
    assert [r["caption"] for r in outputs[0]] == [r["caption"] for r in outputs[1]]
    [damaged, *_] = (tmp_path / "own").rglob("*.npy")
    damaged.write_bytes(damaged.read_bytes()[:-10])
    counted.clear()
    infer(flags_of(run_with_coords, tmp_path / "out.jsonl", "--latents_cache", tmp_path / "own"))
    infer(flags_of(run_with_coords, tmp_path / "out.jsonl", "--latents_cache", tmp_path / "own"))
    assert counted == [20] and records(tmp_path / "out.jsonl") == outputs[1]
    damaged.write_bytes(b"x" * len(damaged.read_bytes()))
    infer(flags_of(run_with_coords, tmp_path / "out.jsonl", "--latents_cache", tmp_path / "own"))
    assert counted == [20, 20] and any("it is encoded again" in line for line in log_lines)


def test_I04_a_cache_that_cannot_be_written_is_no_reason_to_stop(run_with_coords, tmp_path, monkeypatch, log_lines):
    infer(flags_of(run_with_coords, whole := tmp_path / "whole.jsonl", "--latents_cache", "null"))
    (tmp_path / "file").write_bytes(b"")
    infer(flags_of(run_with_coords, output := tmp_path / "out.jsonl", "--latents_cache", tmp_path / "file"))
    assert records(output) == records(whole) and any("encodings that are there are used, others are not kept" in line
                                                     for line in log_lines)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 5))
    infer(flags_of(run_with_coords, output := tmp_path / "out.jsonl", "--latents_cache", tmp_path / "own"))
    assert records(output) == records(whole) and not list((tmp_path / "own").rglob("*.npy"))


@pytest.mark.parametrize("more", [[], ["--num_beams", "3"], ["--do_sample", "--seed", "3"]])
def test_I08_records_do_not_depend_on_the_batch(run_with_coords, tmp_path, monkeypatch, more):
    found = []
    for size in (1, 5, 16):
        monkeypatch.setattr(job, "_SLIDES", size)
        infer(flags_of(run_with_coords, output := tmp_path / "out.jsonl", *more))
        found.append(records(output))
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert {k: v for k, v in one.items() if k in ("id", "caption", "finished", "error", "made_from")} == \
                {k: two[k] for k in ("id", "caption", "finished", "error", "made_from")}
            assert one["confidence"] == pytest.approx(two["confidence"], abs=1e-4)
            assert one["similarity"] == pytest.approx(two["similarity"], abs=1e-4)


def start(flags: list[str]) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, ROOT / "inference.py", *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, encoding="utf-8", env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.fixture
def long_job(run_with_coords, tmp_path) -> Path:
    """60 slides, for processes that are ended in the middle."""
    rng = random.Random(0)
    for i in range(60):
        write_h5(tmp_path / "embeddings" / f"t{i:02d}.h5", random_tiles(rng.randint(1, 400), 2560, i), key="features")
    (tmp_path / "run").symlink_to(run_with_coords / "run")
    return tmp_path


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_I02_a_signal_ends_a_job_with_whole_lines(long_job, number):
    process = start(flags_of(long_job, output := long_job / "out.csv", "--latents_cache", "null"))
    while not process.stdout.readline().startswith("t"):
        assert process.poll() is None
    process.send_signal(number)
    begin = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number and "Traceback" not in errors, errors
    assert f"{number.name}: " in errors and "of 60 slides are done; the same command with --resume goes on" in errors
    assert time.monotonic() - begin < 20
    done = len(records(long_job / "out.csv.jsonl"))
    assert done > 0 and len(output.read_text(encoding="utf-8-sig").splitlines()) == done + 1


def wait_for_more_lines(process, output, count):
    def num_lines():
        return output.read_bytes().count(b"\n") if output.exists() else 0

    before = num_lines()
    while process.poll() is None and num_lines() < before + count:
        time.sleep(0.005)


@pytest.mark.full
def test_I01_kills_at_random_moments_change_nothing(long_job):
    assert infer(flags_of(long_job, whole := long_job / "whole.jsonl", "--latents_cache", "null")) == 0
    moments, output, kills = random.Random(1), long_job / "out.jsonl", 0
    flags = flags_of(long_job, output, "--latents_cache", long_job / "cache", "--resume")
    for _ in range(3):  # by what is written, not by the clock: a fast machine ends the job before it is killed
        process = start(flags)
        wait_for_more_lines(process, output, moments.randint(1, 12))
        time.sleep(moments.uniform(0, 0.1))
        kills += process.poll() is None
        process.kill()
        process.communicate()
    process = start(flags)
    process.communicate(timeout=300)
    assert process.returncode == 0 and kills >= 2 and output.read_bytes() == whole.read_bytes()
    assert not list(long_job.glob("*.tmp"))


def test_I05_an_explanation_that_does_not_fit_is_one_line(run_with_coords, tmp_path, monkeypatch):
    from finetune.explanation import effect
    from finetune.inference import explain
    from finetune.inference.explain import explain_slide, open_slide

    captioner = Captioner.load(run_with_coords / "run")
    slide = open_slide(captioner, run_with_coords / "embeddings" / "s1.h5")
    whole, _ = explain_slide(captioner, slide, "胃腺癌，高分化。")
    monkeypatch.setattr(effect, "_TILES", 50)  # two versions of 20 tiles at a time
    in_parts, _ = explain_slide(captioner, slide, "胃腺癌，高分化。")
    for one, two in zip(whole["phrases"], in_parts["phrases"], strict=True):
        assert two["deletion_test"].keys() == one["deletion_test"].keys() and one["deletion_test"]["removed"]
        for name, value in one["deletion_test"].items():
            assert two["deletion_test"][name] == (value if value is None else pytest.approx(value, rel=1e-3, abs=1e-4))

    def no_memory(*_):
        raise MemoryError

    monkeypatch.setattr(explain, "attribute_tiles", no_memory)
    with refused("s1: out of memory while its 20 tiles are explained"):
        explain_slide(captioner, slide, "胃腺癌，高分化。")


def test_a_slide_that_cannot_be_read_any_more_keeps_its_record_and_is_not_scored(run_with_coords, tmp_path, small_batches,
                                                                                  monkeypatch, log_lines, capsys):
    scoring = ["--labels_file", run_with_coords / "labels.json", "--latents_cache", "null"]
    with interrupted_after(8, Interrupted(signal.SIGINT)):
        infer(flags_of(run_with_coords, output := tmp_path / "out.jsonl", *scoring))
    first = records(output)[0]["id"]
    with h5py.File(run_with_coords / "embeddings" / f"{first}.h5") as file:
        gone = file["features"][()]
    encode = Captioner.encode

    def encode_others(self, tiles):
        if np.array_equal(tiles, gone.astype(tiles.dtype)):
            raise MemoryError
        return encode(self, tiles)

    monkeypatch.setattr(Captioner, "encode", encode_others)
    infer(flags_of(run_with_coords, output, *scoring, "--resume"))
    assert len(records(output)) == 12 and all(record["error"] is None for record in records(output))
    assert "summary: " not in capsys.readouterr().out
    assert json.loads((tmp_path / "out.scores.json").read_text(encoding="utf-8"))["slides"] == 11
    assert any("1 slides that were captioned earlier cannot be read any more" in line for line in log_lines)
