"""From folder and JSON to samples: matching, bad slides, unknown tokens, fingerprint."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.common.errors import UserError
from finetune.config.schema import DataConfig
from finetune.data.prepare import Data, prepare_data, scan_contents
from finetune.data.splits import split_ids
from finetune.data.tokenizer import VocabTokenizer
from tests.helpers.files import random_tiles, refused, write_h5, write_json, write_slides

TEXTS = {f"s{i}": f"{'胃肠'[i % 2]}腺癌，大小{i}cm。" for i in range(10)}
SIZES = {f"s{i}": i + 1 for i in range(10)}


@pytest.fixture
def config(tmp_path) -> DataConfig:
    """10 slides of 1 to 10 tiles, each with its text."""
    write_slides(tmp_path / "h5", SIZES)
    write_json(tmp_path / "labels.json", TEXTS)
    return DataConfig(embeddings_dir=str(tmp_path / "h5"), labels_file=str(tmp_path / "labels.json"), image_dim=6,
                      val_split=0.2)


def ids(samples) -> list[str]:
    return [s.slide.slide_id for s in samples]


def rewrite(tmp_path, **changes: object) -> None:
    """labels.json with these changes; None removes a label."""
    write_json(tmp_path / "labels.json", {k: v for k, v in {**TEXTS, **changes}.items() if v is not None})


def test_every_slide_is_paired_with_its_own_text(config):
    data = prepare_data(config, 42)
    assert (ids(data.train), ids(data.validation)) == split_ids(list(TEXTS), 0.2, 42) and len(data.validation) == 2
    for sample in data.train + data.validation:
        slide_id = sample.slide.slide_id
        assert sample.slide.num_tiles == SIZES[slide_id] and sample.slide.path.endswith(f"h5/{slide_id}.h5")
        assert sample.token_ids[0] == 1 and sample.token_ids[-1] == 2
    for sample in data.train:
        assert data.tokenizer.decode(sample.token_ids) == TEXTS[sample.slide.slide_id]


def test_the_vocabulary_knows_the_training_texts_only(config, tmp_path, log_lines):
    held_out = split_ids(list(TEXTS), 0.2, 42)[1]
    rewrite(tmp_path, **{held_out[0]: "胃腺癌，龘。"})
    data = prepare_data(config, 42)
    assert data.tokenizer.pieces == VocabTokenizer.build(TEXTS[i] for i in ids(data.train)).pieces
    assert data.validation[0].token_ids.count(data.tokenizer.unk_id) == 1
    assert any("of the validation tokens are unknown" in line for line in log_lines)
    assert not any("龘" in line or "胃" in line for line in log_lines), "texts are private"


def test_a_resumed_run_keeps_its_tokenizer(config):
    tokenizer = VocabTokenizer.build([*TEXTS.values(), "other"])
    data = prepare_data(config, 42, tokenizer)
    assert data.tokenizer is tokenizer
    assert all(tokenizer.decode(s.token_ids) == TEXTS[s.slide.slide_id] for s in data.train)


def test_C07_no_validation_is_allowed_with_a_warning(config, log_lines):
    config.val_split = 0
    data = prepare_data(config, 42)
    assert len(data.train) == 10 and data.validation == [] and any("no validation" in line for line in log_lines)


def test_T01_texts_the_tokenizer_does_not_know_are_refused(config):
    with refused("tokenizer", "of the training tokens are unknown"):
        prepare_data(config, 42, VocabTokenizer.build(["tumor"]))


@pytest.mark.parametrize(("kind", "advice", "not_said"), [("vocab", "use more training texts", "fixed"), ("biogpt", "more texts do not change it", "use more")])
def test_T01_the_advice_for_unknown_texts_can_be_followed(config, monkeypatch, kind, advice, not_said):
    tokenizer = VocabTokenizer.build(["tumor"])
    monkeypatch.setattr(VocabTokenizer, "to_dict", lambda self: {"type": kind})
    with pytest.raises(UserError, match=advice) as error:
        prepare_data(config, 42, tokenizer)
    assert not_said not in str(error.value)


def test_T02_cut_texts_are_counted(config, log_lines):
    config.max_seq_len = 8  # begin, 6 tokens, end; the texts have 9 tokens
    data = prepare_data(config, 42)
    assert all(len(s.token_ids) == 8 and s.token_ids[-1] == 2 for s in data.train)
    assert any("8 of 8 training texts are longer than data.max_seq_len 8" in line and "longest has 11 tokens" in line
               for line in log_lines)
    config.max_seq_len = 11
    log_lines.clear()
    prepare_data(config, 42)
    assert not any("max_seq_len" in line for line in log_lines)


# --- bad slides ------------------------------------------------------------------------------------------------------

def test_J11_a_label_without_a_file_stops_the_run(config, tmp_path):
    rewrite(tmp_path, absent="胃癌")
    with refused("absent", "no H5 file of this name", "remove its label", "data.on_bad=skip"):
        prepare_data(config, 42)


def test_J11_files_without_a_label_are_counted_with_five_examples(config, tmp_path, log_lines):
    write_slides(config_folder := tmp_path / "h5", {f"x{i}": 1 for i in range(7)})
    data = prepare_data(config, 42)
    assert len(data.train + data.validation) == 10 and len(list(config_folder.iterdir())) == 17
    line = next(line for line in log_lines if "have no label" in line)
    assert line.startswith("7 H5 files") and "x0, x1, x2, x3, x4" in line and "x5" not in line


def test_J11_no_pair_at_all_stops_the_run_also_with_skip(config, tmp_path):
    write_json(tmp_path / "labels.json", {"a": "x", "b": "y"})
    config.on_bad, config.max_bad_fraction = "skip", 1.0
    with refused("a", "no H5 file", "2 of 2 slides cannot be used"):
        prepare_data(config, 42)


def make_three_bad(tmp_path) -> None:
    rewrite(tmp_path, s1="  ", s2=5)
    (tmp_path / "h5" / "s3.h5").write_bytes(b"")


def test_all_bad_slides_are_listed_at_once(config, tmp_path):
    make_three_bad(tmp_path)
    with pytest.raises(UserError) as caught:
        prepare_data(config, 42)
    assert "3 of 10 slides cannot be used" in caught.value.line()
    assert len(caught.value.details) == 3
    for words, line in zip((["'s1'", "labels.json", "empty text"], ["'s2'", "labels.json", "int"], ["s3.h5", "empty file"]),
                           caught.value.details, strict=True):
        assert all(w in line for w in words), line


def test_the_first_twenty_bad_slides_are_shown_and_all_are_counted(config, tmp_path):
    rewrite(tmp_path, **{f"y{i}": "x" for i in range(30)})
    with pytest.raises(UserError) as caught:
        prepare_data(config, 42)
    assert "30 of 40" in caught.value.line() and len(caught.value.details) == 21
    assert caught.value.details[-1] == "... and 10 more"


def test_bad_slides_can_be_skipped_with_a_warning_each_and_a_count(config, tmp_path, log_lines):
    make_three_bad(tmp_path)
    config.on_bad, config.max_bad_fraction = "skip", 0.3
    data = prepare_data(config, 42)
    assert set(ids(data.train + data.validation)) == set(TEXTS) - {"s1", "s2", "s3"}
    assert (ids(data.train), ids(data.validation)) == split_ids(sorted(set(TEXTS) - {"s1", "s2", "s3"}), 0.2, 42)
    assert sum(line.startswith("skipped") for line in log_lines) == 3
    assert "3 of 10 slides cannot be used and are skipped" in log_lines


def test_too_many_bad_slides_stop_the_run_all_the_same(config, tmp_path):
    make_three_bad(tmp_path)
    config.on_bad, config.max_bad_fraction = "skip", 0.29
    with refused(config.embeddings_dir, "3 of 10 slides cannot be used", "max_bad_fraction 0.29"):
        prepare_data(config, 42)


def test_H06_a_config_that_fits_no_file_is_one_error_also_with_skip(config):
    config.image_dim, config.on_bad, config.max_bad_fraction = 12, "skip", 1.0
    with refused("all 10 files: tiles are 6 wide, data.image_dim is 12"):
        prepare_data(config, 42)


def test_H09_the_content_scan_lists_every_bad_file(config, tmp_path):
    good = prepare_data(config, 42)
    scan_contents(good)
    for slide_id, value in (("s4", np.nan), ("s7", np.inf)):
        data = random_tiles(SIZES[slide_id], 6)
        data[0, 0] = value
        write_h5(tmp_path / "h5" / f"{slide_id}.h5", data)
    with pytest.raises(UserError) as caught:
        scan_contents(prepare_data(config, 42))
    assert "2 bad files in all" in caught.value.line()
    assert sorted(d.split(":")[0][-5:] for d in caught.value.details) == ["s4.h5", "s7.h5"]


# --- fingerprint -----------------------------------------------------------------------------------------------------

def fingerprint(config: DataConfig, seed: int = 42) -> str:
    return prepare_data(config, seed).fingerprint


def test_K13_the_fingerprint_is_of_the_data_not_of_its_place(config, tmp_path):
    before = fingerprint(config)
    write_json(tmp_path / "moved.json", dict(reversed({f"{k}.h5": f" {v}\n" for k, v in TEXTS.items()}.items())))
    (tmp_path / "h5").rename(tmp_path / "moved")
    config.labels_file, config.embeddings_dir = str(tmp_path / "moved.json"), str(tmp_path / "moved")
    config.max_seq_len = 20
    assert fingerprint(config) == before and len(before) == 64


@pytest.mark.parametrize("change", [
    pytest.param(lambda c, t: rewrite(t, s0="胃腺癌，大小1cm。"), id="K13 text"),
    pytest.param(lambda c, t: rewrite(t, s0=None), id="K13 slide gone"),
    pytest.param(lambda c, t: write_slides(t / "h5", {"s0": 2}), id="K13 tile count"),
    pytest.param(lambda c, t: setattr(c, "val_split", 0.3), id="K13 split"),
    pytest.param(lambda c, t: rewrite(t, s0=TEXTS["s1"], s1=TEXTS["s0"]), id="K13 texts swapped"),
])
def test_K13_other_data_have_another_fingerprint(config, tmp_path, change):
    before = fingerprint(config)
    change(config, tmp_path)
    assert fingerprint(config) != before


def test_K13_another_split_has_another_fingerprint(config):
    assert fingerprint(config, 42) != fingerprint(config, 43) or ids(prepare_data(config, 42).validation) == \
        ids(prepare_data(config, 43).validation)


def test_preparing_twice_gives_equal_data(config):
    first, second = prepare_data(config, 42), prepare_data(config, 42)
    assert isinstance(first, Data) and first.train == second.train and first.validation == second.validation
