"""Import rules of the rooms and forbidden calls, read from the syntax trees without importing anything."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.files import ROOT

SCRIPTS = ["train_finetune.py", "train_with_config.py", "inference.py"]
PACKAGES = ["coca_pytorch", "prism", "finetune"]
FILES = {str(p.relative_to(ROOT).as_posix()): ast.parse(p.read_text(encoding="utf-8"))
         for folder in [*PACKAGES, "benchmarks"] for p in sorted((ROOT / folder).rglob("*.py"))}
COMMAND = "prism_coca.py"
FILES |= {name: ast.parse((ROOT / name).read_text(encoding="utf-8")) for name in (*SCRIPTS, COMMAND)}
OURS = {*PACKAGES, "benchmarks", "tests", *(Path(s).stem for s in (*SCRIPTS, COMMAND))}
SHIPPED = [name for name in FILES if not name.startswith("benchmarks/")]


def package(name: str) -> str:
    return name.split("/")[0].removesuffix(".py")


def imports(name: str, tree: ast.Module | None = None) -> Iterator[str]:
    """Absolute names of the modules a file imports, at any depth, those for type checkers only among them."""
    for node in ast.walk(tree or FILES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = name.split("/")[:-1]
            base = ".".join([*parents[: len(parents) - node.level + 1], node.module or ""]).strip(".") \
                if node.level else node.module or ""
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def top_level(name: str) -> set[str]:
    return {module.split(".")[0] for module in imports(name)}


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """(dotted name, call) of every call; the name of a method on a computed value starts with a dot."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            parts, target = [], node.func
            while isinstance(target, ast.Attribute):
                parts.append(target.attr)
                target = target.value
            yield ".".join([target.id if isinstance(target, ast.Name) else "", *reversed(parts)]), node


def keyword(call: ast.Call, name: str) -> object:
    """The constant value of a keyword argument; None if it is not given, ... if it is computed."""
    value = next((k.value for k in call.keywords if k.arg == name), None)
    return value.value if isinstance(value, ast.Constant) else None if value is None else ...


def users_of(module: str) -> set[str]:
    return {name for name in SHIPPED if module in top_level(name)}


def callers_of(*functions: str) -> set[str]:
    return {name for name in FILES for called, _ in calls(FILES[name]) if called in functions}


def test_the_files_were_found():
    assert {"finetune/config/schema.py", "prism/files.py", "coca_pytorch/coca_pytorch.py", "inference.py"} <= set(FILES)


@pytest.mark.parametrize("folder", ["coca_pytorch", "prism"])
def test_the_models_import_nothing_of_this_repository(folder):
    for name in FILES:
        if package(name) == folder:
            assert not top_level(name) & (OURS - {folder}), name


def test_finetune_imports_the_models_but_no_script():
    for name in FILES:
        if package(name) == "finetune":
            assert top_level(name) & OURS <= set(PACKAGES), name


def test_scripts_import_only_finetune():
    for name in (*SCRIPTS, COMMAND):
        assert top_level(name) & OURS == {"finetune"}, name


def test_nothing_shipped_imports_tests_or_benchmarks():
    for name in SHIPPED:
        assert not top_level(name) & {"tests", "benchmarks"}, name


# From the street down. A room may import rooms of the rows below it, and nothing of its own row.
ROWS = [{"."}, {"inference", "training", "checkup"}, {"explanation"}, {"models", "cleaning"},
        {"data", "evaluation", "checkpoints", "pages"}, {"templates"}, {"config"}, {"common"}]


def room(name: str) -> str:
    """finetune/ROOM/x.py -> ROOM; "." for what people run, finetune/x.py and finetune/ROOM/__main__.py."""
    parts = name.split("/")
    return parts[1] if len(parts) == 3 and parts[2] != "__main__.py" else "."


def arrows(files: dict[str, ast.Module]) -> set[tuple[str, str]]:
    """(room, room it imports), type-only imports and imports inside functions included."""
    return {(room(name), module.split(".")[1]) for name, tree in files.items() if package(name) == "finetune"
            for module in imports(name, tree) if module.count(".") > 1 and module.startswith("finetune.")}


def wrong_arrows(files: dict[str, ast.Module]) -> set[tuple[str, str]]:
    row = {name: number for number, rooms in enumerate(ROWS) for name in rooms}
    return {(one, other) for one, other in arrows(files) if one != other and row[one] >= row[other]}


def test_rooms_import_only_rooms_below_them():
    assert not wrong_arrows(FILES)
    assert len(arrows(FILES)) > 20


def test_every_arrow_that_is_turned_is_noticed():
    for one, other in sorted(arrows(FILES)):
        if one not in (".", other):
            turned = ast.parse(f"def f():\n    from ..{one} import x")
            assert wrong_arrows({f"finetune/{other}/new.py": turned}) == {(other, one)}


def circles(files: dict[str, ast.Module]) -> list[set[str]]:
    """Groups of files that import each other, directly or indirectly."""
    path = {name.removesuffix(".py").removesuffix("/__init__").replace("/", "."): name for name in files}
    uses = {name: {path[m] for m in imports(name, tree) if m in path and not path[m].endswith("__init__.py")} - {name}
            for name, tree in files.items()}
    reach = {name: set(used) for name, used in uses.items()}
    while any([reach[n].update(more) for n in reach if (more := set().union(*(reach[m] for m in reach[n])) - reach[n])] or ()):
        pass
    return [reach[n] for n in reach if n in reach[n]]


def test_no_files_import_each_other_in_a_circle():
    assert not circles({name: tree for name, tree in FILES.items() if name in SHIPPED})


def test_flags_and_bad_configs_are_checked_without_torch():
    code = "import sys, finetune.common.errors, finetune.config.yaml_file, finetune.data.labels, finetune.config.flags, finetune.inference.options\nprint(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not {"torch", "numpy", "h5py", "tqdm"} & set(loaded.split())


def test_each_library_has_one_owner():
    assert users_of("h5py") == {"finetune/data/h5_files.py", "finetune/demo.py"}
    assert users_of("tokenizers") == {"finetune/data/tokenizer.py"}
    assert users_of("transformers") == {"finetune/data/tokenizer.py", "finetune/evaluation/reg_models.py",
                                        "finetune/models/language_model_folder.py"}
    assert users_of("yaml") == {"finetune/config/yaml_file.py"}
    assert users_of("safetensors") <= {"prism/files.py", "finetune/checkpoints/hf_folder.py"}
    assert all("huggingface_hub" not in top_level(n) for n in SHIPPED if package(n) != "prism")


def test_the_demo_opens_h5_files_only_to_write_them():
    opened = [call for called, call in calls(FILES["finetune/demo.py"]) if called == "h5py.File"]
    assert opened and all(ast.literal_eval(call.args[1]) == "w" for call in opened)


def test_torch_saves_in_one_place_and_loads_in_three_and_never_runs_what_it_loads():
    shipped = set(SHIPPED)
    assert callers_of("torch.save") & shipped == {"finetune/checkpoints/format.py"}
    assert callers_of("torch.load") & shipped == {"finetune/checkpoints/format.py", "finetune/data/pt_files.py", "prism/files.py"}
    for name in FILES:
        for called, call in calls(FILES[name]):
            if called == "torch.load":
                assert keyword(call, "weights_only") is True and keyword(call, "map_location") == "cpu", name
        for node in ast.walk(FILES[name]):  # `from torch import load` would hide from the line above
            if isinstance(node, ast.ImportFrom) and node.module == "torch":
                assert not {"load", "save"} & {alias.name for alias in node.names}, name


@pytest.mark.parametrize("function", ["pickle.load", "pickle.loads", "pickle.Unpickler", "eval", "exec", "yaml.load",
                                      "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "torch.jit.load", "os.system",
                                      "os.popen", "shutil.unpack_archive", "torch.hub.load", "marshal.loads", "__import__"])
def test_nothing_calls(function):
    assert not callers_of(function)


def test_nothing_unpacks_an_archive():
    for name in FILES:
        assert not any(called.endswith((".extractall", ".extract")) for called, _ in calls(FILES[name])), name


@pytest.mark.parametrize(("argument", "value"), [("weights_only", False), ("shell", True), ("strict", False),
                                                 ("trust_remote_code", True), ("allow_pickle", True)])
def test_no_call_has_the_argument(argument, value):
    for name in FILES:
        for called, call in calls(FILES[name]):
            if not (argument == "strict" and called == "zip"):
                given = keyword(call, argument)
                assert given is not value and given is not ..., f"{name}:{call.lineno}"
    assert not users_of("pickle") and not users_of("shelve") and not users_of("dill")


def test_every_except_names_what_it_catches():
    for name in FILES:
        for node in ast.walk(FILES[name]):
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None and "BaseException" not in ast.unparse(node.type), f"{name}:{node.lineno}"


def test_every_text_file_is_opened_with_its_encoding():
    seen = 0
    for name in FILES:
        for called, call in calls(FILES[name]):
            method = called.split(".")[-1]
            if method not in ("open", "read_text", "write_text", "FileHandler") or called in ("os.open", "safe_open", "Image.open", "archive.open"):
                continue
            modes = [a.value for a in call.args[: 2 if called == "open" else 1] if isinstance(a, ast.Constant)]
            if method == "open" and any("b" in str(m) for m in modes):
                continue
            seen += 1
            assert keyword(call, "encoding") is not None, f"{name}:{call.lineno}"
    assert seen >= 5


def test_captions_and_texts_are_printed_by_few():
    printing = {name for name in callers_of("print") if not name.startswith("benchmarks/")}
    assert printing <= {"finetune/common/errors.py", "finetune/inference/records.py", "finetune/demo.py"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_parses_and_calls_and_has_no_logic_of_its_own(script):
    assert len((ROOT / script).read_text(encoding="utf-8").splitlines()) <= 40
    loops = (ast.For, ast.While, ast.comprehension, ast.Try, ast.ClassDef)
    assert not any(isinstance(node, loops) for node in ast.walk(FILES[script]))
    heavy = {"torch", "numpy", "h5py", "finetune.training.run", "finetune.inference.run"}
    at_import = [n for n in FILES[script].body if isinstance(n, (ast.Import, ast.ImportFrom))]
    assert not any(m in ast.unparse(n) for n in at_import for m in heavy), "--help must stay quick"


@pytest.mark.parametrize("name", [n for n in SHIPPED if n.startswith("finetune/")])
def test_nothing_happens_at_import(name):
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.If)
    for node in FILES[name].body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        assert docstring or isinstance(node, allowed), f"{name}:{node.lineno}"
        if isinstance(node, ast.If):
            assert ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'"), f"{name}:{node.lineno}"


def test_no_test_imports_from_another_test_file():
    for path in (ROOT / "tests").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        froms = {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert not any(m.startswith("tests.") and m.split(".")[-1].startswith("test_") for m in froms), path
