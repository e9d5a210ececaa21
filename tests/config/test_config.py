"""Config: one schema under YAML, flags and --set; what YAML alone would get wrong; what is refused."""

from __future__ import annotations

import dataclasses
import math
import random
import re
import time

import pytest
import yaml

from finetune.common.files import expand
from finetune.config.flags import (
    TRAIN_FLAGS,
    Parser,
    add_common_flags,
    add_train_flags,
    config_from_flags,
)
from finetune.config.schema import Config, apply_overrides, from_dict
from finetune.config.yaml_file import dump_yaml, load_yaml
from tests.helpers.files import ROOT, refused

ALL_KEYS = [(s.name, f.name) for s in dataclasses.fields(Config) for f in dataclasses.fields(getattr(Config(), s.name))]


@pytest.fixture
def load(tmp_path):
    def load(content: str | bytes) -> Config:
        path = tmp_path / "my.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return load_yaml(path, Config())
    return load


def changes(config: Config) -> dict[str, object]:
    """{section.key: value} of what is not at its default."""
    default = Config().to_dict()
    return {f"{s}.{k}": v for s, keys in config.to_dict().items() for k, v in keys.items() if v != default[s][k]}


def train_args(*args: str):
    parser = Parser(prog="train_finetune.py")
    add_train_flags(parser)
    add_common_flags(parser)
    return parser.parse_args(list(args))


# --- the file the users start from -----------------------------------------------------------------------------------

def test_config_yaml_holds_the_defaults():
    assert changes(load_yaml(ROOT / "config.yaml", Config())) == {
        "data.embeddings_dir": "./data/embeddings", "data.labels_file": "./data/labels.json"}


def test_config_yaml_lists_every_key_in_the_order_of_the_schema():
    plain = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    assert [(s, k) for s, keys in plain.items() for k in keys] == ALL_KEYS


@pytest.mark.parametrize("key", [k for _, k in ALL_KEYS])
def test_config_yaml_explains_each_key_in_chinese(key):
    lines = re.findall(rf"^  {key}: .*$", (ROOT / "config.yaml").read_text(encoding="utf-8"), re.MULTILINE)
    assert lines and all(re.search(r" # .*[\u4e00-\u9fff]", line) for line in lines)


def test_the_keys_users_know_are_there():
    known = {"data": "embeddings_dir labels_file max_seq_len image_dim val_split",
             "model": "dim unimodal_depth multimodal_depth dim_latents image_dim caption_loss_weight "
                      "contrastive_loss_weight",
             "training": "batch_size epochs learning_rate weight_decay save_every"}
    assert {(s, k) for s, keys in known.items() for k in keys.split()} <= set(ALL_KEYS)


# --- numbers, booleans, null and text --------------------------------------------------------------------------------

@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1e-04", "0.0001", ".0001", "+1e-4", "1.0e-4", "100e-6", '"1e-4"'])
def test_C02_every_spelling_of_a_number_is_that_number(load, text):
    for config in (load(f"training: {{learning_rate: {text}}}"),
                   apply_overrides(Config(), [f"training.learning_rate={text.strip(chr(34))}"])):
        assert type(config.training.learning_rate) is float and config.training.learning_rate == 0.0001


def test_C02_the_lr_flag_is_a_float_too():
    args = train_args("--embeddings_dir", "e", "--labels_file", "l", "--lr", "1e-4")
    assert type(config_from_flags(args).training.learning_rate) is float
    assert config_from_flags(args).training.learning_rate == 0.0001


@pytest.mark.parametrize(("key", "text", "value"), [
    ("training.seed", "0", 0), ("training.seed", "4294967295", 2**32 - 1), ("training.epochs", "+8", 8),
    ("training.warmup", "100", 100.0), ("prism.freeze", "FALSE", False), ("prism.freeze", "true", True),
    ("data.max_tiles", "null", None), ("data.max_tiles", "~", None), ("data.max_tiles", "7", 7),
    ("data.h5_key", "features", "features"), ("training.grad_clip_norm", "null", None), ("data.val_split", "0", 0.0),
])
def test_a_value_has_the_type_of_its_key(load, key, text, value):
    section, name = key.split(".")
    for config in (load(f"{section}:\n  {name}: {text}\n"), apply_overrides(Config(), [f"{key}={text}"])):
        got = getattr(getattr(config, section), name)
        assert type(got) is type(value) and got == value


@pytest.mark.parametrize("text", ["on", "010", "1:30", "2026-11-24", "1e-4", "yes", "'null'", "中文/切片 一", "'~'",
                                  "null.h5"])
def test_C03_a_text_stays_the_text_it_is(load, text):
    assert load(f"data: {{embeddings_dir: {text}}}").data.embeddings_dir == text.strip("'")


def test_byte_order_mark_windows_line_ends_and_empty_sections_are_fine(load):
    content = "data:\r\n  image_dim: 8\r\nmodel:\r\ntraining: null\r\n# 注释\r\n".encode("utf-8-sig")
    assert changes(load(content)) == {"data.image_dim": 8}


@pytest.mark.parametrize(("text", "value"), [("[]", ()), ("null", ()), ("wandb", ("wandb",)), ("[wandb, tensorboard]", ("wandb", "tensorboard")),
                                             ("\n  - tensorboard\n  - tensorboard", ("tensorboard",))])
def test_a_key_may_take_a_list(load, text, value):
    config = load(f"training:\n  report_to: {text}")
    assert config.training.report_to == value
    assert from_dict(config.to_dict(), "c.pth") == config == load(dump_yaml(config))
    if "-" not in text:
        assert apply_overrides(Config(), [f"training.report_to={text}"]) == config


def test_order_is_default_then_yaml_then_set(load):
    config = apply_overrides(load("training: {epochs: 7, seed: 1}"), ["training.seed=2", " model.dim = 64 "])
    assert changes(config) == {"training.epochs": 7, "training.seed": 2, "model.dim": 64}


# --- what YAML files may not be --------------------------------------------------------------------------------------

BOMB = "a: &a [x, x]\n" + "".join(f"{c}: &{c} [*{p}, *{p}, *{p}, *{p}]\n"
                                  for p, c in zip("abcdefgh", "bcdefghi", strict=True))
NUMBER = "it must be a whole number"


@pytest.mark.parametrize(("content", "words"), [
    pytest.param("training:\n  learnig_rate: 1e-4", [":2", "unknown key", "learnig_rate", "did you mean learning_rate?"],
                 id="C01 misspelt key"),
    pytest.param("training:\n  lr: 1e-4", [":2", "unknown key", "did you mean training.learning_rate?"], id="C01 name of a flag"),
    pytest.param("data:\n  epochs: 9", [":2", "unknown key in section data", "did you mean training.epochs?"], id="C01 key of another section"),
    pytest.param("trainin:\n  epochs: 1", [":1", "unknown section: trainin", "did you mean training?"], id="C01 section"),
    pytest.param("trainin:\n", [":1", "unknown section: trainin"], id="C01 empty unknown section"),
    pytest.param("qqqq:\n  epochs: 1", ["one of: data, prism, model, training"], id="C01 nothing near"),
    pytest.param("epochs: 1", [":1", "unknown section: epochs", "did you mean training.epochs?"], id="C01 key outside its section"),
    pytest.param("training:\n  epochs: 1\n  seed: 2\n  epochs: 1", [":4", "training.epochs", "line 2"], id="C01 key twice"),
    pytest.param("training: {epochs: 1}\nmodel: {dim: 8}\ntraining: {epochs: 2}", [":3", "training.epochs", "line 1"],
                 id="C01 key twice in a repeated section"),
    pytest.param("training:\n  epochs: 010", [":2", "training.epochs is '010'", NUMBER], id="C03 octal"),
    pytest.param("training:\n  epochs: 0o10", [":2", "'0o10'", NUMBER], id="C03 octal 1.2"),
    pytest.param("training:\n  epochs: 0x10", [":2", "'0x10'", NUMBER], id="C03 hexadecimal"),
    pytest.param("training:\n  epochs: 1:30", [":2", "'1:30'", NUMBER], id="C03 sexagesimal"),
    pytest.param("training:\n  epochs: 1_000", [":2", "'1_000'", NUMBER], id="C03 underscore"),
    pytest.param("training:\n  epochs: yes", [":2", "'yes'", NUMBER], id="C03 yes"),
    pytest.param("training:\n  epochs: true", [":2", "'true'", NUMBER], id="C03 true for a number"),
    pytest.param("training:\n  epochs: 2026-11-24", [":2", "'2026-11-24'", NUMBER], id="C03 date"),
    pytest.param("training:\n  epochs: 8.0", [":2", "'8.0'", NUMBER], id="C03 float for a whole number"),
    pytest.param("training:\n  epochs: 1e2", [":2", "'1e2'", NUMBER], id="C03 exponent for a whole number"),
    pytest.param("training:\n  epochs: " + "9" * 5000, [":2", "training.epochs"], id="C03 endless number"),
    pytest.param("training:\n  learning_rate: 1:30", [":2", "'1:30'", "such as 1e-4"], id="C03 sexagesimal float"),
    pytest.param("training:\n  learning_rate: 1_0.0", [":2", "'1_0.0'"], id="C03 underscore float"),
    pytest.param("training:\n  learning_rate: no", [":2", "'no'"], id="C03 no"),
    pytest.param("prism:\n  freeze: on", [":2", "prism.freeze is 'on'", "true or false"], id="C03 on"),
    pytest.param("prism:\n  freeze: 1", [":2", "'1'", "true or false"], id="C03 number for a switch"),
    pytest.param("training:\n  epochs:\n", [":2", "training.epochs is empty"], id="C03 no value"),
    pytest.param("training:\n  report_to: [tensorboard, mlflow]", [":2", "'mlflow'", "tensorboard, wandb"], id="unknown in a list"),
    pytest.param("training:\n  report_to: [[wandb]]", [":2", "training.report_to is a sequence"], id="list in a list"),
    pytest.param("training:\n  epochs: [1, 2]", [":2", "training.epochs is a sequence"], id="C03 list"),
    pytest.param("training:\n  epochs: {a: 1}", [":2", "training.epochs is a mapping"], id="C03 mapping"),
    pytest.param("data:\n  on_bad: ignore", [":2", "'ignore'", "error, skip"], id="C03 choice"),
    pytest.param("data: !!python/object/apply:os.mkdir [CANARY]", [":1", "tags and aliases"], id="C04 python apply"),
    pytest.param("data: {h5_key: !!python/object/new:os.mkdir [CANARY]}", [":1", "tags"], id="C04 python new"),
    pytest.param("data:\n  h5_key: !!python/name:os.mkdir ''", [":2", "tags"], id="C04 python name"),
    pytest.param("data:\n  h5_key: !!str x", [":2", "tags"], id="C04 harmless tag"),
    pytest.param("", ["empty"], id="C05 empty"),
    pytest.param("# only a comment\n", ["empty"], id="C05 only a comment"),
    pytest.param("- a\n- b", ["key: value"], id="C05 list"), pytest.param("42", ["key: value"], id="C05 scalar"),
    pytest.param("data: 5", [":1", "key: value"], id="C05 scalar section"),
    pytest.param("? [a]\n: b", ["key: value"], id="C05 list as a key"),
    pytest.param("data:\n\timage_dim: 8", [":2", "a tab", "plain spaces"], id="C05 tab"),
    pytest.param("data: {image_dim: 8", [":1:20", "not valid YAML"], id="C05 cut off"),
    pytest.param("data: {image_dim: 8}\n---\nmodel: {dim: 8}", [":2:1", "not valid YAML", "document"],
                 id="C05 two documents"),
    pytest.param("data: {h5_key: 特征}".encode("gbk"), ["not UTF-8 (byte 15)", "save it as UTF-8"], id="C05 GBK"),
    pytest.param("data: {h5_key: x}".encode("utf-16"), ["not UTF-8 (byte 0)"], id="C05 UTF-16"),
    pytest.param("data: {h5_key: a\x00b}", ["not valid YAML"], id="C05 NUL"),
    pytest.param("data: &d {image_dim: 8}\nmodel: *d", [":2", "tags and aliases"], id="C05 alias"),
    pytest.param("data: &d {image_dim: 8}\nmodel:\n  <<: *d", [":3", "tags and aliases"], id="C05 merge key"),
    pytest.param(BOMB, [":2", "tags and aliases"], id="C05 billion laughs"),
    pytest.param("data: " + "[" * 50_000, [":1", "nested too deeply"], id="C05 nested lists"),
    pytest.param("data: " + "{a: " * 50_000, [":1", "nested too deeply"], id="C05 nested mappings"),
    pytest.param("- " * 5000, [":1", "nested too deeply"], id="C05 nested block lists"),
    pytest.param("? " * 5000, [":1", "nested too deeply"], id="C05 nested keys"),
    *(pytest.param(f"data:\n{indent}image_dim: 8", [":2", "full-width space", "plain spaces"], id=f"C05 {name}")
      for indent, name in (("\u3000\u3000", "full-width space"), ("\u00a0", "no-break space"))),
    pytest.param("data:\n  embeddings_dir：./切片\n", [":2", "full-width colon", "embeddings_dir: ./切片"], id="C05 full-width colon"),
    pytest.param("data:\n  embeddings_dir： ./x\n  val_split: 0.1", [":2", "write the ASCII colon and a space: embeddings_dir: ./x"],
                 id="C05 full-width colon, blamed on the next line"),
    pytest.param("data：\n  val_split: 0.1\ntraining:\n  epochs: 3", [":1", "full-width colon", "space: data:"], id="C05 full-width section"),
    pytest.param("data:\n  embeddings_dir:./x", [":2", "no space after the colon", "embeddings_dir: ./x"], id="C05 no space"),
    pytest.param("training:\n  epochs = 8", [":2", "'='", "epochs: 8"], id="C05 equals sign"),
    pytest.param("prism: {weights： random-tiny}", [":1", "full-width colon (：) after weights", "weights: random-tiny"], id="C05 full-width colon in { }"),
    pytest.param("training:\n  seed: 1\ndata: {val_split: 0.1, folds：3}", [":3", "full-width colon (：) after folds", "folds: 3"], id="C05 full-width colon after a comma"),
    pytest.param("data: ｛val_split: 0.1｝", [":1", "full-width bracket"], id="C05 full-width bracket"),
    pytest.param("data:\n  embeddings_dir: “./x”", [":2", "“ ”", "write './x'"], id="C05 curly quotes"),
    pytest.param("training:\n  epochs: １０", [":2", "write 10 in ASCII"], id="C03 full-width digits"),
    pytest.param("training:\n  report_to: [wandb，tensorboard]", [":2", "write wandb,tensorboard in ASCII"], id="C03 full-width comma"),
    pytest.param("training:\n  epochs: 3\n   batch_size: 8", [":3:14", "not valid YAML", "indent it as the lines around it"], id="C05 indentation"),
    *(pytest.param(f'data:\n  embeddings_dir: "D:\\{name}"\n', [":2", "Windows path in single quotes"], id=f"C05 backslash {name}")
      for name in ("data", "new", "tiles", "users", "xray", "Nx", "0", "list", "a\\b")),
    pytest.param("a：" + " " * 500_000 + "x", [":1", "full-width colon"], id="C05 half a megabyte of spaces"),
    pytest.param("#" * 1_000_001, ["1000001 bytes"], id="C05 a megabyte"),
])
def test_a_file_that_is_not_a_plain_config_is_refused_with_its_line(load, tmp_path, monkeypatch, content, words):
    monkeypatch.chdir(tmp_path)
    started = time.monotonic()
    with refused("my.yaml" + (words[0] if words[0].startswith(":") else ""), *words[1:]):
        load(content)
    assert time.monotonic() - started < 3
    assert [p.name for p in tmp_path.iterdir()] == ["my.yaml"], "the tag ran code"


def test_C08_a_missing_config_is_named_by_its_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with refused(tmp_path / "no.yaml", "No such file"):
        load_yaml("no.yaml", Config())
    with refused(tmp_path, "Is a directory"):
        load_yaml(tmp_path, Config())


def test_C08_home_and_variables_are_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/li")
    monkeypatch.setenv("DATA", "/mnt/切片")
    monkeypatch.chdir(tmp_path)
    assert [str(expand(p)) for p in ("~/a", "$DATA/b", "c/../d", "/x")] == [
        "/home/li/a", "/mnt/切片/b", str(tmp_path / "d"), "/x"]


# --- ranges ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("key", "bad", "bound"), [
    ("training.learning_rate", ["0", "-1e-4", "inf", "nan"], "above 0"),
    ("training.epochs", ["0", "-3"], "at least 1"), ("training.batch_size", ["0", "-1"], "at least 1"),
    ("training.workers", ["-1", "257"], "at least 0 and at most 256"), ("training.seed", ["-1", "4294967296"], "at least 0"),
    ("training.grad_clip_norm", ["0", "-1", "inf"], "above 0"), ("training.accum_freq", ["0"], "at least 1"),
    ("training.weight_decay", ["-0.1", "nan"], "at least 0"), ("training.warmup", ["-1", "1e999"], "at least 0"),
    ("training.save_every", ["-1"], "at least 0"), ("data.val_split", ["-0.1", "1", "1.5", "nan"], "at least 0 and at most 0.9"),
    ("data.max_seq_len", ["3", "0"], "at least 4"), ("data.max_tiles", ["0"], "at least 1"),
    ("data.image_dim", ["0"], "at least 1"), ("data.max_bad_fraction", ["-0.1", "1.1"], "at least 0 and at most 1"),
    ("model.dim", ["0"], "at least 1"), ("model.caption_loss_weight", ["-1", "inf"], "at least 0"),
])
def test_C06_a_number_out_of_range_is_refused_with_key_value_and_range(key, bad, bound):
    for value in bad:
        with refused("--set", key, f"it must be {bound}"):
            apply_overrides(Config(), [f"{key}={value}"])


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", ".NaN"])
def test_C06_the_infinities_of_yaml_are_refused(load, value):
    with refused("my.yaml:1", "training.learning_rate"):
        load(f"training: {{learning_rate: {value}}}")


WINDOWS = [r"D:\data\labels.xlsx", r"D:\new\table.csv", r"C:\Users\me", r"D:\xray", r"D:\Lab", r"D:\Notes", r"D:\a\b", r"D:\_x", r"D:\0"]


@pytest.mark.parametrize("path", WINDOWS)
def test_a_windows_path_in_double_quotes_is_explained(load, path):
    with refused(":2", "in double quotes \\ begins an escape", "single quotes", "or with /"):
        load(f'data:\n  labels_file: "{path}"\n')
    for written in (path, f"'{path}'", '"' + path.replace("\\", "\\\\") + '"', '"' + path.replace("\\", "/") + '"'):
        assert load(f"data:\n  labels_file: {written}\n").data.labels_file in (path, path.replace("\\", "/"))


@pytest.mark.parametrize(("pairs", "words"), [
    (["data.embeddings_dir="], ["--set", "data.embeddings_dir is empty"]),
    (["training.epochs"], ["--set", "'training.epochs' has no '='"]),
    (["training.learning_rate＝1e-3"], ["--set", "full-width equals sign (＝)", "write --set training.learning_rate=1e-3"]),
    (["training.epochs：5"], ["--set", "full-width colon (：)", "write --set training.epochs=5"]),
    (["training.epochs: 5"], ["--set", "has a colon in place of '='", "write --set training.epochs=5"]),
    (["=5"], ["--set", "unknown section"]),
    (["training=5"], ["training is a section", "training.KEY=VALUE", "epochs"]),
    (["training.epochs.x=5"], ["unknown key", "epochs.x"]), (["__class__.x=1"], ["unknown section: __class__"]),
    (["training.__class__=1"], ["unknown key", "__class__"]), (["to_dict.x=1"], ["unknown section: to_dict"]),
])
def test_a_bad_override_is_refused(pairs, words):
    with refused(*words):
        apply_overrides(Config(), pairs)


def complete(**keys: str) -> Config:
    pairs = [f"{k.replace('__', '.')}={v}" for k, v in keys.items()]
    return apply_overrides(Config(), ["data.embeddings_dir=e", "data.labels_file=l", *pairs])


def test_check_returns_a_good_config():
    config = complete()
    assert config.check("c.yaml") is config
    complete(training__batch_size="1", model__contrastive_loss_weight="0").check("c.yaml")


@pytest.mark.parametrize(("config", "words"), [
    pytest.param(Config(), ["data.embeddings_dir is not set", "--embeddings_dir"], id="C08 no data"),
    pytest.param(complete(training__batch_size="1"), ["batch_size is 1", "contrastive"], id="N04 batch of one"),
    pytest.param(complete(model__caption_loss_weight="0", model__contrastive_loss_weight="0"), ["both loss weights are 0"],
                 id="C06 no loss"),
    pytest.param(complete(model__dim_head="63"), ["model.dim_head is 63", "even"], id="C09 odd head"),
])
def test_what_does_not_go_together_is_refused(config, words):
    with refused("c.yaml", *words):
        config.check("c.yaml")


# --- the config in the run folder and in the checkpoint --------------------------------------------------------------

def odd_config() -> Config:
    return apply_overrides(Config(), [
        "data.embeddings_dir=中文/切片: 一 #x", "data.labels_file=1e-4", "data.h5_key=yes", "prism.revision=0123456",
        "training.output_dir= - a", "training.log_dir=\"q'", "training.learning_rate=3.3e-5", "data.max_tiles=9",
        "training.weight_decay=0", "prism.freeze=false", "training.grad_clip_norm=null", "training.warmup=1e20"])


def test_the_resolved_config_reads_back_as_it_was(load):
    for config in (Config(), odd_config()):
        assert load(dump_yaml(config)) == config
    config = Config()
    config.data.h5_key = "null"
    assert load(dump_yaml(config)).data.h5_key == "null"


def test_the_resolved_config_means_the_same_to_any_yaml_reader():
    for config in (Config(), odd_config()):
        assert yaml.safe_load(dump_yaml(config)) == config.to_dict()


def test_a_checkpoint_gives_its_config_back():
    assert from_dict(odd_config().to_dict(), "c.pth") == odd_config()


def test_a_checkpoint_with_another_schema_is_refused():
    with refused("c.pth", "unknown key", "zzz"):
        from_dict({"training": {"zzz": 1}}, "c.pth")
    with refused("c.pth", "training.epochs is '1.5'"):
        from_dict({"training": {"epochs": 1.5}}, "c.pth")


def test_floats_keep_their_last_bit_through_yaml_and_override(load):
    rng = random.Random(0)
    for _ in range(20):
        rate = math.exp(rng.uniform(-20, 3))
        config = apply_overrides(Config(), [f"training.learning_rate={rate!r}"])
        assert config.training.learning_rate == load(dump_yaml(config)).training.learning_rate == rate


# --- flags -----------------------------------------------------------------------------------------------------------

FLAG_VALUES = {"--embeddings_dir": "切片 dir", "--labels_file": "l.json", "--output_dir": "out", "--batch_size": "3",
               "--epochs": "9", "--lr": "1e-4", "--max_seq_len": "77", "--val_split": ".2", "--save_every": "0",
               "--prism": "random-tiny"}


def test_flags_yaml_and_set_with_equal_values_give_an_equal_config(load):
    assert list(FLAG_VALUES) == list(TRAIN_FLAGS), "a new flag needs a value here"
    by_flags = config_from_flags(train_args(*(part for pair in FLAG_VALUES.items() for part in pair)))
    text = ""
    for section in ("data", "prism", "training"):
        text += f"{section}:\n"
        for flag, key in TRAIN_FLAGS.items():
            text += f"  {key.split('.')[1]}: {FLAG_VALUES[flag]}\n" if key.startswith(section + ".") else ""
    by_set = apply_overrides(Config(), [f"{key}={FLAG_VALUES[flag]}" for flag, key in TRAIN_FLAGS.items()])
    assert by_flags == load(text) == by_set
    assert dataclasses.asdict(by_flags.training)["learning_rate"] == 1e-4 and by_flags.data.val_split == 0.2


def test_the_flags_are_the_ones_users_know():
    assert set(TRAIN_FLAGS) == {"--embeddings_dir", "--labels_file", "--output_dir", "--batch_size", "--epochs", "--lr",
                                "--max_seq_len", "--val_split", "--save_every", "--prism"}


def test_set_wins_over_a_flag_and_dashes_are_fine():
    args = train_args("--embeddings-dir", "e", "--labels-file=l-1", "--batch-size", "2", "--resume", "auto",
                      "--set", "training.batch_size=5", "model.dim=64", "--set", "training.seed=1")
    assert changes(config_from_flags(args)) == {"data.embeddings_dir": "e", "data.labels_file": "l-1", "model.dim": 64,
                                                "training.batch_size": 5, "training.seed": 1}
    assert args.resume == "auto"


@pytest.mark.parametrize(("args", "words"), [
    pytest.param([], ["train_finetune.py", "required", "--embeddings_dir", "--help"], id="nothing given"),
    *(pytest.param(["--embeddings_dir", "e", "--labels_file", "l", *flag.split()], ["unrecognized", f"{hint} (see python"], id=f"unknown flag {flag}")
      for flag, hint in (("--learning_rate 1e-4", "write --lr 1e-4"), ("--learning-rte=1e-4", "write --lr 1e-4"), ("--seed 3", "write --set training.seed=3"),
                         ("--check --learning_rate 1e-3", "--check is a flag of train_with_config.py, write --lr 1e-3"),
                         ("--zzz --seed --learning_rate=-1", "write --set training.seed=VALUE, write --lr -1"),
                         ("--weigth_decay", "write --set training.weight_decay=VALUE"), ("--batchsize 4", "did you mean --batch_size?"))),
    pytest.param(["--config", "c.yaml"], ["required: --embeddings_dir", "--config is a flag of train_with_config.py"], id="a flag of the other script alone"),
    pytest.param(["--embeddings_dir", "e", "--labels_file", "l", "--zzz", "1"], ["--zzz 1; see python"], id="a flag like no other"),
    pytest.param(["--embeddings_dir", "e", "--labels_file", "l", "--lr", "fast"], ["--lr", "'fast'", "such as 1e-4"],
                 id="C06 no number"),
    pytest.param(["--embeddings_dir", "e", "--labels_file", "l", "--lr", "-1"], ["--lr", "above 0"], id="C06 negative"),
    pytest.param(["--embeddings_dir", "e", "--labels_file", "l", "--epochs", "2.5"], ["--epochs", "'2.5'"],
                 id="C06 half an epoch"),
    pytest.param(["--embeddings_dir", "e", "--labels_file", "l", "--epochs"], ["train_finetune.py", "--epochs"],
                 id="no value"),
])
def test_a_bad_flag_is_one_line_that_names_it(args, words):
    with refused(*words):
        config_from_flags(train_args(*args))


def test_help_gives_meaning_and_default_of_each_flag(capsys):
    with pytest.raises(SystemExit) as ended:
        train_args("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0
    for flag, key in TRAIN_FLAGS.items():
        section, name = key.split(".")
        field = type(getattr(Config(), section)).__dataclass_fields__[name]
        assert f"{flag} " in text and field.metadata["help"] in text
        assert not field.default or f"(default {field.default})" in text


def test_a_number_may_be_replaced_by_a_choice():
    config = Config()
    config.set("training.batch_size", "auto", "--set")
    assert config.training.batch_size == "auto"
    assert from_dict(config.to_dict(), "x.pth").training.batch_size == "auto"
    for bad in ("Auto", "all", "null", "4.5"):
        with refused("training.batch_size", "a whole number such as 8 or auto"):
            config.set("training.batch_size", bad, "--set")
    with refused("training.batch_size is empty"):
        config.set("training.batch_size", None, "--set")


@pytest.mark.parametrize(("more", "world", "good"), [({}, "1", False), ({}, "2", True), ({"training__accum_freq": "2"}, "1", True)])
def test_N04_a_batch_of_one_is_refused_only_where_it_is_the_whole_step(more, world, good, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", world)
    config = complete(training__batch_size="1", **more)
    if good:
        config.check("c.yaml")
    else:
        with refused("batch_size is 1"):
            config.check("c.yaml")


@pytest.mark.parametrize("key", ["compile", "grad_checkpointing"])
def test_what_only_coca_can_is_refused_for_prisms_decoder(key):
    with refused("for model.decoder=coca"):
        complete(model__decoder="prism", **{f"training__{key}": "true"}).check("c.yaml")
