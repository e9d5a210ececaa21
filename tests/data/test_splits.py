"""Splits: partitions, by patient, named, in folds; texts on both sides. Reference: plain loops."""

from __future__ import annotations

import contextlib
import random
import time
from itertools import pairwise

import pytest

from finetune.config.schema import DataConfig
from finetune.data import splits
from finetune.data.columns import ColumnNames
from finetune.data.kept_results import KeptResults
from finetune.data.labels import Label, load_labels
from finetune.data.near_duplicates import count_overlap
from finetune.data.related_ids import related_pairs
from finetune.data.splits import make_split, patients, read_split_file, report_split, split_fold, split_ids
from tests.helpers.files import refused, write_json
from tests.helpers.tables import write_csv


def test_the_split_is_a_partition_of_the_asked_size():
    ids = [f"s{i}" for i in range(37)]
    for share, count in [(0, 0), (0.1, 4), (0.25, 9), (0.5, 18), (0.9, 33)]:
        train, val = split_ids(ids, share, 42)
        assert len(val) == count and sorted(train + val) == sorted(ids)


def test_the_split_does_not_depend_on_the_order_in_the_file():
    ids = [f"切片{i}" for i in range(50)]
    expected = split_ids(ids, 0.2, 7)
    assert split_ids(ids[::-1], 0.2, 7) == split_ids(sorted(ids), 0.2, 7) == expected
    assert split_ids(ids, 0.2, 8) != expected


def test_the_split_never_changes_between_versions():
    # Fisher-Yates from the end, as random.shuffle documents it, over Mersenne Twister draws
    order, rng = [f"s{i}" for i in range(8)], random.Random(42)
    for i in range(7, 0, -1):
        j = rng._randbelow(i + 1)
        order[i], order[j] = order[j], order[i]
    assert split_ids([f"s{i}" for i in range(8)], 0.25, 42) == (order[2:], order[:2])
    assert order[:2] == ["s3", "s4"], "golden value: runs split with it exist"


@pytest.mark.parametrize(("count", "share"), [(3, 0.1), (1, 0.5), (1, 0.9), (4, 0.9), (5, 0.1), (0, 0.1)])
def test_C07_a_split_that_leaves_a_side_empty_is_refused(count, share):
    with refused("data.val_split", f"{share:g} of {count} slides"):
        split_ids([str(i) for i in range(count)], share, 42)


# --- by patient ------------------------------------------------------------------------------------------------------

TCGA = r"^TCGA-\w\w-\w{4}"
SLIDES = [f"TCGA-AB-{p:04d}-01Z-00-DX{s}" for p in range(40) for s in range(1 + p % 4)]  # 100 slides of 40 patients


def labelled(ids, **sides: str) -> dict[str, Label]:
    return {i: Label((f"text of {i}",), (i,), sides.get(i)) for i in ids}


def test_a_patient_is_on_one_side_only_and_the_share_is_of_slides():
    groups = patients(SLIDES, TCGA)
    assert groups[SLIDES[-1]] == "TCGA-AB-0039" and len(set(groups.values())) == 40
    for share in (0.1, 0.33, 0.8):
        train, val = split_ids(SLIDES, share, 42, groups)
        assert sorted(train + val) == sorted(SLIDES) and not {i[:12] for i in train} & {i[:12] for i in val}
        assert 0 <= len(val) - share * 100 < 4
    assert split_ids(SLIDES[::-1], 0.1, 42, groups) == split_ids(SLIDES, 0.1, 42, groups)


@pytest.mark.parametrize("how", ["val_split", "folds", "labels"])
def test_slides_of_a_patient_are_not_neighbours_in_validation(how):
    """Validation is not shuffled: its batches of one patient's slides would have no negatives, and exchanged slides of
    the same text no other loss."""
    ids = [f"p{i // 10}-{i % 10}" for i in range(100)]
    labels = labelled(ids, **({i: "val" if i < "p4" else "train" for i in ids} if how == "labels" else {}))
    config = DataConfig(group_pattern=r"^p\d", val_split=0.4, folds=3 if how == "folds" else None)
    val = make_split(labels, config, 42).val
    neighbours = sum(a[:2] == b[:2] for a, b in pairwise(val))
    assert len(val) >= 30 and len({i[:2] for i in val}) * 10 == len(val) and neighbours < len(val) / 2
    assert val == make_split(labels, config, 42).val


def test_the_first_group_of_the_pattern_is_the_patient():
    assert patients(["a_1_x", "a_2_x"], r"^(\w)_") == {"a_1_x": "a", "a_2_x": "a"}
    with refused("data.group_pattern", "finds no patient in 1 of 2 ids, such as 'b'"):
        patients(["a_1", "b"], "^(a)_")
    with refused("data.group_pattern", "not a regular expression"):
        patients(["a"], "(")


def test_folds_are_a_partition_of_similar_size_and_never_divide_a_patient():
    groups = patients(SLIDES, TCGA)
    folds = [split_fold(SLIDES, 5, fold, 42, groups) for fold in range(5)]
    assert sorted(i for _, val in folds for i in val) == sorted(SLIDES)
    for train, val in folds:
        assert sorted(train + val) == sorted(SLIDES) and not {i[:12] for i in train} & {i[:12] for i in val}
        assert 19 <= len(val) <= 21
    with refused("data.fold", "fold 5 of 5 folds"):
        split_fold(SLIDES, 5, 5, 42)
    with refused("data.fold", "3 folds of 2 patients"):
        split_fold(["a", "b"], 3, 0, 42)


def test_a_split_file_or_the_labels_name_the_sides(tmp_path):
    sides = {"a": "train", "b": "val", "c": "test", "d": "train"}
    (tmp_path / "s.csv").write_text("id,split,x\n" + "".join(f"{i}.h5,{s},1\n" for i, s in sides.items()), encoding="utf-8-sig")
    write_json(tmp_path / "s.json", sides)
    for config, labels in [(DataConfig(split_file=str(tmp_path / "s.csv")), labelled("abcd", a="test")),
                           (DataConfig(split_file=str(tmp_path / "s.json")), labelled("abcd")),
                           (DataConfig(), labelled("abcd", **sides))]:
        split = make_split(labels, config, 42)
        assert (split.train, split.val, split.test) == (["a", "d"], ["b"], ["c"])


def test_without_named_validation_it_is_drawn_from_training_and_never_from_the_test():
    labels = labelled(SLIDES, **{i: "test" if n < 20 else "train" for n, i in enumerate(SLIDES)})
    for changes in ({"val_split": 0.25}, {"folds": 4, "fold": 2}):
        split = make_split(labels, DataConfig(**changes), 42)
        assert sorted(split.test) == sorted(SLIDES[:20]) and len(split.val) == 20 and len(split.train) == 60


@pytest.mark.parametrize(("sides", "changes", "words"), [
    ({"a1": "train", "a2": "val", "b1": "train"}, {"group_pattern": "^."}, ["patient 'a'", "in training and in validation"]),
    ({"a1": "train", "a2": "test", "b1": "val"}, {"group_pattern": "^."}, ["patient 'a'", "and in test"]),
    ({"a1": "train", "a2": "val"}, {}, ["no split for 1 of 3 cases", "'b1'"]),
    ({"a1": "train", "a2": "val", "b1": "val"}, {"folds": 2}, ["data.folds", "2 validation cases are given"]),
])
def test_a_split_that_leaks_or_contradicts_itself_is_refused(sides, changes, words):
    with refused(*words):
        make_split(labelled(["a1", "a2", "b1"], **sides), DataConfig(**changes), 42)


@pytest.mark.parametrize(("name", "content", "words"), [
    ("s.json", "[1]", ["cannot be read", "JSON object"]), ("s.json", "{", ["cannot be read"]), ("s.csv", "a,b\n1,2\n", ["cannot be read"]),
    ("s.json", '{"a": "dev"}', ["'a' is in 'dev'"]), ("s.json", '{"a": "val", "a.h5": "train"}', ["'a' appears twice"]),
    ("s.json", '{"a": 1}', ["'a' is in '1'"]), ("s.csv", "", ["no"])])
def test_an_unusable_split_file_is_refused(tmp_path, name, content, words):
    (tmp_path / name).write_text(content, encoding="utf-8")
    if content:
        with refused(name, *words):
            read_split_file(str(tmp_path / name))
    with refused("gone.json", "No such file"):
        read_split_file(str(tmp_path / "gone.json"))


# --- texts on both sides ---------------------------------------------------------------------------------------------

def brute_force(texts: list[str], trained: list[str]) -> tuple[int, int]:
    def grams(text: str) -> set[str]:
        text = "".join(c for c in text.lower() if c.isalnum())
        return {text[i:i + 3] for i in range(len(text) - 2)}

    exact = [any("".join(filter(str.isalnum, t.lower())) == "".join(filter(str.isalnum, u.lower())) for u in trained) for t in texts]
    near = [not e and any(len(grams(t) & grams(u)) >= 0.8 * len(grams(t) | grams(u)) for u in trained)
            for t, e in zip(texts, exact, strict=True)]
    return sum(exact), sum(near)


def test_equal_and_near_texts_are_those_that_brute_force_finds():
    rng = random.Random(0)
    words = ["adenocarcinoma", "stomach", "grade", "poorly", "well", "tubular", "signet", "ring", "mucosa", "of", "the", "with"]
    trained = [" ".join(rng.choices(words, k=rng.randint(4, 20))) for _ in range(150)]
    texts = [rng.choice(trained).upper() + "." for _ in range(10)]
    for _ in range(60):  # a word of a training text changed: near if it was long enough
        changed = rng.choice(trained).split()
        changed[rng.randrange(len(changed))] = rng.choice(words)
        texts.append(" ".join(changed))
    texts += [" ".join(rng.choices(words, k=12)) for _ in range(20)]
    equal, near = brute_force(texts, trained)
    assert count_overlap(texts, trained) == (equal, near) and equal >= 10 and 10 < near < 60


def test_width_case_blanks_and_punctuation_make_no_other_text_but_a_plus_does():
    assert count_overlap(["胃腺癌，ＨＥＲ２（３＋）。"], ["胃腺癌 her2 (3+)"]) == (1, 0)
    assert count_overlap(["HER2 (3-)"], ["HER2 (3+)"])[0] == 0
    assert count_overlap(["", "a"], ["", "b"]) == (0, 0)


def test_ten_thousand_templates_are_compared_in_bounded_time_and_what_was_copied_is_found():
    rng = random.Random(0)
    places, kinds = ["胃窦", "胃体", "贲门", "直肠", "乙状结肠"], ["管状腺癌", "印戒细胞癌", "黏液腺癌"]
    texts = [f"（{rng.choice(places)}）{rng.choice(kinds)}，大小{rng.random() * 9:.2f}×{rng.random() * 9:.2f}cm，浸润至"
             f"{rng.choice(['黏膜下层', '固有肌层', '浆膜层'])}，淋巴结{rng.randint(0, 30)}/{rng.randint(0, 40)}" for _ in range(10_000)]
    copied = [text + "，见脉管癌栓" for text in texts[5000:5100]]
    began = time.perf_counter()
    equal, near = count_overlap(texts[:1000] + copied, texts[1000:])
    assert time.perf_counter() - began < 15, "takes 2 s; comparing all pairs takes minutes"
    assert equal == 0 and 95 <= near < 120


@pytest.mark.parametrize(("first", "second", "pairs"), [
    (["P001_1", "P002_1"], ["P001_2", "P003_1"], [("P001_1", "P001_2")]),
    (["P001-A", "P002-A"], ["P001-B"], [("P001-A", "P001-B")]),
    (["slide_003a"], ["slide_003b", "slide_004a"], [("slide_003a", "slide_003b")]),
    (["slide_001", "slide_003"], ["slide_002"], []),
    (["1001", "1003"], ["1002"], []),
    ([f"2023-{n}" for n in range(0, 20, 2)], [f"2023-{n}" for n in range(1, 20, 2)], []),
    (["region_004", "region_007"], ["region_005", "region_010"], [("region_004", "region_005")]),
], ids=["number", "letter", "no separator", "running numbers", "only numbers", "years", "regions"])
def test_ids_that_may_belong_together(first, second, pairs):
    assert related_pairs(first, second) == pairs


def test_the_log_warns_of_ids_that_may_be_of_one_patient(log_lines):
    labels = {f"P{n // 2:03d}_{n % 2}": Label((f"text {n}",), (f"{n}",)) for n in range(40)}
    config = DataConfig(val_split=0.3)
    report_split(labels, make_split(labels, config, 42), config, KeptResults(None))
    assert any("may be of one patient or region" in line and "data.group_pattern" in line for line in log_lines)
    log_lines.clear()
    config.group_pattern = r"^P\d+"
    report_split(labels, make_split(labels, config, 42), config, KeptResults(None))
    assert not any("may be of one patient" in line for line in log_lines)


@pytest.mark.parametrize("counts", [[-7, 3], [3, -1], [999_999_999, 0], [30, 30], [True, 0], [1.0, 0], [1], "11", None])
def test_A07_counts_that_cannot_be_true_are_counted_again(counts, tmp_path, log_lines, monkeypatch):
    config, path = DataConfig(val_split=0.3), tmp_path / "kept.json"
    labels = {i: Label((f"{i} {n} {n * n}",), (i,)) for n, i in enumerate(SLIDES)}
    split = make_split(labels, config, 42)
    with monkeypatch.context() as wrong:
        wrong.setattr(splits, "count_overlap", lambda *_: counts)
        with contextlib.suppress(TypeError, ValueError):  # what is found is not doubted, but it is written first
            report_split(labels, split, config, KeptResults(path))
    log_lines.clear()
    report_split(labels, split, config, KeptResults(path))
    assert "0 of 30 validation texts also occur in training, word for word" in log_lines


def test_the_log_says_what_is_on_each_side_and_warns_of_leaks(log_lines):
    config = DataConfig(val_split=0.3)
    labels = {i: Label(("the same old long text of a report" + " again" * (n % 3 == 0),), (i, f"{i}b")) for n, i in enumerate(SLIDES)}
    report_split(labels, make_split(labels, config, 42), config, KeptResults(None))
    assert log_lines[0] == "training: 70 cases, 140 slides, 2 different texts"
    assert "30 of 30 validation texts also occur in training, word for word" in log_lines
    assert any("TCGA patients have slides in training and held out" in line and TCGA in line for line in log_lines)
    log_lines.clear()
    config.group_pattern = TCGA
    report_split(labels, make_split(labels, config, 42), config, KeptResults(None))
    assert log_lines[1].startswith("validation: ") and " patients, " in log_lines[1]
    assert not any("TCGA patients" in line for line in log_lines)
    labels = {i: Label((f"{i} the same old long text of a report of the stomach and more",), (i,)) for i in SLIDES}
    report_split(labels, make_split(labels, config, 42), config, KeptResults(None))
    assert any("validation texts are near duplicates of training texts" in line for line in log_lines)


@pytest.mark.parametrize("is_shared", [True, False])
def test_slides_of_one_pathology_number_on_two_sides_are_warned_of(tmp_path, log_lines, is_shared):
    rows = [["切片号", "病理号", "住院号", "病理诊断", "split"]]
    rows += [[f"x{n}q.svs", f"B{n // 2}" if is_shared else f"B{n}", "", f"text {n}", "val" if n % 4 == 1 else "train"] for n in range(40)]
    labels, problems = load_labels(write_csv(tmp_path / "t.csv", rows, "utf-8"), ColumnNames(id="切片号"))
    assert len(labels) == 40 and not problems
    config = DataConfig()
    report_split(labels, make_split(labels, config, 42), config, KeptResults(None))
    warned = [line for line in log_lines if "as labels in training" in line]
    assert len(warned) == is_shared
    if is_shared:  # 10 validation slides, each beside the training slide before it
        assert "10 held-out labels, such as x" in warned[0] and "have the same 病理号 as" in warned[0]
        assert "data.group_pattern or data.split_file" in warned[0] and "B0" not in warned[0]
