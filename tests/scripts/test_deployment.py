"""Dockerfile and Slurm script: run here with stand-ins for docker's folder, pip, srun and scontrol."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import signal
import subprocess
import time
import tomllib
from pathlib import Path

import pytest

from tests.helpers.files import ROOT

DOCKERFILE = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE))
STEPS = [(words[0], words[2]) for line in DOCKERFILE.splitlines() if line.strip() and (words := line.partition(" "))]
IGNORED = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
posix = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell and signals")


def values_of(instruction: str) -> list[str]:
    return [value for name, value in STEPS if name == instruction]


# --- Docker ----------------------------------------------------------------------------------------------------------

def goes_to_docker(path: str) -> bool:
    """By the rules of .dockerignore: the last pattern that matches the path or a folder above it decides."""
    parents = [path, *(str(p) for p in Path(path).parents if str(p) != ".")]
    sent = True
    for line in (line for line in IGNORED if line and not line.startswith("#")):
        pattern = line.removeprefix("!")
        if any(fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(name, pattern.removeprefix("**/")) for name in parents):
            sent = line.startswith("!")
    return sent


def test_the_image_gets_every_file_that_is_installed_and_nothing_else():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    copied = [name for value in values_of("COPY") for name in value.split()[:-1]]
    assert {f"{name}.py" for name in setuptools["py-modules"]} <= set(copied)
    assert {"coca_pytorch", "finetune", "prism", "requirements.lock", "requirements-cuda.lock", "pyproject.toml"} <= set(copied)
    assert all((ROOT / name).exists() and goes_to_docker(name) for name in copied)
    assert goes_to_docker("finetune/pages/templates/page.css")
    for private in ("data/labels.json", "checkpoints/best_model.pth", ".git/config", "labels.json", "my_losses.py", ".venv/bin/python",
                    "tests/conftest.py", "demo/labels.json", "finetune/__pycache__"):
        assert not goes_to_docker(private), private


def test_the_image_runs_the_command_as_a_user_without_rights():
    assert values_of("FROM") == ["python:3.11-slim"] and values_of("USER")[-1] != "root" and values_of("ENTRYPOINT") == ['["prism-coca"]']
    order = [name for name, _ in STEPS]
    assert order.index("USER") > max(i for i, name in enumerate(order) if name == "RUN")


@posix
@pytest.mark.parametrize(("torch", "installed"), [
    ("cpu", "--no-deps --require-hashes --extra-index-url https://download.pytorch.org/whl/cpu -r requirements.lock"),
    ("cuda", "--no-deps --require-hashes -r requirements.lock -r requirements-cuda.lock"),
    ("rocm", None),
])
def test_the_build_argument_chooses_the_build_of_torch(tmp_path, torch, installed):
    (tmp_path / "python").write_text('#!/bin/sh\necho "$@" >> calls\nmkdir -p build x.egg-info\n', encoding="utf-8")
    (tmp_path / "python").chmod(0o755)
    arguments = dict(value.partition("=")[::2] for value in values_of("ARG")) | {"TORCH": torch}
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **arguments}
    runs = [run for run in values_of("RUN") if "useradd" not in run]
    codes = [subprocess.run(["sh", "-c", run], cwd=tmp_path, env=env, capture_output=True).returncode for run in runs]
    if installed is None:
        assert codes[0] == 2
        return
    assert codes == [0, 0]
    assert (tmp_path / "calls").read_text().splitlines() == [f"-m pip install {installed}", "-m pip install --no-deps --no-build-isolation ."]
    assert not (tmp_path / "build").exists()


def test_every_argument_of_a_build_that_is_named_exists():
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8") + (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    named = set(re.findall(r"--build-arg (\w+)=", text))
    assert {"TORCH", "PIP_INDEX_URL"} <= named <= {value.partition("=")[0] for value in values_of("ARG")}


# --- Slurm -----------------------------------------------------------------------------------------------------------

SRUN = """#!/bin/bash
echo "$@" > srun.args
trap 'echo saved >> log; sleep 0.3; exit 143' TERM
touch started
for _ in $(seq {tenths}); do sleep 0.1; done
exit {code}
"""


def start(tmp_path: Path, code: int, tenths: int) -> subprocess.Popen:
    """The script of Slurm's example; its `srun` works for some tenths of a second unless a signal ends it."""
    tools = {"srun": SRUN.format(code=code, tenths=tenths), "scontrol": '#!/bin/sh\necho "$@" >> scontrol.args\necho node1\n'}
    for name, text in tools.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "77", "SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "node[1-2]"}
    return subprocess.Popen(["bash", ROOT / "examples" / "slurm.sbatch", "my.yaml"], cwd=tmp_path, env=env,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def requeued(tmp_path: Path) -> int:
    return (tmp_path / "scontrol.args").read_text().splitlines().count("requeue 77")


@posix
def test_a_job_whose_time_is_up_saves_and_is_queued_again(tmp_path):
    job = start(tmp_path, 0, 300)
    while not (tmp_path / "started").exists():
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)
    output = job.communicate(timeout=20)[0]
    assert job.returncode == 143 and (tmp_path / "log").read_text() == "saved\n" and requeued(tmp_path) == 1, output
    assert "--resume auto" in (tmp_path / "srun.args").read_text() and "--config my.yaml" in (tmp_path / "srun.args").read_text()


@posix
@pytest.mark.parametrize("code", [0, 2])
def test_a_job_that_ends_by_itself_is_not_queued_again(tmp_path, code):
    job = start(tmp_path, code, 1)
    output = job.communicate(timeout=20)[0]
    assert job.returncode == code and requeued(tmp_path) == 0, output


def test_the_options_of_the_job_ask_for_a_signal_to_the_script_and_keep_the_log():
    options = re.findall(r"^#SBATCH --(\S+?)(?:=(\S+))?$", (ROOT / "examples" / "slurm.sbatch").read_text(encoding="utf-8"), re.MULTILINE)
    found = dict(options)
    assert found["signal"].startswith("B:TERM@") and int(found["signal"].partition("@")[2]) >= 120
    assert found["open-mode"] == "append" and "requeue" in found
    assert shutil.which("bash") is None or subprocess.run(["bash", "-n", ROOT / "examples" / "slurm.sbatch"]).returncode == 0
