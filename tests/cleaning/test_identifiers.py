"""Identifiers are masked, whatever stands around them, and nothing that is medical is."""

from __future__ import annotations

import random

import pytest

from finetune.cleaning.final_check import suspects
from finetune.cleaning.identifiers import Masker, is_identity_card
from finetune.cleaning.report_text import Cleaner
from finetune.cleaning.rules import Rules
from tests.helpers import reports

RULES = Rules.load()
CLEANER = Cleaner(RULES)
REPORTS = 1100  # of each language, planted and clean


def masked(text: str, *known: str, doctors: tuple[str, ...] = ()) -> str:
    return Masker(RULES.identifiers, RULES.protect, doctors).mask(text, known)[0]


@pytest.mark.parametrize("make", [reports.planted_chinese, reports.planted_english])
def test_none_of_thousands_of_planted_identifiers_is_left(make):
    rng = random.Random(11)
    planted, left = 0, []
    for _ in range(REPORTS):
        report = make(rng)
        text = CLEANER.clean([("diagnosis", report.text)]).text
        planted += len(report.planted)
        left += [(value, report.text) for value in report.planted if value in text]
    assert planted > 1.5 * REPORTS and not left


@pytest.mark.parametrize("make", [reports.clean_chinese, reports.clean_english])
def test_no_clean_text_is_changed_or_suspected(make):
    rng = random.Random(12)
    texts = {make(rng).text for _ in range(REPORTS)}
    results = {text: CLEANER.clean([("diagnosis", text)]) for text in texts}
    assert len(texts) > REPORTS // 4
    assert not [text for text, result in results.items() if result.masked or result.removed or result.text != text]
    assert not [suspect for result in results.values() for suspect in result.suspects]


@pytest.mark.parametrize("make", [reports.planted_chinese, reports.planted_english])
def test_the_final_check_finds_most_identifiers_that_no_rule_has_masked(make):
    rng = random.Random(13)
    planted = found = 0
    for _ in range(REPORTS):
        report = make(rng)
        shown = " ".join(suspect.context for suspect in suspects(report.text))
        planted += len(report.planted)
        found += sum(value in shown or value.split()[0] in shown for value in report.planted)
    assert found > 0.9 * planted


def test_a_name_that_is_also_a_word_of_pathology_leaves_the_word():
    known = ("高分", "周围", "方向", "成熟", "白斑", "时期")
    for text in ("高分化腺癌，癌周围见淋巴细胞", "向神经内分泌方向分化", "成熟性畸胎瘤，周围组织未见癌", "外阴白斑"):
        assert masked(text, *known) == text
    assert masked("高分取材，腺癌", *known) == "[NAME]取材，腺癌"


def test_the_final_check_finds_a_name_amid_other_characters():
    assert [suspect.text for suspect in suspects("腺癌，见王丽萍前次报告。")] == ["王丽萍"]


@pytest.mark.parametrize("text", [
    "肿物大小3.5×2×1cm，切面灰白", "Ki-67（30%）", "淋巴结10/12见癌转移", "淋巴结（1/12）", "Gleason评分3+4=7分", "肿瘤厚3-4 mm", "CD20", "何杰金淋巴瘤", "李-佛美尼综合征",
    "Barrett食管", "霍奇金淋巴瘤，结节硬化型", "高级别上皮内瘤变", "黄瘤", "白斑", "于黏膜下层见癌", "曾行放疗后改变", "方向不清", "时有核异型", "石蜡包埋组织", "金属异物", "毛囊上皮瘤", "马鞍鼻",
    "牛眼样改变", "温和的细胞形态", "左乳浸润性癌", "右肺上叶", "高分化", "汪洋状出血", "核分裂象12/10HPF", "第8版", "WHO 2019年分类", "2-3个/10HPF", "Nottingham grade 2 (3+2+2=7)",
    "Hodgkin lymphoma", "Crohn disease", "grade 3/3", "12 of 15 nodes", "May represent artifact", "1.2 x 0.8 x 0.5 cm", "NM_005228.5:c.2573T>G", "p.(Leu858Arg)", "chr7:55259515",
    "ICD-O 8140/3", "距切缘0.3cm/0.5cm", "直径2010 μm", "Paget disease of the nipple", "全层浸润", "单个细胞", "周围神经束侵犯", "连接蛋白", "安静状态", "主任医师会诊", "高年资医师复核",
    "送检医师要求", "病理医师意见", "患者血压高", "患者高龄", "患者方便取材", "石某种变异", "何种类型", "肝窦周围", "胃镜室", "阳性率90%", "第1-3组淋巴结0/5、2/6、0/3", "肿瘤大小1.5/2.0/3.0cm",
    "李斯特菌感染", "黄色肉芽肿性炎", "钱币样阴影", "雷诺现象相关改变", "Call-Exner bodies", "Reed-Sternberg cells", "Clark level IV", "Van Gieson stain",
])
def test_what_is_medical_is_never_masked(text):
    assert masked(text) == text


@pytest.mark.parametrize(("text", "expected"), [
    ("患者张伟，男，56岁，胃癌。", "患者[NAME]，男，56岁，胃癌。"),
    ("报告医师：李建国　审核医师：欧阳明月", ""),
    ("胃癌。诊断医师：徐金/曹梅桂 2023-05-01", "胃癌。"),
    ("胃癌（2023年5月12日）", "胃癌"),
    ("于2023.05.12在北京协和医院活检", "于[DATE]在[PLACE]活检"),
    ("请王主任会诊", "请[NAME]会诊"),
    ("身份证11010119900307775x属实", "[ID]属实"),  # named as one, it is masked whatever its digits are
    ("二〇二三年五月十二日切除", "[DATE]切除"),
    ("92岁老人", "[AGE]老人"), ("89岁老人", "89岁老人"),
    ("胃癌，电话：0571-86638164", "胃癌"),
    ("TCGA-CR-7395-01Z slide", "[ID] slide"),
    ("Patient: SMITH, JOHN A. Gastric carcinoma", "Gastric carcinoma"),
    ("Seen by Dr. Johnson-Lee on 5/12/21.", "Seen by [NAME] on [DATE]."),
    ("Dr. Barrett saw Barrett esophagus.", "[NAME] saw Barrett esophagus."),
])
def test_examples(text, expected):
    assert masked(text) == expected


def test_the_check_digit_of_an_identity_card():
    rng = random.Random(3)
    for _ in range(200):
        card = reports.identity_card(rng)
        spaced = f"{card[:6]} {card[6:14]} {card[14:]}"
        assert is_identity_card(card) and masked(f"卡{spaced}。") == "卡[ID]。"
        wrong = card[:-1] + rng.choice([d for d in "0123456789X" if d != card[-1]])
        assert not is_identity_card(wrong)
    assert is_identity_card("11010519491231002X")  # the example of the standard
    assert not is_identity_card("1101051949123100") and not is_identity_card("一" * 18)


def test_values_of_the_table_are_masked_where_no_rule_finds_them():
    assert masked("张伟同意手术，标本A77", "张伟") == "[NAME]同意手术，标本A77"
    assert masked("考虑与李建国讨论", doctors=("李建国",)) == "考虑与[NAME]讨论"
    assert masked("see AB1234 and AB12345", "AB1234") == "see [ID] and AB12345"
    assert masked("何杰金淋巴瘤", "何杰") == "何杰金淋巴瘤"  # an eponym
    assert masked("外科标本，不详", "外科", "不详", "无", "男") == "外科标本，不详"


def test_a_kind_can_be_kept_masked_or_removed(tmp_path):
    text = "于2023年5月12日切除"
    shipped = (Rules.load(), "于[DATE]切除")
    changed = []
    from finetune.cleaning.rules import SHIPPED
    for action, expected in (("keep", text), ("remove", "于切除")):
        path = tmp_path / f"{action}.yaml"
        content = SHIPPED.read_text(encoding="utf-8")
        path.write_text(content.replace("  date:\n    action: mask", f"  date:\n    action: {action}"), encoding="utf-8")
        changed.append((Rules.load(path), expected))
    for rules, expected in [shipped, *changed]:
        assert Masker(rules.identifiers, rules.protect).mask(text)[0] == expected
