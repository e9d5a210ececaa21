"""python -m finetune.doctor: what it finds, and that it runs where what it looks at is missing or broken."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from finetune.checkup import machine, optional, torch_build
from finetune.checkup.findings import ERROR, NOTE, OK, WARNING
from finetune.checkup.run import run_checks
from finetune.config.schema import Config, apply_overrides
from tests.helpers.files import ROOT
from tests.helpers.prism import play_hub, put
from tests.parity.prism_weights import small_state

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PRISM_TINY = ["prism.weights=random-tiny"]


def run_doctor(*args: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "finetune.doctor", *args], cwd=ROOT, capture_output=True, text=True,
                          encoding="utf-8", timeout=120, env={**os.environ, **env})


def found(text: str, subject: str) -> tuple[str, str]:
    """(status, the rest of the line and its fix) of a subject in what the doctor printed."""
    match = re.search(rf"^(\S+) +{re.escape(subject)}  +(.*(?:\n +->.*)?)", text, re.MULTILINE)
    assert match, f"{subject} is not in {text}"
    return match[1], match[2]


# --- missing and broken libraries ------------------------------------------------------------------------------------

NOT_THERE = "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')"
BROKEN = "raise OSError('libcudart.so.13: cannot open shared object file')"


@pytest.mark.parametrize(("code", "words"), [(NOT_THERE, "not installed"), (BROKEN, "libcudart.so.13: cannot open shared object file")])
def test_it_names_libraries_that_are_missing_or_broken_and_goes_on(tmp_path, code, words):
    for module, text in (("torch", code), ("yaml", "raise ImportError('DLL load failed')")):
        (tmp_path / module).mkdir()
        (tmp_path / module / "__init__.py").write_text(text, encoding="utf-8")
    done = run_doctor("--config", "config.yaml", PYTHONPATH=str(tmp_path))
    status, text = found(done.stdout, "torch")
    assert done.returncode == 2 and status == "error" and words in text and "requirements.lock" in text, done.stderr
    assert "yaml: cannot be imported (ImportError: DLL load failed)" in found(done.stdout, "packages")[1]
    assert found(done.stdout, "models and data")[0] == "-" and found(done.stdout, "memory")[0] == "ok"
    assert "PyYAML" in found(done.stdout, "config")[1] and "Traceback" not in done.stderr
    assert done.stdout.splitlines()[-1].startswith("2 errors, ")


def test_a_package_that_is_missing_is_told_from_one_that_misses_another(tmp_path, monkeypatch):
    (tmp_path / "needy.py").write_text("import not_there_at_all\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    finding = machine.check_packages(["json", "needy", "nowhere_to_be_found"])
    assert finding.status == ERROR and "json" not in finding.text
    assert finding.text == "needy: needs not_there_at_all, which is not installed; nowhere_to_be_found: not installed"


def test_the_packages_it_tries_are_those_of_pyproject():
    modules = importlib.metadata.packages_distributions()
    names = {re.split(r"[=<>]", line)[0].lower() for line in PROJECT["dependencies"]} - {"torch"}
    assert {modules[module][0].lower().replace("_", "-") for module in machine.REQUIRED} == names


def test_every_optional_package_of_pyproject_is_looked_at():
    extras = {name: lines for name, lines in PROJECT["optional-dependencies"].items() if name not in ("test", "notebook")}
    named = {re.split(r"[\[=<>]", line)[0] for lines in extras.values() for line in lines}
    assert named == {package.module for package in optional.OPTIONAL} - {"swanboard"}


@pytest.mark.parametrize(("settings", "needed"), [
    ([], set()),
    (["data.tokenizer=hf:x"], {"transformers"}),
    (["model.decoder=hf:x", "model.lora_rank=8"], {"transformers", "peft"}),
    (["model.decoder=prism"], {"sacremoses"}),
    (["model.decoder=ms:owner/name"], {"transformers", "modelscope"}),
    (["prism.weights=ms:owner/name"], {"modelscope"}),
    (["training.report_to=swanlab"], {"swanlab", "swanboard"}),
    (["training.report_to=[wandb, tensorboard]"], {"wandb", "tensorboard"}),
])
def test_an_optional_package_is_an_error_only_where_the_config_needs_it(settings, needed, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(optional, "version", missing)
    findings = optional.check_optional(apply_overrides(Config(), settings))
    assert {f.subject for f in findings if f.status == ERROR} == needed
    assert {f.status for f in findings} <= {ERROR, NOTE} and all("python -m pip install " in f.fix for f in findings)


# --- GPU and driver --------------------------------------------------------------------------------------------------

SMI = """#!/bin/sh
case "$*" in
*query-gpu*) echo "NVIDIA A100-SXM4-40GB, 535.104.05"; echo "NVIDIA A100-SXM4-40GB, 535.104.05" ;;
*) echo "| NVIDIA-SMI 535.104.05   Driver Version: 535.104.05   CUDA Version: 12.2     |" ;;
esac
"""


def test_the_driver_is_what_nvidia_smi_says(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert torch_build.read_driver() is None
    (tmp_path / "nvidia-smi").write_text(SMI, encoding="utf-8")
    (tmp_path / "nvidia-smi").chmod(0o755)
    driver = torch_build.read_driver()
    assert driver == torch_build.Driver("535.104.05", "12.2", ("NVIDIA A100-SXM4-40GB",) * 2)
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n", encoding="utf-8")
    assert torch_build.read_driver() is None


def fake_torch(built: str | None, gpus: int = 0, error: str | None = None) -> SimpleNamespace:
    def ones(count, device):
        if error:
            raise RuntimeError(error)
        return [1.0] * count

    cuda = SimpleNamespace(is_available=lambda: gpus > 0, device_count=lambda: gpus, get_device_name=lambda n: "A100",
                           mem_get_info=lambda n: (30e9, 40e9))
    return SimpleNamespace(version=SimpleNamespace(cuda=built), cuda=cuda, ones=lambda n, device: SimpleNamespace(sum=lambda: sum(ones(n, device))))


DRIVER = torch_build.Driver("535.104.05", "12.2", ("A100",))


@pytest.mark.parametrize(("torch", "driver", "device", "status", "words"), [
    (fake_torch(None), None, "auto", OK, "runs on the CPU"),
    (fake_torch("13.0"), None, "cuda", ERROR, "training.device: auto"),
    (fake_torch(None), DRIVER, "auto", WARNING, "built without CUDA"),
    (fake_torch("13.0"), DRIVER, "auto", ERROR, "update the driver, or install torch 2.13.0 for CUDA 12.2 or older"),
    (fake_torch("12.2"), DRIVER, "auto", ERROR, "--gpus all"),
    (fake_torch("9.2"), torch_build.Driver("1", "10.0", ("A100",)), "auto", ERROR, "--gpus all"),
    (fake_torch("12.2", 2), DRIVER, "auto", OK, "cuda:1 A100, 30.0 of 40.0 GB free"),
    (fake_torch("12.2", 1, "CUDA error: no kernel image is available"), DRIVER, "auto", ERROR, "no kernel image"),
])
def test_a_gpu_that_torch_cannot_use_is_explained(torch, driver, device, status, words):
    finding = torch_build.check_gpu(torch, driver, device)
    assert finding.status == status and words in f"{finding.text} {finding.fix}"


@pytest.mark.gpu
def test_a_gpu_of_this_machine_computes():
    import torch

    assert torch_build.check_gpu(torch, torch_build.read_driver()).status == OK


def test_another_version_of_torch_is_a_warning(monkeypatch):
    import torch

    assert torch_build.check_torch().status == OK
    monkeypatch.setattr(torch, "__version__", "2.5.1+cu121")
    finding = torch_build.check_torch()
    assert finding.status == WARNING and "2.5.1+cu121" in finding.text and "torch==2.13.0" in finding.fix


# --- Python, memory, disk --------------------------------------------------------------------------------------------

def test_an_old_python_is_an_error(monkeypatch):
    assert machine.check_python().status == OK
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    assert machine.check_python().status == ERROR


def test_memory_is_that_of_the_machine_or_the_limit_of_the_container(monkeypatch):
    with open("/proc/meminfo", encoding="ascii") as file:
        kilobytes = int(re.search(r"MemTotal: +(\d+) kB", file.read())[1])
    assert machine.total_memory() == pytest.approx(1024 * kilobytes, rel=0.01)
    monkeypatch.setattr(machine, "memory_limit", lambda: 3_000_000_000)
    finding = machine.check_memory()
    assert finding.status == WARNING and finding.text.startswith("3.0 GB (limit of the container; the machine has ")


def test_a_disk_that_is_full_or_cannot_be_written(tmp_path, monkeypatch):
    assert machine.check_disk(tmp_path / "a" / "b", "run folder").status == OK
    (tmp_path / "file").write_text("")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "exists", lambda path: False)  # as a drive Z: of Windows that is not there
        nowhere = machine.check_disk(tmp_path, "run folder")
    assert nowhere.status == ERROR and "no such disk" in nowhere.text
    assert machine.check_disk(tmp_path / "file" / "run", "run folder").status == ERROR
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: SimpleNamespace(free=1e9))
    finding = machine.check_disk(tmp_path, "run folder")
    assert finding.status == WARNING and "1.0 GB free" in finding.text


# --- weights, tokenizer, data ----------------------------------------------------------------------------------------

def doctor(capsys, config: str | None, *settings: str, prism: str | None = None) -> tuple[int, str]:
    code = run_checks(config, list(settings), prism)
    return code, capsys.readouterr().out


@pytest.fixture
def config(data, tmp_path) -> str:
    path = tmp_path / "my.yaml"
    path.write_text(f"data: {{embeddings_dir: {data / 'embeddings'}, labels_file: {data / 'labels.json'}, val_split: 0.25}}\n"
                    f"training: {{output_dir: {tmp_path / 'run'}}}\nprism: {{weights: random-tiny}}\n", encoding="utf-8")
    return str(path)


def test_a_config_that_would_train_has_no_error_and_its_slides_are_counted(config, data, capsys, tmp_path):
    code, text = doctor(capsys, config)
    labels = len(json.loads((data / "labels.json").read_text(encoding="utf-8")))
    numbers = [int(n) for n in re.findall(r"(\d+) (?:slides )?for", found(text, "data")[1])]
    assert code == 0 and sum(numbers) == labels and found(text, "Prism weights")[0] == "warning"
    assert not (tmp_path / "run").exists(), "it writes nothing"


def test_faults_of_the_data_are_an_error(config, capsys):
    code, text = doctor(capsys, config, "data.labels_file=/nowhere/labels.json")
    assert code == 2 and found(text, "data")[0] == "error" and "/nowhere/labels.json: cannot be read" in text


def test_a_config_that_cannot_be_read_is_an_error(tmp_path, capsys):
    (tmp_path / "bad.yaml").write_text("training: {epochs: many}\n", encoding="utf-8")
    code, text = doctor(capsys, str(tmp_path / "bad.yaml"), prism="random-tiny")
    assert code == 2 and found(text, "config")[0] == "error" and "training.epochs" in text


def test_weights_in_a_folder_are_loaded(tmp_path, capsys):
    folder = put(tmp_path / "Prism", small_state())
    code, text = doctor(capsys, None, prism=str(folder))
    assert code == 0 and re.search(r"sha256 [0-9a-f]{12}", found(text, "Prism weights")[1])
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-9])
    code, text = doctor(capsys, None, prism=str(folder))
    assert found(text, "Prism weights")[0] == "warning" and "cut off" in text, "without a config training may be elsewhere"


def test_weights_of_the_hub_are_those_of_the_cache_else_the_hub_is_asked(tmp_path, monkeypatch, capsys):
    folder = put(tmp_path / "hub" / "snapshots" / "abc123", small_state())
    play_hub(monkeypatch, folder)
    assert "sha256" in found(doctor(capsys, None, prism="owner/Prism")[1], "Prism weights")[1]
    asked = play_hub(monkeypatch, tmp_path / "empty")
    status, text = found(doctor(capsys, None, prism="owner/Prism")[1], "Prism weights")
    assert status == "ok" and "the hub lets you in" in text and ("model.safetensors", None) in asked
    monkeypatch.delenv("HF_TOKEN", raising=False)
    refusal = RuntimeError("no")
    refusal.response = SimpleNamespace(status_code=401)
    play_hub(monkeypatch, tmp_path / "empty", ask=refusal)
    status, text = found(doctor(capsys, None, prism="owner/Prism")[1], "Prism weights")
    assert status == "warning" and "access refused" in text and "HF_TOKEN" in text


def test_a_tokenizer_that_cannot_be_had_is_an_error(config, capsys, tmp_path):
    code, text = doctor(capsys, config, f"data.tokenizer=hf:{tmp_path}")
    assert code == 2 and found(text, "tokenizer")[0] == "error"


def test_prisms_own_tokenizer_is_that_of_its_weights(tmp_path, capsys):
    decoder = "model.decoder=prism"
    assert found(doctor(capsys, None, decoder, prism="random-tiny")[1], "tokenizer")[0] == "ok"
    assert found(doctor(capsys, None, decoder, prism=str(tmp_path / "none"))[1], "tokenizer")[0] == "-"
    folder = put(tmp_path / "Prism", small_state())  # without a vocabulary
    code, text = doctor(capsys, None, decoder, prism=str(folder))
    assert code == 2 and found(text, "tokenizer")[0] == "error" and "vocab.json" in text


def test_a_language_model_is_looked_for_without_downloading_it(tmp_path, monkeypatch, capsys):
    asked = play_hub(monkeypatch, tmp_path)
    code, text = doctor(capsys, None, "model.decoder=hf:owner/Model", *PRISM_TINY)
    assert code == 0 and "the first run downloads it" in found(text, "language model")[1]
    assert {name for name, _ in asked} <= {"config.json", "model.safetensors", "model.safetensors.index.json"}
    code, text = doctor(capsys, None, f"model.decoder=hf:{tmp_path}", *PRISM_TINY)
    assert code == 2 and found(text, "language model")[0] == "error"


def test_the_doctor_is_a_user_error_only_for_its_own_flags():
    done = run_doctor("--confg", "x")
    assert done.returncode == 2 and done.stderr.startswith("error: python -m finetune.doctor")
