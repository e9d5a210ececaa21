"""examples/tour.ipynb: small, its commands exist, and (by hand, some minutes) it runs from the first cell to the last."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shutil

import pytest

import prism_coca
from tests.helpers.files import ROOT
from tests.helpers.scripts import run

PATH = ROOT / "examples" / "tour.ipynb"
CELLS = json.loads(PATH.read_text(encoding="utf-8"))["cells"]
CODE = ["".join(cell["source"]).replace("\\\n", " ") for cell in CELLS if cell["cell_type"] == "code"]
COMMANDS = [line.removeprefix("!{python} ") for cell in CODE for line in cell.splitlines() if line.startswith("!")]


def test_it_is_small_and_names_no_folder_of_the_machine_that_ran_it():
    text = PATH.read_text(encoding="utf-8")
    assert len(text) < 40_000
    assert not re.search(r"/(work|home|root|tmp|Users)/", text)
    assert not [output for cell in CELLS for output in cell.get("outputs", ()) if output["output_type"] == "error"]
    assert next(cell["outputs"] for cell in CELLS if "display(Image" in "".join(cell["source"])), "with its picture"


def test_its_python_compiles_and_imports_what_exists():
    for cell in CODE:
        tree = ast.parse(re.sub(r"^!.*$", "pass", cell, flags=re.MULTILINE))
        for node in (n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and (n.module or "").startswith("finetune")):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)


@pytest.mark.parametrize("command", COMMANDS)
def test_its_commands_have_flags_that_exist(command):
    words = command.split()
    script = words[0] if words[0] != "-m" else f"{words[1].replace('.', '/')}.py"
    assert script.removesuffix(".py").replace("/", ".") in prism_coca.modules().values()
    name = next(name for name, module in prism_coca.modules().items() if module == script.removesuffix(".py").replace("/", "."))
    help_text = run("prism_coca.py", name, "--help", cwd=ROOT).stdout
    flags = [word for word in words if re.match(r"--?[a-z]", word) and word != "-m"]
    assert flags and all(re.search(rf"(^|[\s,\[]){flag}\b", help_text) for flag in flags), flags


@pytest.mark.slow
def test_it_runs_from_the_first_cell_to_the_last(tmp_path, monkeypatch):
    nbformat, nbclient = (pytest.importorskip(name, reason='pip install ".[notebook]"') for name in ("nbformat", "nbclient"))
    pytest.importorskip("ipykernel", reason='pip install ".[notebook]"')
    for name in ("finetune", "prism", "coca_pytorch"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train_with_config.py", "inference.py"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "examples").mkdir()
    book = nbformat.read(PATH, 4)
    nbclient.NotebookClient(book, timeout=1200, kernel_name="python3", resources={"metadata": {"path": str(tmp_path / "examples")}}).execute()
    printed = "".join(output.get("text", "") for cell in book.cells for output in cell.get("outputs", ()))
    right, count = map(int, re.search(r"完全相同：(\d+) / (\d+)", printed).groups())
    assert count == 32 and right >= 0.9 * count
    labels = json.loads((tmp_path / "tour" / "labels.json").read_text(encoding="utf-8"))
    assert len(labels) == 160 and not any(private in text for text in labels.values() for private in ("张三", "住院号", "HER2"))
    assert (tmp_path / "tour" / "run" / "report.html").exists()
    assert any("image/png" in output.get("data", {}) for cell in book.cells for output in cell.get("outputs", ()))
