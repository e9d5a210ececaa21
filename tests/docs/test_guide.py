"""The guide and its pages: what they name exists, what they show runs, and they use the terms of the field."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import prism_coca
from finetune.common.errors import UserError
from finetune.config.schema import Config, apply_overrides
from finetune.config.yaml_file import load_yaml
from finetune.data import h5_files, labels
from finetune.training import trackers
from finetune.training.run import check
from tests.helpers.files import ROOT, random_tiles, refused, write_h5, write_json
from tests.helpers.language_models import make_language_model
from tests.helpers.scripts import run

GUIDE, CONFIG_PAGE, ERRORS_PAGE = (ROOT / name for name in ("README_training.md", "docs/config.md", "docs/errors.md"))
PAGES = [ROOT / "README.md", GUIDE, *sorted((ROOT / "docs").glob("*.md"))]
SETTINGS = [ROOT / "config.yaml", *sorted((ROOT / "examples").glob("*.yaml"))]
TEXT = {path: path.read_text(encoding="utf-8") for path in [*PAGES, *SETTINGS, ROOT / "SECURITY.md"]}
KEYS = {f"{section}.{key}": value for section, keys in Config().to_dict().items() for key, value in keys.items()}
NOT_OURS = {"pip", "venv", "pytest", "ruff"}  # modules of Python's or of others
EXTENDING = TEXT[ROOT / "docs" / "extending.md"]


def page(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT[path], re.DOTALL | re.MULTILINE)


def inline(path: Path) -> list[str]:
    """Inline code outside of fenced blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", TEXT[path], flags=re.DOTALL | re.MULTILINE))


def snippet(name: str) -> str:
    """The Python block of docs/extending.md that defines `name`."""
    (found,) = [b for b in blocks(ROOT / "docs" / "extending.md", "python") if re.search(rf"^(def|class) {name}\b|^{name} =", b, re.MULTILINE)]
    return found


# --- size, links, paths ----------------------------------------------------------------------------------------------

def test_the_guide_is_read_in_ten_minutes():
    assert len(TEXT[GUIDE].splitlines()) < 250


def anchor(heading: str) -> str:
    """GitHub's id of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("path", [*PAGES, ROOT / "SECURITY.md"], ids=page)
def test_every_relative_link_leads_somewhere(path):
    for link in re.findall(r"\]\(([^)\s]+)\)", TEXT[path]):
        if link.startswith(("http://", "https://")):
            continue
        name, _, heading = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), link
        if heading:
            assert heading in {anchor(h) for h in re.findall(r"^#+ (.+)$", TEXT[target], re.MULTILINE)}, link


def test_every_page_is_linked_from_the_guide():
    for path in PAGES[2:]:
        assert f"(docs/{path.name})" in TEXT[GUIDE], path.name


@pytest.mark.parametrize("path", [*PAGES, ROOT / "SECURITY.md"], ids=page)
def test_every_file_of_ours_that_is_named_exists(path):
    named = [n for text in inline(path) for n in re.findall(r"^(?:finetune|prism|coca_pytorch|tests|benchmarks|examples|docs)/[\w./]*$", text)]
    assert not [name for name in named if not (ROOT / name).exists()]


@pytest.mark.parametrize("path", [*PAGES, ROOT / "SECURITY.md"], ids=page)
def test_every_function_of_ours_that_is_named_exists(path):
    for name in (n for text in inline(path) for n in re.findall(r"^(finetune(?:\.\w+)+\.\w+)(?:\(.*)?$", text)):
        module, _, member = name.rpartition(".")
        assert hasattr(importlib.import_module(module), member), name


@pytest.mark.parametrize("path", PAGES, ids=page)
def test_every_table_has_rows_of_one_width(path):
    for table in re.findall(r"(?:^\|.*\n)+", re.sub(r"^```.*?^```", "", TEXT[path], flags=re.DOTALL | re.MULTILINE), re.MULTILINE):
        widths = [len(re.sub(r"`[^`]*`", "", row).split("|")) for row in table.splitlines()]
        assert len(widths) > 2 and len(set(widths)) == 1, table[:200]


# --- commands --------------------------------------------------------------------------------------------------------

def of_command(name: str) -> str:
    """How Python runs what `prism-coca NAME` does."""
    module = prism_coca.modules()[name]
    return f"-m {module}" if "." in module else f"{module}.py"


def commands(path: Path) -> Iterator[list[str]]:
    """The arguments of each command line in which Python runs, from `python` or a script's name on."""
    lines = [line for language in ("bash", "powershell") for block in blocks(path, language)
             for line in block.replace("\\\n", " ").splitlines()]
    for line in [*lines, *inline(path)]:
        line = re.sub(r"\.venv[\\/](?:Scripts|bin)[\\/]", "", line)
        line = re.sub(r"^(?:docker run .*? )?prism-coca(?::cuda)? +([a-z-]+)", lambda m: f"python {of_command(m[1])}", line)
        if not re.search(r"(^|\s)(python3?|torchrun)\s", line):
            continue
        words = [word.removesuffix(";") for word in shlex.split(line, comments=True) if word != "..."]
        start = next((i for i, w in enumerate(words) if w in ("python", "python3") or w.endswith(".py")), None)
        if start is not None:
            yield words[start:] if words[start].endswith(".py") else words[start + 1:]


class Parsed(BaseException):
    """Raised right after a script has parsed its arguments."""


def parse(words: list[str], monkeypatch) -> argparse.Namespace:
    """The arguments of a command by the parser of its script, without running it."""
    original = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, args=None, namespace=None):
        raise Parsed(original(self, args, namespace))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.chdir(ROOT)
    try:
        if words[0] == "-m":
            monkeypatch.setattr(sys, "argv", words[1:])
            monkeypatch.delitem(sys.modules, words[1], raising=False)
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            monkeypatch.setattr(sys, "argv", words)
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    except Parsed as parsed:
        return parsed.args[0]
    except (SystemExit, UserError) as refused:
        pytest.fail(f"{shlex.join(words)}: {refused}")
    return pytest.fail(f"{shlex.join(words)} takes no arguments")


ALL_COMMANDS = sorted({tuple(words) for path in PAGES for words in commands(path)})


def test_the_commands_are_found():
    scripts = {words[0] for words in ALL_COMMANDS}
    assert scripts == {"train_finetune.py", "train_with_config.py", "inference.py", "-m"}


@pytest.mark.parametrize("words", ALL_COMMANDS, ids=" ".join)
def test_every_command_has_a_script_and_flags_that_exist(words, monkeypatch):
    if words[0] == "-c":
        ast.parse(words[1])
    elif words[0] == "-m" and words[1] in NOT_OURS:
        importlib.import_module(words[1])
    elif words[0] == "-m" and len(words) == 2:  # some take no arguments, and no parser would stop them
        assert (ROOT / f"{words[1].replace('.', '/')}.py").exists() or (ROOT / words[1] / "__main__.py").exists()
    else:
        args = parse(list(words), monkeypatch)
        apply_overrides(Config(), getattr(args, "set", []))
        if config := getattr(args, "config", None):
            assert (ROOT / config).exists()


@pytest.mark.parametrize("path", PAGES, ids=page)
def test_every_make_target_exists(path):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    lines = [line for block in blocks(path, "bash") for line in block.splitlines()] + inline(path)
    assert {m[1] for line in lines if (m := re.match(r"make ([\w-]+)", line))} <= targets


POWERSHELL = [(path, block) for path in PAGES for block in blocks(path, "powershell")]


def test_the_commands_for_windows_are_what_powershell_takes():
    """Windows PowerShell 5 has no `&&`; a line goes on after a backtick; the environment's Python is in Scripts."""
    assert len(POWERSHELL) >= 2
    for path, block in POWERSHELL:
        for line in block.splitlines():
            assert not re.search(r"&&|\|\||\\$|^(export|source|make|rm|cp) |\bpython3\b|/bin/|\$\(", line), f"{path.name}: {line}"
            assert not re.match(r"\w+=", line), "a variable is set by $env:NAME = VALUE"
        if "activate" in block:
            assert re.search(r"^\.venv\\Scripts\\activate$", block, re.MULTILINE)
            assert block.index("python -m venv .venv") < block.index("activate") < block.index("pip install")


def test_windows_installs_what_make_setup_installs():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for path, block in POWERSHELL:
        for files in re.findall(r"pip install (.*)", block):
            assert files == "--no-deps -r requirements.lock" and "--no-deps --require-hashes --requirement requirements.lock" in makefile, path


def test_the_flags_of_inference_are_on_its_page():
    shown = set(re.findall(r"--\w+", TEXT[ROOT / "docs" / "inference.md"] + TEXT[ROOT / "docs" / "scoring.md"] + TEXT[ROOT / "docs" / "prism.md"]))
    help_text = run("inference.py", "--help", cwd=ROOT).stdout
    assert set(re.findall(r"^  (--\w+)", help_text, re.MULTILINE)) - {"--debug"} <= shown


# --- config ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("path", PAGES, ids=page)
def test_every_key_that_is_named_exists(path):
    prose = re.sub(r"```python.*?```", "", TEXT[path], flags=re.DOTALL)  # there `model.dim` is an attribute
    named = set(re.findall(r"(?<![\w./])(?:data|prism|model|training)\.[a-z]\w*(?![\w.]*/)", prose))
    files = {"model.safetensors", "training.log", "training.md", "prism.md", "data.md", "data.h5"}
    assert named - files <= set(KEYS)


def test_the_config_page_has_every_key_with_its_default():
    rows = dict(re.findall(r"^\| `([\w.]+)` \| `([^`]*)` \|", TEXT[CONFIG_PAGE], re.MULTILINE))
    assert list(rows) == list(KEYS)
    for key, text in rows.items():
        assert yaml.safe_load(text) == KEYS[key], key


def test_defaults_shown_in_the_guide_are_the_true_ones():
    table = TEXT[GUIDE].split("## 配置说明")[1].split("## ")[0]
    rows = re.findall(r"^\| ((?:`[\w.]+`、?)+) \| `([^`]*)` \|", table, re.MULTILINE)
    assert len(rows) > 10
    for names, text in rows:
        for key in re.findall(r"`([\w.]+)`", names):
            assert yaml.safe_load(text) == KEYS[key], key


def test_decoding_options_are_shown_with_their_defaults():
    from prism import GenerationOptions

    rows = dict(re.findall(r"^\| `--(\w+)` \| (\S+) \|", TEXT[ROOT / "docs" / "inference.md"], re.MULTILINE))
    wanted = {f.name: "关" if f.default is False else str(f.default) for f in dataclasses.fields(GenerationOptions)}
    assert rows == wanted | {"max_length": "训练时的长度"}  # that of the flag, not of the library


@pytest.mark.parametrize("path", [p for p in SETTINGS if p.name != "config.yaml"], ids=page)
def test_an_example_config_reads_and_its_data_is_checked(path, tmp_path, monkeypatch):
    config = load_yaml(path, Config())
    (tmp_path / "data").mkdir()
    write_json(tmp_path / "data" / "labels.json", {f"s{i}": "胃腺癌。" for i in range(6)})
    for i in range(6):
        write_h5(tmp_path / "data" / "embeddings" / f"s{i}.h5", random_tiles(3, config.data.image_dim, i))
    monkeypatch.chdir(tmp_path)
    if config.model.language_model is not None:
        with refused("no such folder", config.model.language_model):
            check(config)
        make_language_model(tmp_path / config.model.language_model)
    assert check(config) == 0


def test_the_full_size_config_is_the_users_own():
    config = load_yaml(ROOT / "examples" / "full_size.yaml", Config())
    assert (config.model.dim, config.model.dim_latents, config.data.max_seq_len) == (1024, 5120, 512)


# --- labels, errors, words -------------------------------------------------------------------------------------------

LABELS = [block for path in PAGES for block in blocks(path, "json")]


@pytest.mark.parametrize("text", LABELS, ids=[f"example {i}" for i in range(len(LABELS))])
def test_every_labels_example_is_good_once_its_slides_exist(text, tmp_path, monkeypatch):
    (tmp_path / "labels.json").write_text(text, encoding="utf-8")
    known, problems = labels.load_labels(tmp_path / "labels.json")
    assert known and not problems
    for name in {name for label in known.values() for name in label.slides}:
        write_h5(tmp_path / "embeddings" / f"{name}.h5", random_tiles(3, 2560))
    monkeypatch.chdir(tmp_path)
    assert check(apply_overrides(Config(), ["data.embeddings_dir=embeddings", "data.labels_file=labels.json"])) == 0


def source_texts() -> str:
    """All string constants in the code, f-strings in their parts."""
    trees = [ast.parse(p.read_text(encoding="utf-8")) for folder in ("finetune", "prism") for p in (ROOT / folder).rglob("*.py")]
    return "\n".join(n.value for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str))


CONCRETE = {"unknown section"}  # the code writes "unknown {kind}"


@pytest.mark.parametrize("path", [GUIDE, ERRORS_PAGE], ids=page)
def test_every_error_that_is_explained_is_in_the_code(path):
    code, seen = source_texts(), 0
    for cell in re.findall(r"^\| ((?:[^|]*`[^`]*\.\.\.[^`]*`|`[^`]+`|--\w+：)[^|]*) \|", TEXT[path].split("故障排除" if path == GUIDE else "# ", 1)[1], re.MULTILINE):
        for part in (p for quoted in re.findall(r"`([^`]+)`", cell) for p in re.split(r"\.\.\.|: |2560|[()]", quoted)):
            if len(part := part.strip(" :;,.'")) >= 10 and "/" not in part and part not in CONCRETE:
                assert part in code, f"{part!r} of {cell!r}"
                seen += 1
    assert seen > (8 if path == GUIDE else 150)


NOT_OUR_WORDS = ["补齐", "微步", "负例", "汇聚", "宽度", "门槛", "坏切片", "写描述", "各算一位", "数组批", "is told", "dealt", "is no "]


@pytest.mark.parametrize("path", [*PAGES, *SETTINGS], ids=page)
def test_words_that_the_field_does_not_use_are_absent(path):
    assert not [word for word in NOT_OUR_WORDS if word in TEXT[path]]


@pytest.mark.parametrize("path", [*PAGES, *SETTINGS], ids=page)
def test_the_ids_of_the_fault_catalogue_are_only_on_its_own_page(path):
    assert path.name == "faults.md" or not re.findall(r"\b[HJCKNRTIA]\d{2}\b", TEXT[path])


# --- what git must not take ------------------------------------------------------------------------------------------

needs_git = pytest.mark.skipif(not (ROOT / ".git").exists() or not shutil.which("git"), reason="no git checkout")


def ignored(*args: str) -> list[str]:
    done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    return done.stdout.splitlines()


@needs_git
def test_patients_data_and_what_is_made_of_it_is_ignored():
    paths = ["data/labels.json", "data/embeddings/a.h5", "embeddings/a.h5", "labels.json", "labels_utf8.json", "captions.jsonl",
             "captions.csv", "checkpoints/report.html", "checkpoints/nearest.pt", "run2/metrics.jsonl", "runs/real/best_model.pth",
             "my_captioner/README.md", "explained/phrase_1.png", "logs/training.log", "elsewhere/validation_captions.jsonl",
             "elsewhere/report.html", "elsewhere/best_model.pth", "my_losses.py", "demo/labels.json"]
    assert ignored("check-ignore", *paths) == paths


@needs_git
def test_nothing_that_is_tracked_is_ignored():
    assert ignored("ls-files", "-ci", "--exclude-standard") == []


# --- how to extend ---------------------------------------------------------------------------------------------------

def test_every_python_example_compiles_and_its_imports_exist():
    found = [block for path in PAGES for block in blocks(path, "python")]
    assert len(found) >= 7
    for node in (n for block in found for n in ast.walk(ast.parse(block)) if isinstance(n, ast.ImportFrom)):
        module = importlib.import_module(node.module)
        assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


def test_the_encoder_and_decoder_example_runs():
    (example,) = [b for b in blocks(ROOT / "docs" / "extending.md", "python") if "load_prism(" in b]
    names: dict = {}
    exec(example, names)
    assert names["loss"].isfinite()


def test_the_label_format_of_the_guide_works(tmp_path, monkeypatch):
    namespace = vars(labels)
    exec(snippet("_from_records"), namespace)
    usual = labels._cases
    monkeypatch.setattr(labels, "_cases", lambda data, path: namespace["_from_records"](data, path) if set(data) == {"records"} else usual(data, path))
    path = write_json(tmp_path / "labels.json", {"records": [{"slide": "a.svs", "diagnosis": "胃腺癌。"}, {"slide": "b.svs"}]})
    known, problems = labels.load_labels(path)
    assert known["a"].text == "胃腺癌。" and list(problems) == ["b"]
    del namespace["_from_records"]


def test_the_h5_layout_of_the_guide_works(tmp_path, monkeypatch):
    names: dict = {}
    exec(snippet("KEYS"), names)
    assert set(names["KEYS"]) - set(h5_files.KEYS) == {"tile_features"} and set(h5_files.KEYS) < set(names["KEYS"])
    monkeypatch.setattr(h5_files, "KEYS", names["KEYS"])
    path = write_h5(tmp_path / "a.h5", random_tiles(3, 8), key="tile_features")
    assert h5_files.inspect(path, None, 8, None).key == "tile_features"


def test_the_tracker_of_the_guide_works(tmp_path):
    names = dict(vars(trackers))
    exec(snippet("_Csv"), names)
    tracker = names["_Csv"](tmp_path, {}, 1)
    tracker.log(json.loads('{"epoch": 1, "step": 4, "loss": 0.5, "best": true}'), 4)
    tracker.close()
    assert (tmp_path / "curves.csv").read_text(encoding="utf-8") == "4,loss,0.5\n"


def test_the_two_column_loss_of_the_guide_is_a_caption_loss():
    import torch

    names: dict = {}
    exec(snippet("my_loss"), names)
    inputs = argparse.Namespace(logits=torch.randn(2, 3, 5), labels=torch.tensor([[1, 2, 3], [4, 1, 0]]), text_mask=torch.tensor([[1, 1, 1], [1, 1, 0]]).bool())
    wanted = [torch.nn.functional.cross_entropy(inputs.logits[i, :n], inputs.labels[i, :n]) for i, n in enumerate((3, 2))]
    assert names["my_loss"](inputs)["my_loss"] == pytest.approx(sum(wanted).item() / 2, abs=1e-6)
