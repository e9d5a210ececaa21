"""Labels JSON: what is read, what is refused at once, what is a problem of one case."""

from __future__ import annotations

import json
import random

import pytest

from finetune.data.labels import Label, load_labels
from tests.helpers.files import refused, write_json

TEXT = "（胃窦）中分化腺癌，Lauren分型：肠型。"


def texts_of(path) -> tuple[dict[str, str], dict[str, str]]:
    """The labels as the plain form has them, {id: text}, and the problems."""
    labels, problems = load_labels(path)
    assert all(label == Label((label.text,), (case_id,)) for case_id, label in labels.items())
    return {i: label.text for i, label in labels.items()}, problems


@pytest.fixture
def write(tmp_path):
    def write(content: str | bytes):
        path = tmp_path / "labels.json"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path
    return write


def test_labels_keep_their_order_and_exact_text_without_the_white_space_around_it(write):
    labels, problems = texts_of(write('{"b": " 胃癌\\n第二行 ", "a": "x\\u0000\\u001b[1m\\u202e"}'))
    assert list(labels.items()) == [("b", "胃癌\n第二行"), ("a", "x\0\x1b[1m\u202e")] and not problems


def test_J02_a_byte_order_mark_does_not_matter(write):
    assert texts_of(write(b"\xef\xbb\xbf" + f'{{"a": "{TEXT}"}}'.encode())) == ({"a": TEXT}, {})


@pytest.mark.parametrize("encoding", ["gbk", "gb18030", "utf-16", "utf-16-le", "utf-32"])
def test_J03_json_in_the_encodings_of_windows_is_recognised(write, encoding):
    assert texts_of(write(f'{{"a": "{TEXT}"}}'.encode(encoding))) == ({"a": TEXT}, {})


def test_surrogate_pairs_become_their_character(write):
    assert texts_of(write('{"a": "\\ud840\\udc00"}'))[0] == {"a": "\U00020000"}


@pytest.mark.parametrize(("key", "slide_id"), [
    ("s1.h5", "s1"), ("s1.H5", "s1"), ("s1.hdf5", "s1"), ("s1.h5.h5", "s1.h5"), ("s1.npy", "s1"), ("s.1", "s.1"), ("h5", "h5"),
    ("TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF", "TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF"), ("切片 一", "切片 一"), ("...", "..."),
])
def test_J09_exactly_one_h5_ending_of_an_id_is_dropped(write, key, slide_id):
    assert texts_of(write(json.dumps({key: "x"})))[0] == {slide_id: "x"}


@pytest.mark.parametrize(("content", "words"), [
    pytest.param('{"a": "first text", "b": "", "a": "second"}', ["'a' appears twice", "first text", "second"],
                 id="J01 key twice"),
    pytest.param('{"a": "' + "一" * 50 + '", "a": "y"}', ["'" + "一" * 20 + "'"], id="J01 only 20 characters shown"),
    pytest.param('{"a": "é"}'.encode("latin-1"), [":1", "neither UTF-8 nor certainly GB18030", "cp1252: '{\"a\": \"é\"}'", "data.encoding"], id="J03 Latin-1"),
    pytest.param('{\n  "a": "x",\n}', [":3:1", "not valid JSON"], id="J04 trailing comma"),
    pytest.param('{\n  "a": "x', [":2:8", "not valid JSON"], id="J04 cut off"),
    pytest.param('{"a": "x\ny"}', [":1:9", "not valid JSON"], id="J04 bare newline in a text"),
    pytest.param('{"a": {"text": "x", "slides": ["D:\\data"]}}', ["Invalid", "Windows path"], id="J04 path of Windows"),
    pytest.param("", [":1:1", "not valid JSON"], id="J04 empty file"),
    pytest.param("{}", ["no labels", "{id: text}"], id="J04 empty object"),
    pytest.param('[{"id": "a", "note": "x"}]', ["no column is known as the text", "id, note"], id="J04 list of other records"),
    pytest.param('["a", "b"]', [":1", "the record is a str"], id="J04 list of texts"),
    pytest.param('{"a": "x"}\n{"b": "y"}\n', [":2:1", "Extra data"], id="J04 JSON lines"),
    pytest.param("NaN", ["top level is a float"], id="J04 NaN"),
    pytest.param('"text"', ["top level is a str"], id="J04 string"),
    pytest.param('{"a": ' + "1" * 5000 + "}", ["not a labels file", "{id: text}"], id="J04 endless number"),
    pytest.param('{"a":' * 200_000, ["not a labels file", "{id: text}"], id="J04 nested objects"),
    pytest.param("[" * 200_000, ["not a labels file", "{id: text}"], id="J04 nested lists"),
    pytest.param('{"\\ud800": "x"}', ["UTF-16 pair"], id="J07 surrogate in the id"),
    pytest.param('{"s1": "x", "s1.h5": "y"}', ["two ids", "'s1'"], id="J09 two ids of one slide"),
    pytest.param('{"s1.h5": "", "s1": "y"}', ["two ids", "'s1'"], id="J09 two ids, one text empty"),
])
def test_a_file_that_is_no_labels_file_is_refused(write, content, words):
    with refused("labels.json", *words):
        load_labels(write(content))


@pytest.mark.parametrize("key", ["../x", "/etc/passwd", "a/b", "..", ".", "", ".h5", "a\\b", "a\0b", "..\\..\\x.h5"])
def test_J10_an_id_that_is_a_path_is_refused(write, key):
    with refused("labels.json", "not a file name", repr(key)):
        load_labels(write(json.dumps({"good": "x", key: "y"})))


@pytest.mark.parametrize(("value", "why"), [
    pytest.param("3", "int", id="J05 number"), pytest.param("null", "NoneType", id="J05 null"),
    pytest.param("[3]", "int", id="J05 list of numbers"), pytest.param('{"zh": "x"}', "unknown field 'zh'", id="J05 object"),
    pytest.param("true", "bool", id="J05 true"), pytest.param("NaN", "float", id="J05 NaN"),
    pytest.param('""', "empty text", id="J06 empty"), pytest.param('" \\n\\t\\u3000"', "empty text", id="J06 blanks"),
    pytest.param('"x\\ud800y"', "UTF-16", id="J07 lone surrogate"),
])
def test_a_bad_text_is_a_problem_of_its_slide_only(write, value, why):
    labels, problems = texts_of(write(f'{{"good": "x", "bad.h5": {value}}}'))
    assert labels == {"good": "x"} and list(problems) == ["bad"] and why in problems["bad"]


def test_a_missing_file_is_named_by_its_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with refused(tmp_path / "no.json", "No such file"):
        load_labels("no.json")
    with refused(tmp_path, "Is a directory"):
        load_labels(".")


def test_home_and_variables_in_the_path_are_expanded(write, tmp_path, monkeypatch):
    write('{"a": "x"}')
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LABELS", str(tmp_path))
    assert texts_of("~/labels.json") == texts_of("$LABELS/labels.json") == ({"a": "x"}, {})


def test_five_hundred_varied_labels_come_back_as_they_were(tmp_path):
    rng = random.Random(0)
    signs = "胃肠癌，。；：“”（）Ⅱ①ab 3.5%\n\t\"\\/<>&\u200b\U0001f600é"
    wanted = {f"s{i}": "x" + "".join(rng.choices(signs, k=rng.randrange(60))) + "。" for i in range(500)}
    assert texts_of(write_json(tmp_path / "l.json", wanted)) == (wanted, {})


def test_a_file_too_large_for_labels_is_refused_before_it_is_read(tmp_path):
    with open(tmp_path / "labels.json", "wb") as file:
        file.truncate((1 << 30) + 1)  # sparse: takes no room
    with refused("labels.json", "1.1 GB is not a labels file"):
        load_labels(tmp_path / "labels.json")


# --- several texts, several slides, sides of the split ---------------------------------------------------------------

@pytest.mark.parametrize(("value", "label"), [
    pytest.param(["x", " y ", "x"], Label(("x", "y"), ("a",)), id="references, repeats once"),
    pytest.param({"text": "x"}, Label(("x",), ("a",)), id="text alone"),
    pytest.param({"text": ["x", "y"], "slides": ["s1.h5", "s2"], "split": "test"}, Label(("x", "y"), ("s1", "s2"), "test"),
                 id="all fields"),
    pytest.param({"text": "x", "slides": ["s1.pt"], "split": None}, Label(("x",), ("s1",)), id="one slide of another name"),
])
def test_a_case_may_have_several_texts_and_slides(write, value, label):
    assert load_labels(write(json.dumps({"a": value}))) == ({"a": label}, {})


@pytest.mark.parametrize(("value", "why"), [
    ([], "empty list of texts"), (["x", " "], "empty text"), ({}, "the text is a NoneType"), ({"text": "x", "slide": "s"}, "'slide'"),
    ({"text": "x", "slides": []}, "list of names"), ({"text": "x", "slides": "s1"}, "list of names"),
    ({"text": "x", "slides": [1]}, "list of names"), ({"text": "x", "slides": ["../s"]}, "not a file name"),
    ({"text": "x", "slides": [".h5"]}, "not a file name"), ({"text": "x", "slides": ["s", "s.h5"]}, "appears twice"),
    ({"text": "x", "split": "dev"}, "split 'dev', expected train, val, test"), ({"text": "x", "split": 1}, "split 1"),
    ({"text": {"zh": "x"}}, "the text is a dict")])
def test_J05_a_case_that_is_not_of_these_forms_is_a_problem_of_its_own(write, value, why):
    labels, problems = load_labels(write(json.dumps({"good": "x", "bad": value})))
    assert list(labels) == ["good"] and why in problems["bad"]


def test_histgens_form_is_read_with_its_split(write):
    labels, problems = load_labels(write(json.dumps({
        "train": [{"id": "TCGA-A1.h5", "report": "x", "image_path": ["/data/pt/TCGA-A1-1.pt", "d\\TCGA-A1-2.pt"]},
                  {"id": "b", "report": " ", "split": "train"}],
        "val": [{"id": "c", "report": ["y", "z"], "image_path": "c.pt"}], "test": [{"id": "d", "report": "w"}]})))
    assert labels == {"TCGA-A1": Label(("x",), ("data/pt/TCGA-A1-1", "d/TCGA-A1-2"), "train"), "c": Label(("y", "z"), ("c",), "val"),
                      "d": Label(("w",), ("d",), "test")}
    assert list(problems) == ["b"] and "empty text" in problems["b"]


def test_histgens_form_with_an_id_on_two_sides_or_without_one_is_refused(write):
    record = {"id": "a", "report": "x"}
    with refused("two ids name the slide 'a'"):
        load_labels(write(json.dumps({"train": [record], "test": [record]})))
    with refused("val[0] has no id"):
        load_labels(write(json.dumps({"val": [{"report": "x"}]})))


def test_slides_may_be_called_train_and_test(write):
    assert list(load_labels(write(json.dumps({"train": "x", "test": ["y"]})))[0]) == ["train", "test"]


def test_slides_may_be_paths_of_windows_and_linux_which_are_never_opened(write):
    paths = ["D:\\slides\\caseA\\s1.svs", "/data/caseA/s2.h5", "caseB/s1.svs", "./s3"]
    labels, _ = load_labels(write(json.dumps({"a": {"text": "x", "slides": paths}})))
    assert labels["a"].slides == ("slides/caseA/s1.svs", "data/caseA/s2", "caseB/s1.svs", "s3")
    _, problems = load_labels(write(json.dumps({"good": "x", "a": {"text": "x", "slides": ["D:\temp\\s1.svs"]}})))
    assert "control character" in problems["a"], "JSON reads the \\t of a path as a tab"


def test_the_id_of_a_case_may_hold_a_slash_if_its_slides_are_named(write):
    assert load_labels(write('{"S23/1": {"text": "x", "slides": ["s1"]}}'))[0] == {"S23/1": Label(("x",), ("s1",))}
    with refused("not a file name"):
        load_labels(write('{"S23/1": {"text": "x"}}'))
