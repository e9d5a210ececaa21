"""Tokenizers: exact round trips, spelling of unseen words, special tokens that no text encodes to, storage in the checkpoint."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from finetune.config.schema import Config, DataConfig, apply_overrides
from finetune.data.tokenizer import VocabTokenizer, build_tokenizer, normalize_text, tokenizer_from_dict
from prism import GenerationOptions
from tests.helpers.files import ROOT, refused, write_h5, write_json

needs_transformers = pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")

TEXTS = [
    "（胃窦）中分化腺癌，Lauren分型：肠型；浸润至浆膜下层，脉管癌栓（＋），神经侵犯（－）。",
    "乳腺浸润性导管癌，Ⅱ级，大小3.5cm×2cm，ER(90%,强+)，PR(−)，HER-2(3+)，Ki-67约30%。",
    "Invasive ductal carcinoma, grade 2; pT2 N1a (3/12). Margins: negative,  closest 0.15 cm.\n\tSee note.",
    "淋巴结：０／１２　未见癌转移。 肿瘤最大径１２ｍｍ；α-SMA、β-catenin（+），p53: wild-type≥80%",
    "café Müller naïve – “quoted” ‘x’ … 5µm 37°C ①②③ <eos> <pad> [PAD] </s> <unk>",
    "第一行\r\n第二行\n\n  缩进\u3000全角空格\xa0不断行_下划线_ a_b __ 1_000",
    "かな カナ 漢字 𠀀𠮷 한국어 текст é e\u0301 \U0001f600 \u200b\u202e\x00\x1b[1m",
    "1.2.3 1.2. .5 3..4 10,000 1e-4 -5 +3 0x1F 12３4",
]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_known_text_comes_back_exactly(text):
    tokenizer = VocabTokenizer.build([text])
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert min(tokenizer.encode(text)) > 3, "no special or unknown token"


def test_any_text_of_known_characters_comes_back_exactly():
    tokenizer = VocabTokenizer.build(TEXTS)
    characters = sorted(set("".join(TEXTS)))
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choices(characters, k=rng.randrange(40)))
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_token_is_a_character_a_word_a_number_or_a_sign():
    text = "胃窦 grade 3.5cm，HER-2(3+) 癌_x"
    tokenizer = VocabTokenizer.build([text])
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode(text)]
    assert pieces == ["胃", "窦", " grade", " 3.5", "cm", "，", "HER", "-", "2", "(", "3", "+", ")", " 癌", "_", "x"]


def test_an_unseen_word_or_number_is_spelled_by_its_characters():
    tokenizer = VocabTokenizer.build(["tumor 12.5 mm", "cat"])
    ids = tokenizer.encode("matcor 21")
    assert [tokenizer.decode([i]) for i in ids] == ["m", "a", "t", "c", "o", "r", " ", "2", "1"]
    assert tokenizer.encode("tumor") != tokenizer.encode("t umor") and len(tokenizer.encode("tumor")) == 1


def test_only_a_character_never_seen_is_unknown():
    tokenizer = VocabTokenizer.build(["胃癌 grade"])
    ids = tokenizer.encode("肺癌grades")
    assert ids.count(tokenizer.unk_id) == 2 and tokenizer.decode(ids) == "\ufffd癌grade\ufffd"


@pytest.mark.parametrize("text", ["<eos>", "<pad><bos>", "a<eos>b", "<unk>", "[PAD]", "</s>", "\ufffd"])
def test_T02_special_tokens_inside_a_text_are_text(text):
    for tokenizer in (VocabTokenizer.build([text]), VocabTokenizer.build(["<eos> <pad><bos> a b <unk> [PAD] </s> \ufffd"])):
        ids = tokenizer.encode(text)
        assert min(ids) >= len(tokenizer.specials) and tokenizer.decode(ids) == text


def test_special_ids_are_fixed_and_left_out_of_the_text():
    tokenizer = VocabTokenizer.build(["癌"])
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id) == (0, 1, 2, 3)
    assert tokenizer.decode([1, 4, 2, 0, 0]) == "癌" and tokenizer.encode("") == [] and tokenizer.decode([]) == ""


def test_the_vocabulary_is_counted_by_hand_most_frequent_first():
    # pieces: 癌 3, b 2, a 1 + the characters of " cd" and "cd" once per text
    tokenizer = VocabTokenizer.build(["癌癌b cd", "癌b，cd"])
    counts = {"癌": 3, "b": 2, " cd": 1, "cd": 1, "，": 1, "c": 2, "d": 2, " ": 1}
    assert tokenizer.pieces == sorted(counts, key=lambda p: (-counts[p], p))
    assert len(tokenizer) == 4 + len(counts)


def test_the_vocabulary_does_not_depend_on_the_order_of_the_texts():
    assert VocabTokenizer.build(TEXTS).pieces == VocabTokenizer.build(TEXTS[::-1]).pieces
    assert len(set(VocabTokenizer.build(TEXTS).pieces)) == len(VocabTokenizer.build(TEXTS).pieces)


def test_a_saved_tokenizer_gives_the_same_ids():
    tokenizer = VocabTokenizer.build(TEXTS)
    again = tokenizer_from_dict(json.loads(json.dumps(tokenizer.to_dict())), "c.pth")
    assert all(again.encode(t) == tokenizer.encode(t) for t in TEXTS) and len(again) == len(tokenizer)
    assert tokenizer.to_dict() == {"type": "vocab", "version": 1, "pieces": tokenizer.pieces}, "as it always was"


@pytest.mark.parametrize("data", [{}, {"type": "magic", "version": 1, "pieces": []}, {"type": "vocab", "version": 2, "pieces": []}])
def test_K09_a_tokenizer_of_another_kind_or_version_is_refused(data):
    with refused("c.pth", repr(data.get("type")), repr(data.get("version"))):
        tokenizer_from_dict(data, "c.pth")


# --- byte-level BPE --------------------------------------------------------------------------------------------------

ANY = ["癌\U0001f600 é\t\n  ﷽ \x00\x1b", "<eos></s>[PAD]<|endoftext|>", " ", "胃癌" * 100, "Ⅱ级　（3＋）"]


def test_bpe_writes_any_text_and_gives_it_back_exactly():
    tokenizer = build_tokenizer("bpe", TEXTS, False)
    for text in [*TEXTS, *ANY]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text and max(ids, default=0) < tokenizer.pad_id, "no special token in a text"
        assert tokenizer.decode([tokenizer.bos_id, *ids, tokenizer.eos_id, tokenizer.pad_id]) == text
    assert tokenizer.unk_id is None and len(tokenizer) == tokenizer.eos_id + 1
    assert len({tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id}) == 3


def test_bpe_merges_frequent_pairs_and_keeps_its_size():
    texts = ["胃窦低分化腺癌。"] * 5 + ["结肠低分化腺癌。"] * 5
    tokenizer = build_tokenizer("bpe:300", texts, False)
    assert len(tokenizer) <= 300 and len(tokenizer.encode("低分化腺癌")) < len("低分化腺癌".encode()) / 2
    with refused("config", "data.tokenizer is 'bpe:5'", "300"):
        Config(data=DataConfig(embeddings_dir="x", labels_file="y", tokenizer="bpe:5")).check("config")


def test_bpe_is_the_same_in_every_process_and_for_every_order_of_the_texts():
    code = ("import sys, json, hashlib; from finetune.data.tokenizer import build_tokenizer; texts = json.loads(sys.argv[1]);"
            "print(hashlib.sha256(build_tokenizer('bpe', texts, False).json_text.encode()).hexdigest())")
    texts = [" ".join(random.Random(i).choices(["tumor", "grade", "胃癌", "低分化", "of", "the"], k=8)) for i in range(200)]
    hashes = {subprocess.run([sys.executable, "-c", code, json.dumps(order)], capture_output=True, text=True, check=True,
                             cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": str(seed)}).stdout
              for seed, order in enumerate([texts, texts[::-1], sorted(texts)])}
    assert len(hashes) == 1


def test_a_saved_bpe_gives_the_same_ids_also_by_pickle():
    tokenizer = build_tokenizer("bpe", TEXTS, True)
    for again in (tokenizer_from_dict(json.loads(json.dumps(tokenizer.to_dict())), "c.pth"), pickle.loads(pickle.dumps(tokenizer))):
        assert all(again.encode(t) == tokenizer.encode(t) for t in [*TEXTS, *ANY]) and again.to_dict() == tokenizer.to_dict()


@pytest.mark.parametrize("change", [{"json": "{}"}, {"json": None}, {"json": "x" * 99}, {"special": {}}, {"special": None},
                                    {"special": {"pad": -1, "bos": 1, "eos": 2, "unk": None}},
                                    {"special": {"pad": 10**9, "bos": 1, "eos": 2, "unk": None}},
                                    {"special": {"pad": "a", "bos": 1, "eos": 2, "unk": None}}])
def test_a_damaged_tokenizer_in_a_checkpoint_is_refused(change):
    with refused("c.pth", "its tokenizer is not usable"):
        tokenizer_from_dict(build_tokenizer("bpe", TEXTS, False).to_dict() | change, "c.pth")


# --- Hugging Face ----------------------------------------------------------------------------------------------------

def gpt2_like(folder: Path) -> str:
    """Begin, end and padding are one token, as in GPT-2 and many after it."""
    folder.mkdir(parents=True)
    made = json.loads(build_tokenizer("bpe", TEXTS, False).json_text)
    size = len(made["model"]["vocab"])
    made["added_tokens"] = [{"id": size, "content": "<|endoftext|>", "single_word": False, "lstrip": False, "rstrip": False,
                             "normalized": False, "special": True}]
    made["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    (folder / "tokenizer.json").write_text(json.dumps(made), encoding="utf-8")
    names = dict.fromkeys(["bos_token", "eos_token", "unk_token", "pad_token"], "<|endoftext|>")
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **names})
    return f"hf:{folder}"


def bert_like(folder: Path) -> str:
    """A plain word list, as in bert-base-chinese."""
    folder.mkdir(parents=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"胃腺癌低分化，。（）(3+)", "grade", "her", "##2"]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    write_json(folder / "config.json", {"model_type": "bert"})
    return f"hf:{folder}"


@needs_transformers
def test_an_end_token_that_pads_too_keeps_its_ids_and_special_words_are_text(tmp_path):
    tokenizer = build_tokenizer(gpt2_like(tmp_path / "gpt"), [], False)
    assert tokenizer.pad_id == tokenizer.bos_id == tokenizer.eos_id == len(tokenizer) - 1 and tokenizer.unk_id is None
    for text in [*TEXTS, *ANY]:
        ids = tokenizer.encode(text)
        assert tokenizer.eos_id not in ids and tokenizer.decode([tokenizer.bos_id, *ids, tokenizer.eos_id]) == text


@needs_transformers
def test_a_word_list_of_bert_writes_chinese_without_blanks_and_counts_what_it_does_not_know(tmp_path):
    tokenizer = build_tokenizer(bert_like(tmp_path / "bert"), [], False)
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id, len(tokenizer)) == (0, 2, 3, 1, 22)
    ids = tokenizer.encode("（胃）低分化腺癌，HER2肺[SEP]")
    assert tokenizer.decode(ids).startswith("（胃）低分化腺癌，her2") and tokenizer.eos_id not in ids and tokenizer.unk_id in ids


@needs_transformers
@pytest.mark.parametrize("make", [gpt2_like, bert_like])
def test_a_loaded_tokenizer_needs_its_folder_no_more(tmp_path, make):
    tokenizer = build_tokenizer(make(tmp_path / "t"), [], False)
    saved = json.dumps(tokenizer.to_dict())
    shutil.rmtree(tmp_path / "t")
    assert str(tmp_path) not in saved
    again = tokenizer_from_dict(json.loads(saved), "c.pth")
    assert [again.encode(t) for t in TEXTS] == [tokenizer.encode(t) for t in TEXTS] and len(again) == len(tokenizer)


@needs_transformers
def test_R08_a_tokenizer_that_is_not_there_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "1")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    (tmp_path / "empty").mkdir()
    (tmp_path / "code").mkdir()
    write_json(tmp_path / "code" / "tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}})
    (tmp_path / "code" / "evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')", encoding="utf-8")
    began = time.monotonic()
    for name in ("no-one/nothing", "/no/such/folder", "./nope", tmp_path / "empty", tmp_path / "code"):
        with refused("data.tokenizer", "cannot be loaded"):
            build_tokenizer(f"hf:{name}", [], False)
    assert time.monotonic() - began < 15 and not (tmp_path / "canary").exists()


def test_without_transformers_the_command_to_get_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with refused("data.tokenizer", "needs the package transformers", "pip install"):
        build_tokenizer("hf:x", [], False)


# --- normalising -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("text", "wanted"), [
    ("（ＨＥＲ－２　３＋），", "(HER-2 3+),"), ("３．５ ＣＭ*2厘米", "3.5cm×2cm"), ("3 mm x 2MM×1 毫米", "3mm×2mm×1mm"), ("3×2公分", "3×2cm"),
    ("5 µm，8微米", "5μm,8μm"), ("３㎜", "3mm"), ("Ⅱ级", "II级"), ("cm 大小 mm", "cm 大小 mm"), ("克隆3克隆", "克隆3克隆"), ("3 mmHg", "3 mmHg"),
    ("grade 3 x", "grade 3 x"), ("直径约3厘米。", "直径约3cm。")])
def test_width_and_lengths_are_written_in_one_way(text, wanted):
    assert normalize_text(text) == wanted and normalize_text(wanted) == wanted


@pytest.mark.parametrize("kind", ["vocab", "bpe"])
def test_a_normalising_tokenizer_reads_both_spellings_alike_and_stays_so(kind):
    tokenizer = build_tokenizer(kind, ["（胃）大小３ＣＭ", "胃癌3×2厘米"], True)
    again = tokenizer_from_dict(json.loads(json.dumps(tokenizer.to_dict())), "c.pth")
    for made in (tokenizer, again):
        assert made.encode("（胃）３ ＣＭ") == made.encode("(胃)3厘米") and made.decode(made.encode("（胃）３ＣＭ")) == "(胃)3cm"
    plain = build_tokenizer(kind, ["（胃）大小３ＣＭ", "胃癌3×2厘米"], False)
    assert plain.decode(plain.encode("（胃）３ＣＭ")) == "（胃）３ＣＭ" and plain.to_dict().get("normalize", False) is False


# --- in a run --------------------------------------------------------------------------------------------------------

@needs_transformers
def test_a_model_learns_an_end_token_that_is_begin_and_padding_too_and_the_checkpoint_is_enough(tmp_path):
    from finetune.data.slides import inspect_slide
    from finetune.inference.captioner import Captioner
    from finetune.training.run import train

    rng, texts = np.random.default_rng(0), ["胃腺癌。", "结肠癌，大小3cm。"]
    for i in range(6):
        write_h5(tmp_path / "h5" / f"s{i}.h5", (rng.standard_normal((3, 2560)) + 3 * (i % 2)).astype("f2"))
    write_json(tmp_path / "labels.json", {f"s{i}": texts[i % 2] for i in range(6)})
    settings = {"data.embeddings_dir": tmp_path / "h5", "data.labels_file": tmp_path / "labels.json", "data.val_split": 0,
                "data.tokenizer": gpt2_like(tmp_path / "secret" / "tok"), "training.output_dir": tmp_path / "run", "training.log_dir": tmp_path,
                "prism.weights": "random-tiny", "training.epochs": 60, "training.batch_size": 6, "training.workers": 0,
                "training.learning_rate": 1e-2, "model.dim": 32, "model.unimodal_depth": 1, "model.multimodal_depth": 1,
                "model.dim_latents": 8, "model.num_img_queries": 2, "model.heads": 2, "model.dim_head": 16, "training.precision": "fp32"}
    assert train(apply_overrides(Config(), [f"{k}={v}" for k, v in settings.items()])) == 0
    shutil.rmtree(tmp_path / "secret")
    captioner = Captioner.load(tmp_path / "run" / "last_model.pth")
    assert "secret" not in json.dumps(captioner.config.to_dict()), "no local path in a config"
    slides = [inspect_slide(tmp_path / "h5" / f"s{i}.h5", None, 2560) for i in range(2)]
    records = captioner.describe(slides, [], GenerationOptions(max_length=60))
    assert [r["caption"] for r in records] == texts
