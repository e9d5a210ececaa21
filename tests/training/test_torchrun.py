"""Whole runs under torchrun: equal to one process, resumable, and ended as a whole when one process fails."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from finetune.demo import make_slides
from finetune.training.resume import newest_good
from tests.helpers.files import ROOT
from tests.helpers.scripts import TINY, assert_equal_state
from tests.helpers.training import free_port

pytestmark = [pytest.mark.full, pytest.mark.skipif(os.name != "posix", reason="needs signals")]

EPOCHS = 20
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """19 slides: 15 to train on, hence an uneven last step, and 4 to validate."""
    folder = tmp_path_factory.mktemp("data")
    make_slides(folder, 19)
    return folder


def command(data: Path, processes: int, *more: str) -> list[str]:
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", str(free_port())]
    return [sys.executable, *(launch if processes > 1 else []), str(ROOT / "train_finetune.py"), "--prism", "random-tiny",
            "--embeddings_dir", str(data / "embeddings"), "--labels_file", str(data / "labels.json"), "--val_split", "0.2",
            "--lr", "1e-3", "--output_dir", "run", "--resume", "auto", "--batch_size", "2", "--epochs", str(EPOCHS),
            "--save_every", "1",
            "--set", *TINY, "training.precision=fp32", "model.probe_tokens=2",
            f"data.latents_cache={data}/latents", *more]


def train(data: Path, folder: Path, processes: int, *more: str) -> str:
    """Run to the end; returns what was written to stderr."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(command(data, processes, *more), cwd=folder, env=ENV, capture_output=True, text=True,
                          encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stderr


@contextmanager
def disturbed(data: Path, folder: Path, disturb: Callable[[subprocess.Popen], None], *more: str) -> Iterator[str]:
    """The stderr of a two-process run that was interrupted after some epochs and failed."""
    folder.mkdir()
    with subprocess.Popen(command(data, 2, *more), cwd=folder, env=ENV, stderr=subprocess.PIPE, text=True,
                          encoding="utf-8") as process:
        end = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < end and len(rows(folder)) < 2:
            time.sleep(0.01)
        disturb(process)
        begin = time.monotonic()
        written = process.communicate(timeout=60)[1]
        assert time.monotonic() - begin < 30 and process.returncode != 0, written
    assert 2 <= len(rows(folder)) < EPOCHS, "the run was over before it could be disturbed"
    yield written


def ranks_of(process: subprocess.Popen) -> list[int]:
    """Process ids of torchrun's children that train."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="ascii").split()
    return [int(c) for c in children if b"train_finetune" in Path(f"/proc/{c}/cmdline").read_bytes()]


def rows(folder: Path) -> list[dict[str, float]]:
    path = folder / "run" / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def losses(folder: Path) -> list[float]:
    return [v for row in rows(folder) for k, v in row.items() if k.endswith("loss") or k == "negatives"]


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    """The folder of an uninterrupted run of two processes."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    written = train(data, folder, 2)
    assert written.count("15 training, 4 validation") == 1, "rank 0 alone prints"
    assert " steps of 4 slides" in written and ", 2 processes" in written
    assert "effective batch 4" in (folder / "logs" / "training.log").read_text(encoding="utf-8")
    return folder


@pytest.mark.slow  # each step of it: test_distributed.py; a run that one process ends: the signal's test below
def test_two_processes_train_as_one_with_the_whole_batch(data, whole):
    folder = whole.parent / "one"
    train(data, folder, 1, "training.batch_size=4")
    assert losses(folder)[:56] == pytest.approx(losses(whole)[:56], rel=1e-4), "8 epochs"
    assert len(losses(folder)) == len(losses(whole)) == 7 * EPOCHS


def test_R05_a_killed_rank_ends_all_and_the_run_resumes_bit_equal(data, whole):
    folder = whole.parent / "killed"
    with disturbed(data, folder, lambda p: os.kill(ranks_of(p)[1], signal.SIGKILL)) as written:
        assert written.count("error: torchrun: another process of this run is gone") == 1
    (folder / "run" / "last_model.pth").unlink()  # lost, too: then it goes on from the newest that is kept
    kept = newest_good(folder / "run").path.name
    assert f"resuming from {kept} instead" in train(data, folder, 2)
    for name in ("last_model.pth", "best_model.pth"):
        assert_equal_state(whole / "run" / name, folder / "run" / name)
    assert (folder / "run" / "metrics.jsonl").read_bytes() == (whole / "run" / "metrics.jsonl").read_bytes()


def test_a_signal_to_torchrun_saves_and_another_number_of_processes_can_resume(data, whole):
    folder = whole.parent / "terminated"
    with disturbed(data, folder, lambda p: p.send_signal(signal.SIGTERM)) as written:
        assert "stopped by SIGTERM after step" in written and "Traceback" not in written.split("stopped by")[0]
        progress = torch.load(folder / "run" / "last_model.pth", weights_only=True)["progress"]
        assert f"after step {progress['step']};" in written
    written = train(data, folder, 1)
    assert "the run began with 2 processes: its effective batch is kept" in written and "processes was 2, now 1" in written
    assert losses(folder)[:56] == pytest.approx(losses(whole)[:56], rel=1e-4)
    assert rows(folder)[-1]["step"] == rows(whole)[-1]["step"]


def test_R05_an_error_on_one_rank_ends_all_with_its_message(data, whole, tmp_path):
    """A slide that vanishes while the run reads its tiles in each epoch: the rank that needs it fails."""
    own = tmp_path / "data"
    make_slides(own, 19)

    def vanish(_: subprocess.Popen) -> None:
        for path in sorted((own / "embeddings").glob("*.h5"))[:8]:
            path.unlink()

    with disturbed(own, tmp_path / "failed", vanish, "data.latents_cache=null", "model.probe_tokens=0") as written:
        errors = [line for line in written.splitlines() if line.startswith("error:")]
        assert len(errors) == 1 and ".h5" in errors[0], written


@pytest.mark.parametrize(("local_rank", "lines"), [("0", 1), ("1", 0)])
def test_an_error_before_the_processes_connect_is_reported_once_per_machine(data, tmp_path, local_rank, lines):
    env = {**ENV, "RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": local_rank}
    done = subprocess.run(command(data, 1, "training.epochz=1"), cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("error: --set: unknown key in section training: epochz") == lines
    assert len(done.stderr.splitlines()) == lines


def test_check_reports_once(data, tmp_path):
    (tmp_path / "config.yaml").write_text(f"data:\n  embeddings_dir: {data}/embeddings\n  labels_file: {data}/labels.json\n",
                                          encoding="utf-8")
    launch = command(data, 2)[1:command(data, 2).index(str(ROOT / "train_finetune.py"))]
    done = subprocess.run([sys.executable, *launch, str(ROOT / "train_with_config.py"), "--config", "config.yaml", "--check"],
                          cwd=tmp_path, env=ENV, capture_output=True, text=True, encoding="utf-8", timeout=60)
    assert done.returncode == 0 and done.stderr.count("all files are good") == 1, done.stderr
    assert done.stderr.count("different texts") == 2, done.stderr  # of training and of validation


def test_the_slurm_example_is_a_script_that_bash_can_read():
    script = ROOT / "examples" / "slurm.sbatch"
    subprocess.run(["bash", "-n", script], check=True)
    flags = set(re.findall(r"--[a-z][\w-]*", script.read_text(encoding="utf-8").split("torchrun")[-1]))
    offered = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--help"], capture_output=True, text=True).stdout
    assert all(flag in offered for flag in flags - {"--config", "--resume"}), flags


@pytest.fixture
def two_hosts() -> Iterator[list[str]]:
    """Names of two network namespaces, joined by one cable: each is a host with an address of its own."""
    hosts, links = ([f"{kind}{os.getpid()}{side}" for side in "ab"] for kind in ("pc", "v"))
    setup = [["ip", "netns", "add", host] for host in hosts]
    setup += [["ip", "link", "add", links[0], "type", "veth", "peer", "name", links[1]]]
    for number, (host, link) in enumerate(zip(hosts, links, strict=True), start=1):
        setup += [["ip", "link", "set", link, "netns", host, "name", "cable"],
                  ["ip", "-n", host, "addr", "add", f"10.77.0.{number}/24", "dev", "cable"],
                  ["ip", "-n", host, "link", "set", "cable", "up"], ["ip", "-n", host, "link", "set", "lo", "up"]]
    try:
        for step in setup:
            try:
                done = subprocess.run(step, capture_output=True, text=True)
            except FileNotFoundError:
                pytest.skip("no `ip` here")
            if done.returncode:
                pytest.skip(f"this machine forbids network namespaces: {' '.join(step)}: {done.stderr.strip()}")
        yield hosts
    finally:
        for host in hosts:
            subprocess.run(["ip", "netns", "del", host], capture_output=True)


def test_two_hosts_train_as_two_processes_of_one(data, whole, two_hosts):
    """Two torchruns in network namespaces of their own, sharing the disk."""
    folder = whole.parent / "hosts"
    folder.mkdir()
    own = f"data.latents_cache={folder}/latents"  # filled by both
    script = command(data, 1, own)[1:]
    launch = ["--nnodes", "2", "--nproc_per_node", "1", "--master_addr", "10.77.0.1", "--master_port", "29511"]
    hosts = [subprocess.Popen(["ip", "netns", "exec", host, sys.executable, "-m", "torch.distributed.run", *launch,
                               "--node_rank", str(rank), *script], cwd=folder, stderr=subprocess.PIPE, text=True,
                              env={**ENV, "GLOO_SOCKET_IFNAME": "cable"}) for rank, host in enumerate(two_hosts)]
    written = [host.communicate(timeout=120)[1] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], written
    assert losses(folder) == losses(whole)
    assert len(list((folder / "latents").rglob("*.npy"))) == 19 + 15 * 7, "and seven views of each training slide"
