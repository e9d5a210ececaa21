"""Acceptable and safe captions: pairs that a pathologist would judge so, and texts made from the dictionaries' lists."""

from __future__ import annotations

import logging
import random

import numpy as np
import pytest

from finetune.common.score_table import SCORES
from finetune.config import schema
from finetune.config.schema import Config, apply_overrides
from finetune.config.yaml_file import load_plain_yaml
from finetune.evaluation.agreement import agreement_statistics, is_acceptable, is_safe, malignancy
from finetune.evaluation.findings import ABSENT, PRESENT, SHIPPED, UNCERTAIN, FindingDictionary
from finetune.evaluation.scoring import CAPTIONS, Answers, evaluate
from tests.helpers.files import refused

ALL = FindingDictionary.shipped()


@pytest.mark.parametrize(("caption", "reference"), [
    ("胃腺癌，低分化，可见坏死。", "胃腺癌，可见坏死，低分化"),
    ("胃腺癌，未见坏死。", "胃腺癌，坏死：无"),
    ("脉管癌栓（-），神经侵犯（+）", "神经侵犯：有；未见脉管癌栓"),
    ("左乳浸润性癌，Ⅱ级", "左乳浸润癌，2级"),
    ("浸润性导管癌", "Invasive ductal carcinoma."),
    ("切缘未见癌", "切缘干净"),
    ("No lymphovascular invasion identified.", "Lymphovascular invasion: absent"),
])
def test_synonyms_and_order_are_acceptable_both_ways(caption, reference):
    assert is_acceptable(ALL, caption, ["别的", reference]) and is_acceptable(ALL, reference, [caption])


@pytest.mark.parametrize(("caption", "reference"), [
    ("胃腺癌，可见坏死。", "胃腺癌，未见坏死。"), ("浸润性导管癌", "浸润性小叶癌"), ("浸润性筛状癌", "浸润性微乳头状癌"),
    ("淋巴结转移(2/12)", "淋巴结转移(3/12)"), ("pN1", "pN2"), ("左乳浸润性癌", "右乳浸润性癌"), ("胃腺癌，高分化", "胃腺癌，高-中分化"),
    ("ER(90%+)", "ER(10%+)"), ("HER2(0)", "HER2(1+)"), ("浸润至浅肌层", "浸润至深肌层"), ("未见异型", "可见异型"), ("胃窦腺癌", "胃腺癌"),
    ("肺腺癌，微乳头型", "肺腺癌，乳头型"), ("慢性胃炎，轻度", "慢性胃炎，重度"), ("胃腺癌", "胃腺癌，脉管癌栓不除外"), ("", "胃腺癌"),
    ("错配修复：MLH1(-)", "错配修复：PMS2(-)"), ("胃腺癌，EBER检测，阴性", "胃腺癌，EBER检测，阳性"), ("未见", "可见"), ("No.", "Yes."), ("HP检测，(-)", "HP检测"),
])
def test_another_meaning_is_not_acceptable(caption, reference):
    assert not is_acceptable(ALL, caption, [reference]) and not is_acceptable(ALL, reference, [caption])


def sentences(dictionary: dict, wanted: dict[str, str], rng: random.Random) -> str:
    """A report that asserts and denies findings, each by any of its plain Chinese phrases, in any order."""
    distinct = {phrase for group in dictionary["distinct"] for phrase in group}
    clauses = []
    for name, status in wanted.items():
        phrases = [p for p in dictionary[name]["phrases"] if p not in distinct and p.isalpha() and not p.isascii() and "见" not in p]
        phrase = rng.choice(phrases)
        answered = [f"未见{phrase}", f"无{phrase}", f"{phrase}：无"] if status == ABSENT else [f"可见{phrase}", f"{phrase}：有", phrase]
        clauses.append(rng.choice(answered))
    rng.shuffle(clauses)
    return rng.choice("，；").join(clauses) + rng.choice(["。", ""])


def test_reports_made_from_a_dictionary_agree_as_their_findings_do():
    names = ["necrosis", "ulcer", "intestinal_metaplasia", "signet_ring_cell_carcinoma", "perineural_invasion",
             "lymphovascular_invasion", "chronic_gastritis", "low_grade_intraepithelial_neoplasia"]
    content = load_plain_yaml(SHIPPED / "gastric.yaml")
    gastric, rng = FindingDictionary.load(["gastric"]), random.Random(0)
    seen = set()
    for _ in range(300):
        true = {name: rng.choice([PRESENT, ABSENT]) for name in rng.sample(names, 4)}
        said = dict(true)
        if rng.random() < 0.5:
            changed = rng.choice(list(true))
            said[changed] = PRESENT if true[changed] == ABSENT else ABSENT
        caption, reference = sentences(content, said, rng), sentences(content, true, rng)
        assert is_acceptable(gastric, caption, [reference]) == (said == true), (caption, reference)
        reversed_danger = any(said[name] != true[name] for name in content["dangerous"] if name in true)
        if reversed_danger:
            assert not is_safe(gastric, caption, [reference]), (caption, reference)
        if said == true:
            assert is_safe(gastric, caption, [reference]), (caption, reference)
        seen.add((said == true, reversed_danger))
    assert seen == {(True, False), (False, False), (False, True)}


@pytest.mark.parametrize(("text", "status"), [
    ("胃腺癌", PRESENT), ("慢性胃炎", ABSENT), ("未见癌", ABSENT), ("可疑癌", UNCERTAIN), ("高级别上皮内瘤变", None), ("", None),
    ("癌旁慢性胃炎", ABSENT), ("慢性胃炎背景上见腺癌", PRESENT), ("No evidence of malignancy", ABSENT), ("Tubular adenoma.", ABSENT),
    ("非典型增生", None), ("淋巴结反应性增生，未见转移癌", ABSENT), ("乳腺癌术后，瘢痕组织", None), ("弥漫大B细胞淋巴瘤", PRESENT), ("DCIS", PRESENT),
    ("未见肿瘤", ABSENT), ("No residual tumor.", ABSENT), ("No evidence of tumor", ABSENT), ("No tumour identified", ABSENT),
    ("No neoplasm", ABSENT), ("Negative for tumour.", ABSENT), ("未见肿瘤残留", ABSENT), ("肿瘤：未见", ABSENT), ("色素痣", ABSENT),
    ("Compound nevus", ABSENT), ("神经鞘瘤", ABSENT), ("肿瘤", None), ("Tumor of the lung", None), ("发育不良痣", None),
    ("Residual adenocarcinoma; no tumor at margin", PRESENT), ("未见肿瘤出芽", None), ("高级别上皮内瘤变，切缘未见肿瘤", None),
    ("Margins are negative for tumor", None), ("No tumor budding", None), ("可疑肿瘤", None), ("痣样黑色素瘤", PRESENT),
])
def test_a_text_is_malignant_benign_open_or_silent(text, status):
    assert malignancy(text) == status


@pytest.mark.parametrize(("caption", "reference", "safe"), [
    ("慢性胃炎", "胃腺癌", False), ("胃腺癌", "慢性胃炎", False), ("纤维腺瘤", "浸润性导管癌", False),
    ("腺癌，脉管癌栓(+)", "腺癌，未见脉管癌栓", False), ("胃腺癌，切缘可见癌", "胃腺癌，切缘未见癌", False),
    ("导管原位癌，未见浸润性成分", "浸润性导管癌", False), ("淋巴结未见癌转移(0/12)，腺癌", "淋巴结见癌转移(2/12)，腺癌", False),
    ("肺腺癌", "肺鳞癌", True), ("胃腺癌，可见坏死", "胃腺癌，未见坏死", True), ("可疑癌", "慢性胃炎", True), ("", "胃腺癌", True),
    ("No residual tumor", "Adenocarcinoma", False), ("未见肿瘤", "肺腺癌", False), ("色素痣", "恶性黑色素瘤", False),
    ("腺癌，远处转移", "腺癌，无远处转移", False), ("腺癌，pM1", "腺癌，未见远处转移", False), ("腺癌，远处转移：无", "腺癌，远处转移：有", False),
    ("乳头状癌，见包膜侵犯", "乳头状癌，未见包膜侵犯", False), ("乳头状癌，包膜完整", "乳头状癌，侵及包膜", False),
    ("Carcinoma with capsular invasion", "Carcinoma, no capsular invasion", False),
    ("Carcinoma; liver metastasis is present", "Carcinoma; no liver metastasis", False),
    ("被膜受侵", "被膜未受侵", False), ("包膜未见侵犯", "包膜见侵犯", False), ("包膜未受侵", "癌侵及包膜", False),
    ("癌，未见包膜外侵犯", "癌，侵及包膜", True), ("腺癌，见结外侵犯", "腺癌，未见结外侵犯", False), ("滤泡癌，见血管侵犯", "滤泡癌，未见血管侵犯", False),
    ("腺癌，无肝转移", "腺癌，肺转移", True), ("癌，侵及包膜，未突破包膜", "癌，侵及包膜", True), ("腺癌，切缘未见肿瘤", "腺癌", True),
    ("肿瘤大小2cm", "腺癌", True),
])
def test_only_a_dangerous_contradiction_is_not_safe(caption, reference, safe):
    assert is_safe(ALL, caption, [reference]) == is_safe(ALL, reference, [caption]) == safe


def test_both_are_in_every_column_of_the_table_and_ordered_as_they_must_be():
    texts = ["胃腺癌，未见坏死", "慢性胃炎", "胃腺癌，坏死：无", "胃腺癌，可见坏死"]
    report = evaluate(Answers(texts, [[texts[0]]] * 4))
    strict, acceptable, safe = (report.columns[CAPTIONS][name].value for name in ("exact_match", "acceptable_match", "safe_match"))
    assert (strict, acceptable, safe) == (0.25, 0.5, 0.75)
    assert all({"acceptable_match", "safe_match"} <= set(column) for column in report.columns.values())
    none = FindingDictionary({}, [])
    assert agreement_statistics(none, texts, [[texts[0]]] * 4)["acceptable_match"](np.arange(4)) == 0.25


def test_dangerous_and_distinct_of_a_dictionary_are_checked(tmp_path):
    path = tmp_path / "mine.yaml"
    for content, what in (("a: {phrases: [x]}\ndangerous: [b]\n", "dangerous"), ("a: {phrases: [x]}\ndistinct: [x]\n", "distinct")):
        path.write_text(content, encoding="utf-8")
        with refused("mine.yaml", what):
            FindingDictionary.load([str(path)])
    for path in SHIPPED.glob("*.yaml"):
        content = load_plain_yaml(path)
        phrases = {p for name, entry in content.items() if isinstance(entry, dict) for kind in entry for p in entry[kind]}
        assert {p for group in content["distinct"] for p in group} <= phrases, path.name


def test_the_new_name_of_a_monitored_score_is_said_once(caplog):
    schema._current_score.cache_clear()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            config = apply_overrides(Config(), ["training.monitor=val_meteor_exact"])
    assert config.training.monitor == "val_token_alignment" and SCORES["token_alignment"].old_names
    assert [m for m in caplog.messages if "val_meteor_exact" in m] == [
        "training.monitor: the score val_meteor_exact is now called val_token_alignment"]
