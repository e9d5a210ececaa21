"""Names of slides in labels and the files they mean: matched when unique and logged, else shown beside what was meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.config.schema import DataConfig
from finetune.data.case_slides import join_cases
from finetune.data.labels import Label
from finetune.data.prepare import prepare_data
from finetune.data.slide_matching import match_slides
from finetune.data.slides import find_files
from tests.helpers.files import refused, write_json, write_slides

UUID = "F6E9A5DF-D8FB-45CF-B4BD-C6B76294C291"
SLIDE = "TCGA-3C-AALI-01Z-00-DX1"


def folder(tmp_path: Path, *names: str) -> Path:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def match(root: Path, *names: str) -> tuple[dict[str, str], dict[str, str]]:
    """({name: path below the root}, {name: problem and fix})."""
    matches = match_slides(names, find_files(root), root)
    return ({name: Path(path).relative_to(root).as_posix() for name, path in matches.paths.items()},
            {name: f"{problem.what}; {problem.fix}" for name, problem in matches.problems.items()})


@pytest.mark.parametrize(("name", "file"), [
    ("x.svs", "x.h5"), ("x.SVS", "x.h5"), ("x", "x.svs.h5"), ("x", "x.ndpi.h5"), ("x.ome.tiff", "x.h5"), ("x.sdpc", "x.pt"), ("x.kfb", "x.h5"),
    ("x.mrxs", "x.hdf5"), ("x.qptiff", "x.h5"), ("x.dcm", "x.h5"), ("x.scn", "x.h5"), ("x.bif", "x.h5"), ("x.vms", "x.h5"), ("切片 1.tif", "切片 1.h5"),
    ("123.0", "123.h5"), ("123", "123.0.h5"), ("00123", "123.h5"), ("123", "000123.h5"), ("123.0", "00123.h5"), ("123.svs", "0123.h5"),
    (SLIDE, f"{SLIDE}.{UUID}.h5"), (f"{SLIDE}.svs", f"{SLIDE}.{UUID}.h5"), (f"{SLIDE}.{UUID}", f"{SLIDE}.h5"), (f"{SLIDE}.{UUID.lower()}.svs", f"{SLIDE}.h5"),
    ("slides/a/x.svs", "x.h5"), ("D:/扫描/x.tif", "sub/x.h5"), ("caseB/x.svs", "x.h5")])
def test_a_name_that_can_mean_one_file_is_matched_and_logged(tmp_path, log_lines, name, file):
    paths, problems = match(folder(tmp_path, file, "other.h5", "TCGA-3C-AALI-01Z-00-DX2.h5", "1234.h5"), name)
    assert paths == {name: file} and not problems
    assert sum(line.startswith("1 slides are matched") and name in line and Path(file).name in line for line in log_lines) == 1


def test_a_name_as_it_is_wins_and_says_nothing(tmp_path, log_lines):
    root = folder(tmp_path, "x.h5", "x.svs.h5", "123.h5", "0123.h5", "123.0.h5")
    names = ["x", "x.svs", "123", "0123", "123.0"]
    assert match(root, *names) == ({name: f"{name}.h5" for name in names}, {}) and not log_lines


def test_equal_names_in_the_folders_of_cases_are_told_apart_by_the_path(tmp_path):
    root = folder(tmp_path, "caseA/slide_1.h5", "caseB/slide_1.h5", "caseB/slide_2.h5", "deep/caseA/slide_2.h5")
    names = {"caseA/slide_1": "caseA/slide_1.h5", "data/caseB/slide_1.svs": "caseB/slide_1.h5", "caseB/slide_2.tif": "caseB/slide_2.h5",
             "deep/caseA/slide_2": "deep/caseA/slide_2.h5"}
    assert match(root, *names) == (names, {})
    _, problems = match(root, "slide_1", "caseC/slide_1")
    assert set(problems) == {"slide_1", "caseC/slide_1"}
    for problem in problems.values():
        assert problem == '2 files have this name: caseA/slide_1, caseB/slide_1; name it with its folder: "slides": ["caseA/slide_1"]'


@pytest.mark.parametrize(("files", "names", "of_other"), [
    (("caseA/slide_1.h5", "caseB/slide_2.h5"), ("caseB/slide_1",), "caseB/slide_1"),  # caseB is there, without this slide
    (("caseA/slide_1.h5", "caseA/slide_3.h5", "caseB/slide_1.h5"), (r"D:\w\caseC\slide_3.svs",), r"D:\w\caseC\slide_3.svs"),  # slide_1 is in two
    (("caseA/slide_1.h5", "x.h5"), ("caseA/slide_1.svs", "caseB/slide_1.svs"), "caseB/slide_1.svs")])  # the labels have it in two
def test_the_file_of_another_patients_folder_is_never_taken(tmp_path, files, names, of_other):
    paths, problems = match(folder(tmp_path, *files), *names)
    assert set(problems) == {of_other} and set(paths) == set(names) - {of_other}
    assert "the only file of this name is in another folder: caseA/slide_" in problems[of_other]


def test_folders_of_scans_and_features_may_differ_where_names_do_not_repeat(tmp_path):
    root = folder(tmp_path, "2023/P1.h5", "2024/P2.h5", "2024/P3.svs.h5")
    names = {r"D:\scan\a\P1.svs": "2023/P1.h5", "scan/b/P2.svs": "2024/P2.h5", "scan/P3": "2024/P3.svs.h5"}
    assert match(root, *names) == (names, {})


def test_features_of_two_encoders_ask_for_the_folder_of_one(tmp_path):
    root = folder(tmp_path, "20x/features_uni/x.h5", "20x/features_virchow/x.h5", "20x/patches/x_patches.h5")
    assert "give the folder of one tile encoder, such as features_uni" in match(root, "x")[1]["x"]


def test_two_names_never_get_one_file_by_a_difference(tmp_path):
    root = folder(tmp_path, "0123.h5", "x.h5")
    paths, problems = match(root, "0123", "123", "x.svs", "x.tif")
    assert paths == {"0123": "0123.h5"}
    assert "its file may be 0123, but that is the one of '0123'" in problems["123"]
    assert "the one of 'x.tif'" in problems["x.svs"] and "the one of 'x.svs'" in problems["x.tif"]


@pytest.mark.parametrize(("name", "words"), [
    ("P017", ['2 slides begin with it', '"slides": ["P017-1", "P017-2"] or set data.case_pattern']),
    ("P018", ["did you mean 'P018_HE'?"]), ("p019", ["did you mean 'P019'?"]), ("Ｐ０１９", ["did you mean 'P019'?"]), ("P01", ["did you mean"]),
    ("slide_abc_O1", ["did you mean 'slide_abc_01'?"]), ("2.3E+06", ["Excel has rounded the number", "format the column as text"]),
    ("zzzzzzzz", ["no H5 file of this name; add the file or remove its label"])])
def test_a_name_without_a_file_is_shown_beside_the_file_that_was_meant(tmp_path, name, words):
    root = folder(tmp_path, "P017-1.h5", "P017-2.h5", "P0171.h5", "P018_HE.h5", "P019.h5", "slide_abc_01.h5", "slide_abd_02.h5")
    paths, problems = match(root, name)
    assert not paths
    for word in words:
        assert word in problems[name]


def test_no_message_advises_to_remove_a_file(tmp_path):
    root = folder(tmp_path, "a/x.h5", "b/x.h5", "P-1.h5", "P-2.h5", "0123.h5")
    for problem in match(root, "x", "P", "123", "0123", "q")[1].values():
        assert not {"delete", "keep one"} & {problem[i:i + len(w)] for w in ("delete", "keep one") for i in range(len(problem))}


def test_a_hundred_thousand_names_are_matched_in_seconds(tmp_path):
    import time

    files = {f"TCGA-{i:06d}-x": [f"/d/TCGA-{i:06d}-x.h5"] for i in range(100_000)}
    names = [f"D:/w/TCGA-{i:06d}-x.svs" for i in range(100_000)]
    start = time.process_time()
    matches = match_slides(names, files, Path("/d"))
    assert len(matches.paths) == 100_000 and time.process_time() - start < 20


# --- the slides of a case --------------------------------------------------------------------------------------------

def joined(root: Path, pattern: str | None, **slides: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    labels = {case_id: Label(("x",), names or (case_id,)) for case_id, names in slides.items()}
    return {case_id: label.slides for case_id, label in join_cases(labels, find_files(root), root, pattern).items()}


def test_a_pattern_joins_the_slides_of_a_case_by_their_names(tmp_path, log_lines):
    root = folder(tmp_path, "P1-a.h5", "P1-b.h5", "sub/P1-c.svs.h5", "P2-a.h5", "Q3.h5")
    assert joined(root, r"(P\d)-", P1=(), P2=(), Q3=(), P9=("P2-a", "Q3")) == {
        "P1": ("P1-a", "P1-b", "sub/P1-c.svs"), "P2": ("P2-a",), "Q3": ("Q3",), "P9": ("P2-a", "Q3")}, "named slides stay"
    assert any("data.case_pattern joins 4 slides to 2 cases, such as P1" in line for line in log_lines)


def test_a_pattern_may_look_at_the_folder(tmp_path):
    root = folder(tmp_path, "case_1/slide_HE_0.h5", "case_1/slide_HE_1.h5", "case_2/slide_HE_0.h5")
    assert joined(root, "^([^/]+)/", case_1=(), case_2=()) == {"case_1": ("case_1/slide_HE_0", "case_1/slide_HE_1"), "case_2": ("case_2/slide_HE_0",)}


def test_a_pattern_that_fits_nothing_or_is_none_says_so(tmp_path):
    root = folder(tmp_path, "P1-a.h5")
    with refused("data.case_pattern", "finds cases such as 'P1', the labels have ids such as 'X1'"):
        joined(root, r"(P\d)", X1=())
    with refused("data.case_pattern", "finds no case in any file name"):
        joined(root, r"(Q\d)", X1=())
    with refused("data.case_pattern", "is not a regular expression"):
        joined(root, "(", P1=())


def test_a_case_that_is_a_folder_has_the_files_in_it(tmp_path, log_lines):
    root = folder(tmp_path, "breast/case_1/slide_0.h5", "breast/case_1/slide_1.h5", "skin/case_1/slide_0.h5", "skin/case_2/slide_0.h5", "x.h5")
    assert joined(root, None, case_2=(), x=(), a=("histai/breast/case_1",), case_1=()) == {
        "case_2": ("skin/case_2/slide_0",), "x": ("x",), "a": ("breast/case_1/slide_0", "breast/case_1/slide_1"), "case_1": ("case_1",)}
    assert any("the folders of cases join 3 slides to 2 cases" in line for line in log_lines)


def test_a_case_of_this_number_of_another_organ_is_not_joined(tmp_path):
    root = folder(tmp_path, "skin/case_7/slide_0.h5", "breast/case_8/slide_0.h5")
    assert joined(root, None, a=("histai/breast/case_7",), b=("histai/breast/case_8",)) == {
        "a": ("histai/breast/case_7",), "b": ("breast/case_8/slide_0",)}


# --- from the labels to samples --------------------------------------------------------------------------------------

def test_training_reads_the_files_that_the_labels_mean(tmp_path, log_lines):
    sizes = {"caseA/s": 3, "caseB/s": 4, "007": 5, f"{SLIDE}.{UUID}": 6, "x": 7, "P1-1": 8, "P1-2": 9, "spare": 1}
    write_slides(tmp_path / "h5", sizes)
    write_json(tmp_path / "l.json", {"A": {"text": "胃癌", "slides": [r"D:\w\caseA\s.svs"]}, "B": {"text": "肠癌", "slides": ["caseB/s"]},
                                     "7.0": "胃癌", f"{SLIDE}.svs": "肠癌", "x.ndpi": "胃癌", "P1": "肠癌"})
    config = DataConfig(embeddings_dir=str(tmp_path / "h5"), labels_file=str(tmp_path / "l.json"), image_dim=6, val_split=0.2)
    with refused("P1", "2 slides begin with it"):
        prepare_data(config, 42)
    config.case_pattern = r"^(P\d)-"
    data = prepare_data(config, 42)
    assert {slide.slide_id: [part.num_tiles for part in slide.parts] for slide in data.slides} == {
        "A": [3], "B": [4], "7.0": [5], f"{SLIDE}.svs": [6], "x.ndpi": [7], "P1": [8, 9]}
    assert any(line.startswith("1 H5 files have no label: spare") for line in log_lines)


def test_the_same_data_under_other_names_is_the_same_data(tmp_path):
    """A run may be resumed with labels that name the files in another way."""
    write_slides(tmp_path / "h5", {f"s{i}": i + 1 for i in range(10)})
    fingerprints = set()
    for name in ("s{}", "x/s{}.svs", "s{}.tif"):
        write_json(tmp_path / "l.json", {f"c{i}": {"text": f"胃癌{i}", "slides": [name.format(i)]} for i in range(10)})
        config = DataConfig(embeddings_dir=str(tmp_path / "h5"), labels_file=str(tmp_path / "l.json"), image_dim=6)
        fingerprints.add(prepare_data(config, 42).fingerprint)
    assert len(fingerprints) == 1
