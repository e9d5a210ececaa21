"""A pipe or device in place of a file: to open the one waits for ever, to read the other never ends."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.common.files import read_regular
from finetune.common.run_folder import read_records
from finetune.config.schema import Config
from finetune.config.yaml_file import load_yaml
from finetune.data.content_check import read_sums
from finetune.data.header_cache import read_headers, write_headers
from finetune.data.kept_results import KeptResults
from finetune.data.labels import load_labels
from finetune.data.slides import find_files, index_slides
from finetune.data.splits import read_split_file
from finetune.inference.tile_maps import open_thumbnail
from finetune.pages.field_table import read_fields
from finetune.pages.held_out import read_held_out
from tests.helpers.files import ROOT, paths_of, refused, write_json, write_slides

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
NOT_REGULAR = "a pipe or device, not a regular file"


@pytest.fixture(params=["pipe", "device", "link to a pipe"])
def put(request, tmp_path):
    """Puts what has no end under a name."""
    def make(name: str) -> Path:
        path = tmp_path / name
        path.unlink(missing_ok=True)
        if request.param == "pipe":
            os.mkfifo(path)
        elif request.param == "device":
            path.symlink_to("/dev/zero")
        else:
            os.mkfifo(tmp_path / "pipe")
            path.symlink_to("pipe")
        return path

    return make


@pytest.mark.parametrize(("name", "read"), [
    ("c.yaml", lambda path: load_yaml(path, Config())), ("l.json", load_labels), ("l.csv", load_labels), ("l.xlsx", load_labels),
    ("l.xls", load_labels), ("split.csv", read_split_file), ("split.json", read_split_file), ("SHA256SUMS", read_sums)])
def test_an_input_without_an_end_is_refused(put, name, read):
    with refused(name, NOT_REGULAR):
        read(str(put(name)))


def test_a_thumbnail_without_an_end_is_refused(put):
    with refused("t.png", "not a usable PNG"):
        open_thumbnail(put("t.png"))


@pytest.mark.parametrize("suffix", [".h5", ".pt", ".npy", ".npz"])
def test_a_slide_without_an_end_is_a_bad_slide(put, suffix):
    path = str(put(f"s{suffix}"))
    slides, bad = index_slides([path], None, 6)
    assert slides == [] and list(bad) == [path] and bad[path].what == NOT_REGULAR


def test_derived_files_without_an_end_are_made_again(put, tmp_path, log_lines):
    write_slides(tmp_path / "h5", {"a": 2, "b": 3})
    slides, _ = index_slides(paths_of(find_files(tmp_path / "h5")), None, 6)
    headers = put("index.json")
    assert read_headers(headers, None, 6, None) == {} and any(f"{headers} cannot be read" in line for line in log_lines)
    write_headers(headers, None, 6, None, slides)
    assert len(read_headers(headers, None, 6, None)) == 2 and headers.is_file()


def test_kept_results_without_an_end_are_found_again(put):
    path = put("index_texts.json")
    assert [KeptResults(path).get("a", found, bool) for found in (lambda: [1], lambda: [2])] == [[1], [1]]
    assert path.is_file()


@pytest.mark.parametrize(("read", "nothing"), [(read_held_out, None), (read_fields, None), (lambda path: [*read_records(path)], [])])
def test_the_report_of_a_run_leaves_them_out(put, read, nothing):
    assert read(put("fields.json")) == nothing


def test_regular_files_links_and_folders_are_what_they_were(tmp_path):
    path = write_json(tmp_path / "a.json", {"a": "胃癌"})
    (tmp_path / "link").symlink_to("a.json")
    assert read_regular(path) == read_regular(tmp_path / "link") == path.read_bytes()
    for name, error in (("", IsADirectoryError), ("none", FileNotFoundError)):
        with pytest.raises(error):
            read_regular(tmp_path / name)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket"))  # its name may be long
        with pytest.raises(OSError, match=NOT_REGULAR):
            read_regular(tmp_path / "socket")


def test_the_doctor_does_not_wait_for_a_config(tmp_path):
    os.mkfifo(tmp_path / "c.yaml")
    done = subprocess.run([sys.executable, "-m", "finetune.doctor", "--config", str(tmp_path / "c.yaml")], cwd=ROOT, text=True,
                          capture_output=True, timeout=60, check=False)
    assert done.returncode and NOT_REGULAR in done.stdout + done.stderr and "Traceback" not in done.stderr
