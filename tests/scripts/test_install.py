"""What `pip install .` and `make setup` bring: the wheel, the command prism-coca, the lock files, the Makefile."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import prism_coca
from tests.helpers.files import ROOT, refused
from tests.helpers.scripts import TINY, flags

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]
PACKAGES = ["coca_pytorch", "finetune", "prism"]


# --- what is in the wheel --------------------------------------------------------------------------------------------

def test_every_file_of_a_package_that_is_no_code_is_package_data():
    for name in PACKAGES:
        data = {p for pattern in SETUPTOOLS["package-data"].get(name, ()) for p in (ROOT / name).glob(pattern)}
        others = {p for p in (ROOT / name).rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
        assert others == data


def test_every_folder_of_a_package_is_one():
    folders = {p.parent for name in PACKAGES for p in (ROOT / name).rglob("*.py")}
    assert all((folder / "__init__.py").exists() for folder in folders)


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """What pip installs of a copy of the repository, in a folder of its own."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("target")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", *(f"{m}.py" for m in SETUPTOOLS["py-modules"])):
        shutil.copy(ROOT / name, source)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
                    "--target", str(target), str(source)], check=True, capture_output=True, timeout=300)
    return target


def run_installed(installed: Path, cwd: Path, *args: object) -> subprocess.CompletedProcess:
    return subprocess.run([installed / "bin" / "prism-coca", *map(str, args)], cwd=cwd, capture_output=True, text=True,
                          encoding="utf-8", timeout=300,
                          env={**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"})


@pytest.mark.full
@pytest.mark.skipif(os.name == "nt", reason="there the command is Scripts/prism-coca.exe")
def test_the_installed_command_trains_and_captions_far_from_the_clone(installed, data, tmp_path):
    where = "import finetune, prism, coca_pytorch; print(finetune.__file__, prism.__file__, coca_pytorch.__file__)"
    files = subprocess.run([sys.executable, "-c", where], cwd=tmp_path, capture_output=True, text=True, check=True,
                           env={**os.environ, "PYTHONPATH": str(installed)}).stdout.split()
    assert all(Path(f).is_relative_to(installed) for f in files)

    (tmp_path / "my_loss.py").write_text("def extra(inputs):\n    return {'extra': inputs.logits.mean() * 0}\n", encoding="utf-8")
    trained = run_installed(installed, tmp_path, "train", *flags(data, "--epochs", 1), "--set", *TINY, "training.loss=my_loss:extra")
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "run" / "report.html").exists() and '"extra"' in (tmp_path / "run" / "metrics.jsonl").read_text()
    captioned = run_installed(installed, tmp_path, "caption", "--checkpoint", "run", "--embeddings_file", data / "embeddings" / "s00.h5")
    assert captioned.returncode == 0 and "s00" in captioned.stdout, captioned.stderr
    refused_labels = run_installed(installed, tmp_path, "labels", "missing.csv", "-o", "labels.json")
    assert refused_labels.returncode == 2 and refused_labels.stderr.startswith("error: "), refused_labels.stderr


# --- the command -----------------------------------------------------------------------------------------------------

def test_every_script_and_tool_is_a_command_that_can_be_run():
    tools = {p.stem for p in (ROOT / "finetune").glob("*.py")} - {"__init__"}
    tools |= {f"{p.parent.name}.__main__" for p in (ROOT / "finetune").glob("*/__main__.py")}
    assert prism_coca.modules()["templates"] == "finetune.templates.__main__"
    assert set(prism_coca.modules().values()) == {"train_finetune", "train_with_config", "inference"} | {f"finetune.{t}" for t in tools}
    for module in prism_coca.modules().values():
        assert callable(importlib.import_module(module).main), module


def test_help_names_every_command_with_what_it_does(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["prism-coca", "--help"])
    assert prism_coca.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == list(prism_coca.modules())
    assert "  caption       Caption and score slides" in lines and all(len(line.split()) > 2 for line in lines[2:])


def test_the_command_hands_over_to_the_script_under_its_own_name(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["prism-coca", "train-config", "--help"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit):
        prism_coca.main()
    assert capsys.readouterr().out.startswith("usage: prism-coca train-config [-h] [--config CONFIG]")


def test_a_command_that_does_not_exist_is_an_error_with_those_that_do(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["prism-coca", "infer"])
    with refused("prism-coca", "no command 'infer'", "train, train-config, caption"):
        prism_coca.main()


# --- the lock files --------------------------------------------------------------------------------------------------

def pins(name: str) -> dict[str, tuple[str, int]]:
    """{package: (version, number of its hashes)} of a lock file."""
    text = re.sub(r"^#.*\n", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = {}
    for entry in re.split(r"\n(?=\S)", text.strip()):
        head, *hashes = entry.split(" \\\n")
        requirement = Requirement(head)
        (pin,) = requirement.specifier
        assert pin.operator == "==" and all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}", h) for h in hashes), entry
        found[re.sub(r"[-_.]+", "-", requirement.name).lower()] = (pin.version, len(hashes))
    return found


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-cuda.lock"])
def test_every_line_of_a_lock_file_is_one_version_with_hashes(name):
    assert all(count > 0 for _, count in pins(name).values()) and len(pins(name)) > 15


def test_the_lock_file_has_all_that_the_project_and_its_tests_ask_for():
    locked = pins("requirements.lock")
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"], *(line for name in ("test", "serve", "hf", "biogpt", "lora", "tensorboard") for line in extras[name])]
    for requirement in map(Requirement, [*wanted, *PROJECT["build-system"]["requires"]]):
        pinned, _ = locked[re.sub(r"[-_.]+", "-", requirement.name).lower()]
        assert requirement.specifier.contains(pinned), requirement


def test_torch_may_come_from_pypi_or_without_cuda_from_its_own_index():
    """One wheel for each system and Python that PyPI has it for, and of the builds without CUDA for Linux."""
    assert pins("requirements.lock")["torch"][1] >= 28
    this = "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"  # 2.13.0+cpu, Linux x86-64, Python 3.11
    assert this in (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert not set(pins("requirements.lock")) & set(pins("requirements-cuda.lock"))


# --- make setup ------------------------------------------------------------------------------------------------------

FAKE = """#!/bin/sh
echo "$PIP_INDEX_URL $*" >> "$CALLS"
case "$*" in
"-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
*"show --quiet torch") exit $TORCH_IS_MISSING ;;
*" download "*) mkdir -p venv/torch && touch venv/torch/torch-2.13.0.whl ;;
*" hash "*) echo x; echo "--hash=sha256:$DOWNLOADED" ;;
*"show torch") echo "Requires: filelock, $TORCH_NEEDS" ;;
esac
"""


def make_setup(tmp_path: Path, needs: str = "jinja2", missing: int = 1, downloaded: str = "", *args: str) -> tuple[int, list[str]]:
    """(exit code, what a `python3` that only notes it was asked to do) of `make setup`."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").write_text(FAKE, encoding="utf-8")
    (tmp_path / "bin" / "python3").chmod(0o755)
    for name in ("Makefile", "requirements.lock", "requirements-cuda.lock"):
        shutil.copy(ROOT / name, tmp_path)
    known = re.search(r"^torch==.*\n +--hash=sha256:(\w+)", (ROOT / "requirements.lock").read_text(encoding="utf-8"), re.MULTILINE)
    env = {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}", "CALLS": str(tmp_path / "calls"), "TORCH_NEEDS": needs,
           "TORCH_IS_MISSING": str(missing), "DOWNLOADED": downloaded or known[1]}
    done = subprocess.run(["make", "setup", "VENV=venv", *args], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode or "error" not in done.stdout + done.stderr, "a good installation shows no error, nor its recipe"
    assert "installing into venv (about 200 MB" in done.stdout
    return done.returncode, (tmp_path / "calls").read_text().splitlines()


needs_make = pytest.mark.skipif(not shutil.which("make"), reason="no make")


@needs_make
def test_make_setup_takes_a_mirror_of_pypi(tmp_path):
    code, calls = make_setup(tmp_path, "jinja2", 1, "", "PIP_INDEX_URL=https://mirror.example/simple")
    assert code == 0 and all(call.startswith("https://mirror.example/simple ") for call in calls)
    installs = [call.split(" install ")[1] for call in calls if " install " in call]
    assert installs == ["--quiet --no-deps venv/torch/torch-2.13.0.whl",
                        "--quiet --no-deps --require-hashes --requirement requirements.lock"]


@needs_make
def test_make_setup_brings_cuda_where_torch_asks_for_it(tmp_path):
    code, calls = make_setup(tmp_path, "nvidia-cudnn-cu13, triton")
    assert code == 0 and calls[-1].endswith("--no-deps --require-hashes --requirement requirements-cuda.lock")


@needs_make
def test_make_setup_leaves_a_torch_alone_that_is_there(tmp_path):
    code, calls = make_setup(tmp_path, "jinja2", 0)
    assert code == 0 and not any(" download " in call for call in calls)


@needs_make
def test_make_setup_refuses_a_torch_of_other_bytes(tmp_path):
    code, calls = make_setup(tmp_path, "jinja2", 1, "0" * 64)
    assert code != 0 and not any(" install " in call for call in calls)


def test_this_environment_has_the_versions_of_the_lock_file():
    if not (ROOT / ".venv" / ".done").exists() or Path(sys.prefix) != ROOT / ".venv":
        pytest.skip("not the environment of make setup")
    assert {name: version(name).partition("+")[0] for name in pins("requirements.lock")} == \
        {name: pinned for name, (pinned, _) in pins("requirements.lock").items()}
