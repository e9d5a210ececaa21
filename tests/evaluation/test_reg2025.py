"""The REG2025 score against other libraries' numbers, its peculiarities by hand; its counterpart on characters."""

from __future__ import annotations

import json
import sys
import types

import numpy as np
import pytest
import torch

from finetune.evaluation.findings import FindingDictionary
from finetune.evaluation.reg2025 import (
    RegModels,
    bleu,
    jaccard,
    keyword_set,
    reg2025_statistics,
    rouge,
    stretched_cosine,
)
from finetune.evaluation.reg_models import load_reg_models
from finetune.evaluation.scoring import CAPTIONS, Answers, evaluate
from finetune.evaluation.text_findings import text_findings_statistics
from tests.helpers.files import ROOT, refused

GOLDEN = json.loads((ROOT / "tests/golden/reg2025.json").read_text(encoding="utf-8"))["rows"]


def words_of(text: str) -> list[str]:
    """The keyword model of the golden values: capitalised words."""
    return [word.strip(".,;") for word in text.split() if word[:1].isupper()]


def vector_of(text: str) -> list[float]:
    """The embedding model of the golden values: how often some letters occur."""
    return [text.lower().count(letter) + 0.25 for letter in "aeiorstn"]


MODELS = RegModels(words_of, vector_of, ("words", "letters"))
ALL = FindingDictionary.shipped()


def scores(models: RegModels, captions: list[str], references: list[list[str]]) -> dict[str, float]:
    return {k: s(np.arange(len(captions))) for k, s in reg2025_statistics(models, captions, references).items()}


def test_every_part_and_the_sum_are_those_of_other_libraries():
    assert len(GOLDEN) > 30 and len({row["reg2025_bleu"] for row in GOLDEN}) > 5 and len({row["reg2025_keywords"] for row in GOLDEN}) > 4
    for row in GOLDEN:
        found = scores(MODELS, [row["caption"]], [[row["reference"], "another text that is not looked at"]])
        assert found == pytest.approx({name: row[name] for name in found}, abs=1e-6) and len(found) == 5
    mean = scores(MODELS, [r["caption"] for r in GOLDEN], [[r["reference"]] for r in GOLDEN])
    assert mean["reg2025"] == pytest.approx(np.mean([r["reg2025"] for r in GOLDEN]))


def test_the_peculiarities_of_the_challenge_are_kept():
    assert bleu("a b c", "a b c") == 0 == bleu("", "a b c d"), "less than four words"
    assert bleu("A b c d", "a b c d") == 0 and rouge("A b c d", "a b c d") == 1, "case counts in BLEU only"
    repeated = "x y z w x y z w"  # its 4-grams: xyzw twice, yzwx, zwxy, wxyz; (2 * 2 + 3) / 5
    assert bleu(repeated, repeated) == 7 / 5
    assert bleu("胃腺癌，低分化，可见坏死。", "胃腺癌，低分化，可见坏死。") == 0, "a Chinese text is one word"
    assert jaccard(frozenset(), frozenset()) == 0
    assert keyword_set(["DCIS", "ab", "Grade II"]) == {"dcis", "grade ii"}
    axis, unit = np.array([1.0, 0.0]), lambda cosine: np.array([cosine, np.sqrt(1 - cosine**2)])
    assert [stretched_cosine(axis, unit(c)) for c in (0.49, 0.51, 0.75, -0.2)] == pytest.approx([0.49, 0.02, 0.5, -0.2])


def test_a_model_that_is_not_given_is_not_replaced():
    keywords_only = scores(RegModels(words_of, None), ["a b c d"], [["a b c d"]])
    assert set(keywords_only) == {"reg2025_rouge", "reg2025_bleu", "reg2025_keywords"}
    report = evaluate(Answers(["a b c d"] * 2, [["a b c d"]] * 2, reg_models=RegModels()))
    assert "reg2025" not in report.columns[CAPTIONS] and "reg2025:keywords none,embedding none" in report.signature()
    full = evaluate(Answers(["A b c d"] * 2, [["A b c d"]] * 2, reg_models=MODELS))
    assert "reg2025" in full.to_dict()["baselines"]["most_common_text"] and "keywords words,embedding letters" in full.signature()


def test_models_are_functions_or_folders_of_this_machine(monkeypatch, tmp_path):
    from transformers import BertConfig, BertModel, BertTokenizerFast

    monkeypatch.setitem(sys.modules, "my_keywords", types.SimpleNamespace(words=words_of, number=3, letters=str.upper, fails=lambda _: 1 / 0))
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "gastric", "cancer", "no"]), encoding="utf-8")
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"))
    torch.manual_seed(0)
    encoder = BertModel(BertConfig(vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)).eval()
    encoder.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    models = load_reg_models("my_keywords:words", str(tmp_path))
    assert models.keywords("Big Words") == ["Big", "Words"]
    with torch.no_grad():
        states = encoder(**tokenizer("no gastric cancer", return_tensors="pt")).last_hidden_state
    assert models.embedding("no gastric cancer") == pytest.approx(states.mean(dim=1).squeeze().tolist())
    with refused("--reg_keywords", "not a function"):
        load_reg_models("my_keywords:number", None)
    with refused("--reg_keywords", "my_keywords:letters returns str", "a list of texts"):
        load_reg_models("my_keywords:letters", None)
    with refused("--reg_embedding", "my_keywords:fails fails on a text", "ZeroDivisionError"):
        load_reg_models(None, "my_keywords:fails")
    with refused("--reg_embedding", "returns list", "a vector of numbers"):
        load_reg_models(None, "my_keywords:words")
    with refused("--reg_embedding", "nothing is downloaded"):
        load_reg_models(None, str(tmp_path / "missing"))


def test_a_spacy_pipeline_is_asked_for_its_entities(monkeypatch, tmp_path):
    asked = []

    def load(name):  # the only two things used of spaCy: load, and the entities of a document
        asked.append(name)
        if name == "missing":
            raise OSError("[E050] Can't find model 'missing'.")
        return lambda text: types.SimpleNamespace(ents=[types.SimpleNamespace(text=word) for word in text.split(",")])

    monkeypatch.setitem(sys.modules, "spacy", types.SimpleNamespace(load=load))
    assert load_reg_models(str(tmp_path), None).keywords("a,b") == ["a", "b"] and asked == [str(tmp_path)]
    with refused("--reg_keywords", "E050"):
        load_reg_models("missing", None)
    monkeypatch.setitem(sys.modules, "spacy", None)
    with refused("--reg_keywords", "not installed"):
        load_reg_models("en_core_sci_lg", None)


def text_findings(caption: str, *references: str) -> float:
    return text_findings_statistics(ALL, [caption], [list(references)])["text_findings"](np.array([0]))


def test_the_counterpart_counts_characters_and_findings_by_hand():
    assert text_findings("胃癌", "胃癌") == text_findings("胃腺癌，未见坏死。", "别的", "胃腺癌，未见坏死。") == pytest.approx(1)
    # 9 characters in both, 8 of them in common in order: F1 8/9; of the 6 4-grams those without 可
    caption, reference = "胃腺癌，可见坏死。", "胃腺癌，未见坏死。"
    said, true = (["".join(t[i:i + 4]) for i in range(6)] for t in (caption, reference))
    grams = len(set(said) & set(true)) / 6
    # adenocarcinoma present in both, necrosis present against absent: 1 of 3
    assert text_findings(caption, reference) == pytest.approx((0.15 * 8 / 9 + 0.15 * grams + 0.4 / 3) / 0.7)
    assert text_findings("正常", "正常胃黏膜") == pytest.approx((0.15 * 4 / 7 + 0.15 + 0.4) / 0.7), "no finding in either"
    assert text_findings("", "胃腺癌") == 0
