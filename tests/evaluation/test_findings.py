"""Findings in sentences that are unambiguous to a pathologist."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.evaluation.findings import (
    ABSENT,
    PRESENT,
    SHIPPED,
    UNCERTAIN,
    FindingDictionary,
    finding_statistics,
    findings_table,
)
from tests.helpers.files import refused

BREAST, GASTRIC, COLORECTAL = (FindingDictionary.load([name]) for name in ("breast", "gastric", "colorectal"))
NODE, LVI, PNI, MARGIN = "lymph_node_metastasis", "lymphovascular_invasion", "perineural_invasion", "margin_involvement"


@pytest.mark.parametrize(("dictionary", "text", "said"), [
    (BREAST, "浸润性导管癌，淋巴结(2/12)见癌转移，脉管内未见癌栓。", {"invasive_carcinoma": PRESENT, NODE: PRESENT, LVI: ABSENT}),
    (BREAST, "腋窝淋巴结未见明确癌转移（0/15）", {NODE: ABSENT}),
    (BREAST, "淋巴结15枚，均未见癌转移", {NODE: ABSENT}),
    (BREAST, "淋巴结15枚，均见癌转移", {NODE: PRESENT}),
    (BREAST, "未见癌转移（淋巴结0/15）", {NODE: ABSENT}),
    (BREAST, "0/12 lymph nodes involved", {NODE: ABSENT}),
    (BREAST, "乳腺浸润性导管癌，Ⅱ级。", {"invasive_carcinoma": PRESENT, "grade_2": PRESENT}),
    (BREAST, "浸润性癌，Ⅲ级", {"invasive_carcinoma": PRESENT, "grade_3": PRESENT}),
    (BREAST, "淋巴结转移性癌(0/12)", {NODE: ABSENT}),
    (BREAST, "淋巴结转移性癌(10/12)", {NODE: PRESENT}),
    (BREAST, "脉管癌栓不除外", {LVI: UNCERTAIN}),
    (BREAST, "不除外脉管癌栓；可疑神经侵犯", {LVI: UNCERTAIN, PNI: UNCERTAIN}),
    (BREAST, "已除外脉管癌栓", {LVI: ABSENT}),
    (BREAST, "HER2 (0)，ER（90%+），PR（－）", {"her2_positive": ABSENT, "er_positive": PRESENT, "pr_positive": ABSENT}),
    (BREAST, "HER-2(3+), ER(+, 90%) PR(-)", {"her2_positive": PRESENT, "er_positive": PRESENT, "pr_positive": ABSENT}),
    (BREAST, "HER2(2+)", {"her2_positive": UNCERTAIN}),
    (BREAST, "ER阳性 PR阴性", {"er_positive": PRESENT, "pr_positive": ABSENT}),
    (BREAST, "非浸润性癌，导管原位癌", {"invasive_carcinoma": ABSENT, "ductal_carcinoma_in_situ": PRESENT}),
    (BREAST, "非典型增生，不典型增生", {"atypical_hyperplasia": PRESENT}),  # 非 and 不 belong to the name
    (BREAST, "未见脉管癌栓、神经侵犯及坏死，可见钙化", {LVI: ABSENT, PNI: ABSENT, "necrosis": ABSENT, "microcalcification": PRESENT}),
    (BREAST, "未见坏死但可见钙化", {"necrosis": ABSENT, "microcalcification": PRESENT}),
    (BREAST, "脉管癌栓(-)，神经侵犯（＋）", {LVI: ABSENT, PNI: PRESENT}),
    (BREAST, "脉管癌栓及神经侵犯均未见", {LVI: ABSENT, PNI: ABSENT}),
    (BREAST, "否认坏死。无钙化", {"necrosis": ABSENT, "microcalcification": ABSENT}),
    (BREAST, "切缘未见癌，乳头未见累及", {MARGIN: ABSENT, "nipple_or_skin_involvement": ABSENT}),
    (BREAST, "乳头状癌，上切缘距癌2cm，下切缘可见癌", {MARGIN: PRESENT}),
    (BREAST, "内乳头状癌，切缘距癌1cm", {}),  # of the nipple, or of the margin, nothing is said
    (BREAST, "No lymphovascular invasion, perineural invasion, or necrosis.", {LVI: ABSENT, PNI: ABSENT, "necrosis": ABSENT}),
    (BREAST, "Negative for lymphovascular invasion, perineural invasion and necrosis.", {LVI: ABSENT, PNI: ABSENT, "necrosis": ABSENT}),
    (BREAST, "No necrosis, grade 3 and DCIS", {"necrosis": ABSENT, "grade_3": PRESENT, "ductal_carcinoma_in_situ": PRESENT}),
    (BREAST, "脉管内见癌栓，神经未见侵犯; 2 of 3 lymph nodes positive", {LVI: PRESENT, PNI: ABSENT, NODE: PRESENT}),
    (BREAST, "No necrosis, DCIS is present.", {"necrosis": ABSENT, "ductal_carcinoma_in_situ": PRESENT}),
    (BREAST, "Necrosis is not identified but calcifications are present.", {"necrosis": ABSENT, "microcalcification": PRESENT}),
    (BREAST, "Lymphovascular invasion: absent. PNI cannot be excluded", {LVI: ABSENT, PNI: UNCERTAIN}),
    (BREAST, "Margins are negative for carcinoma; suspicious for LVI", {MARGIN: ABSENT, LVI: UNCERTAIN}),
    (BREAST, "Negative for lymph node metastasis (0/3); non-invasive carcinoma", {NODE: ABSENT, "invasive_carcinoma": ABSENT}),
    (BREAST, "not only DCIS; without calcification", {"ductal_carcinoma_in_situ": PRESENT, "microcalcification": ABSENT}),
    (BREAST, "Size 3.5 cm, grade III", {"grade_3": PRESENT}),
    (GASTRIC, "胃窦腺癌，切缘未见腺癌", {"adenocarcinoma": PRESENT, MARGIN: ABSENT}),  # said of one place, denied of another
    (GASTRIC, "慢性非萎缩性胃炎，HP(-)", {"chronic_gastritis": PRESENT, "atrophy": ABSENT, "helicobacter_pylori": ABSENT}),
    (GASTRIC, "癌组织未突破浆膜，浸润至固有肌层", {"serosal_invasion": ABSENT, "muscularis_invasion": PRESENT}),
    (GASTRIC, "未分化癌", {}),
    (COLORECTAL, "错配修复蛋白MLH1(-)，淋巴结阴性", {"mismatch_repair_deficient": PRESENT, NODE: ABSENT}),
    (COLORECTAL, "", {}),
])
def test_sentences(dictionary, text, said):
    assert dictionary.read(text) == said


def test_every_phrase_of_a_shipped_dictionary_asserts_and_every_negation_denies():
    from finetune.config.yaml_file import load_plain_yaml

    for path in SHIPPED.glob("*.yaml"):
        dictionary = FindingDictionary.load([path.stem])
        for name, entry in load_plain_yaml(path).items():
            for kind, wanted in (("phrases", PRESENT), ("negations", ABSENT), ("uncertain", UNCERTAIN)):
                for phrase in entry.get(kind, []) if isinstance(entry, dict) else []:
                    assert dictionary.read(phrase.replace("…", "处")).get(name) == wanted, (path.stem, name, phrase)


def test_contradictions_are_the_dangerous_errors():
    captions = ["可见坏死，未见钙化", "未见坏死", "可见钙化", "坏死不除外"]
    references = [["未见坏死，未见钙化"], ["可见坏死"], ["可见钙化。", "未见坏死。"], ["可见坏死"]]
    scores = {k: s(np.arange(4)) for k, s in finding_statistics(BREAST, captions, references).items()}
    # present: said 2, true 3, both 1; absent: said 2, true 3, both 1; contradicted: two necroses
    assert scores == {"finding_presence_precision": 1 / 2, "finding_presence_recall": 1 / 3,
                      "finding_absence_precision": 1 / 2, "finding_absence_recall": 1 / 3, "finding_contradictions": 2 / 4}
    table = findings_table(BREAST, captions, references)
    assert set(table) == {"necrosis", "microcalcification"}
    assert table["necrosis"] == {"present": 2, "absent": 2, "precision": 0, "recall": 0, "contradictions": 2}


def test_a_custom_dictionary_extends_a_shipped_one(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("necrosis: {phrases: [粉刺样]}\nno: {phrases: ['无痛…肿块']}\n", encoding="utf-8")
    both = FindingDictionary.load(["breast", str(mine)])
    assert both.read("粉刺样，无痛性肿块，钙化") == {"necrosis": PRESENT, "no": PRESENT, "microcalcification": PRESENT}


def test_a_term_keeps_its_own_words_and_a_name_of_ones_own_outweighs_what_is_ignored(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("loss: {phrases: [MLH1…阴性]}\nnuclear_3: {phrases: [nuclear grade 3]}\nlong: {phrases: [grade 3 nuclear atypia]}\n",
                    encoding="utf-8")
    both = FindingDictionary.load(["breast", str(mine)])
    assert both.read("MLH1蛋白阴性, nuclear grade 3; grade 3 nuclear atypia") == {"loss": PRESENT, "nuclear_3": PRESENT, "long": PRESENT}


@pytest.mark.parametrize(("text", "word"), [("a: [b]", "'a'"), ("a: {phrases: []}", "'a'"), ("a: {words: [b]}", "'a'"),
                                            ("- a", "not a dictionary"), ("a: {phrases: [b]}\na: {phrases: [c]}", "appears twice"),
                                            ("a: {phrases: [{b: c}]}", "'a'"), ("a: &b {phrases: [b]}", "a")])
def test_a_dictionary_that_cannot_be_used_is_refused(tmp_path, text, word):
    (tmp_path / "d.yaml").write_text(text, encoding="utf-8")
    if "&" in text:  # an anchor without an alias is harmless
        assert FindingDictionary.load([str(tmp_path / "d.yaml")]).read("b") == {"a": PRESENT}
        return
    with refused("d.yaml", word):
        FindingDictionary.load([str(tmp_path / "d.yaml")])


def test_an_unknown_name_is_answered_with_the_known_ones():
    with refused("pancreas", "breast, colorectal, gastric, lung, prostate"):
        FindingDictionary.load(["pancreas"])
