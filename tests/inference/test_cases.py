"""Which files are captioned: by labels that name them in another way, by the pattern of the training, by split."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from finetune.config.schema import Config
from finetune.data.labels import Label
from finetune.inference.cases import select_slides
from finetune.inference.options import InferenceOptions
from tests.helpers.files import refused


def chosen(root: Path, labels: dict[str, Label] | None = None, *, pattern: str | None = None, val: tuple[str, ...] = ()) -> dict[str, list[list[str]]]:
    """{id: names of the files of each slide}."""
    config = Config()
    config.data.case_pattern = pattern
    captioner = SimpleNamespace(held_out={"val": list(val)}, config=config)
    options = InferenceOptions(embeddings_dir=str(root), split="val" if val else "all", labels_file="l.json" if labels else None)
    return {case_id: [[Path(path).relative_to(root).as_posix() for path in paths] for paths in slides]
            for case_id, slides in select_slides(captioner, options, labels).items()}


@pytest.fixture
def root(tmp_path) -> Path:
    for name in ("A/s.h5", "B/s.h5", "P1-a.h5", "P1-b.h5", "x.svs.h5"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_labels_that_name_files_in_another_way_are_captioned_under_their_own_ids(root, log_lines):
    labels = {"x.ndpi": Label(("t",), ("x.ndpi",)), "c": Label(("t",), ("D/A/s.tif", "P1-a")), "gone": Label(("t",), ("gone",))}
    assert chosen(root, labels) == {"x.ndpi": [["x.svs.h5"]], "c": [["A/s.h5"], ["P1-a.h5"]]}
    assert any("1 of 3 labels have no H5 file and are left out, such as gone" in line for line in log_lines)


def test_a_name_of_several_files_becomes_a_record_with_an_error(root):
    assert sorted(chosen(root, {"s": Label(("t",), ("s",))})["s"][0]) == ["A/s.h5", "B/s.h5"]


def test_without_labels_files_of_one_name_have_their_path_as_id(root):
    assert chosen(root) == {"A/s": [["A/s.h5"]], "B/s": [["B/s.h5"]], "P1-a": [["P1-a.h5"]], "P1-b": [["P1-b.h5"]], "x.svs": [["x.svs.h5"]]}


def test_no_file_is_lost_where_names_are_the_same_down_to_the_folder(tmp_path):
    for name in ("s.h5", "s.hdf5", "t.h5", "P1-a.h5", "P1.h5"):
        (tmp_path / name).touch()
    assert chosen(tmp_path)["s"] == [["s.h5", "s.hdf5"]]  # opened as one slide: a record with an error
    cases = chosen(tmp_path, pattern=r"^(P\d)-")
    assert sorted(name for slides in cases.values() for paths in slides for name in paths) == sorted(
        ["s.h5", "s.hdf5", "t.h5", "P1-a.h5", "P1.h5"])


def test_the_pattern_of_the_training_joins_slides_without_labels(root):
    assert chosen(root, pattern=r"^(P\d)-") == {"P1": [["P1-a.h5"], ["P1-b.h5"]], "A/s": [["A/s.h5"]], "B/s": [["B/s.h5"]], "x.svs": [["x.svs.h5"]]}
    assert chosen(root, pattern=r"^(P\d)-", val=("P1",)) == {"P1": [["P1-a.h5"], ["P1-b.h5"]]}


def test_held_out_ids_find_the_files_that_they_had_in_training(root):
    assert chosen(root, val=("x.ndpi", "A/s")) == {"A/s": [["A/s.h5"]], "x.ndpi": [["x.svs.h5"]]}
    with refused("no slide to caption"):
        chosen(root, val=("other",))
