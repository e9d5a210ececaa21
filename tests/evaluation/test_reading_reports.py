"""What reports say, as a pathologist annotated it by hand: answers of forms, fixed terms, grades, lists, scope, doubt.

A row is a report and what it says of the findings of the breast dictionary; what is not in the row is not mentioned.
"""

from __future__ import annotations

import random
import time

import pytest

from finetune.evaluation import report_cues
from finetune.evaluation.findings import ABSENT, PRESENT, UNCERTAIN, FindingDictionary
from finetune.evaluation.report_cues import Cue, cue_pattern

BREAST, LUNG, PROSTATE, COLORECTAL = (FindingDictionary.load([n]) for n in ("breast", "lung", "prostate", "colorectal"))
SHORT = {"lvi": "lymphovascular_invasion", "pni": "perineural_invasion", "margin": "margin_involvement",
         "node": "lymph_node_metastasis", "inv": "invasive_carcinoma", "dcis": "ductal_carcinoma_in_situ",
         "calc": "microcalcification", "er": "er_positive", "pr": "pr_positive", "her2": "her2_positive",
         "tn": "triple_negative"}
STATUS = {"+": PRESENT, "-": ABSENT, "?": UNCERTAIN}

REPORTS = {
    "answers": r"""
        Lymphovascular invasion: No = lvi-
        Lymphovascular invasion: None = lvi-
        Lymphovascular invasion: N = lvi-
        Lymphovascular invasion: Not identified = lvi-
        Lymphovascular invasion: Not definitely identified = lvi-
        Lymphovascular invasion: no tumor emboli = lvi-
        Lymphovascular invasion: Cannot be determined = lvi?
        Lymphovascular invasion: Not applicable = lvi?
        Perineural invasion: N/A = pni?
        Lymphovascular invasion: Present = lvi+
        Lymphovascular invasion: Yes = lvi+
        Lymphovascular invasion: Present, not extensive = lvi+
        Lymphovascular invasion - present = lvi+
        Lymphovascular invasion - not identified = lvi-
        Lymphovascular invasion, not identified. = lvi-
        Lymphovascular invasion (none) = lvi-
        Lymphovascular invasion (LVI): absent = lvi-
        LYMPHOVASCULAR INVASION\nNot identified\nPERINEURAL INVASION\nPresent = lvi- pni+
        Lymphovascular Invasion:\n  Not identified\nPerineural Invasion:\n  Present = lvi- pni+
        Lymphovascular invasion:\nPerineural invasion: absent = pni-
        No perineural or lymphovascular\ninvasion is seen. = lvi- pni-
        LVI: absent PNI: present = lvi- pni+
        脉管侵犯：否 = lvi-
        脉管侵犯：是 = lvi+
        脉管癌栓： = 
        神经侵犯（无） = pni-
        神经侵犯【有】 = pni+
        脉管癌栓（+） = lvi+
        脉管癌栓：（-） = lvi-
        脉管癌栓—，神经侵犯— = lvi- pni-
        脉管癌栓：无 神经侵犯：有 = lvi- pni+
        脉管癌栓：无，神经侵犯：无，切缘：阴性 = lvi- pni- margin-
        脉管、神经侵犯：无 = lvi- pni-
        脉管及神经未见侵犯 = lvi- pni-
        脉管癌栓：\n无\n神经侵犯：\n有 = lvi- pni+
        脉管癌栓：未检测 = lvi?
        浸润性导管癌（未见脉管癌栓） = inv+ lvi-
        DCIS (no lymphovascular invasion) with calcifications = dcis+ lvi- calc+
        浸润性导管癌，大小3cm（无）脉管癌栓 = inv+ lvi+
        Absent: necrosis = necrosis-
        脉管：有 = lvi+
        脉管癌栓 否 = lvi-
        脉管癌栓：无 浸润性导管癌 = lvi- inv+
        Vessel status (LVI): absent = lvi-
        DCIS: no necrosis = dcis+ necrosis-
        Lymph nodes: no LVI = lvi-
        Necrosis: no DCIS = necrosis+ dcis-
        Lymphovascular invasion: no vascular invasion = lvi-
        Lymphovascular invasion: no tumor emboli seen = lvi-
        Margins: no tumor identified = margin-
        切缘未见阳性 = margin-
        Lymphovascular invasion (DCIS nearby): absent = lvi- dcis+
        DCIS - necrosis present = dcis+ necrosis+
        Invasive carcinoma no skin changes = inv+
        神经侵犯:未见脉管癌栓:未见切缘:阴性 = pni- lvi- margin-
        LVI: no PNI: yes = lvi- pni+
        MVI（微血管侵犯）：无 = lvi-
        LYMPHOVASCULAR INVASION\n\nLymphovascular invasion: no = lvi-
        """,
    "numbers": r"""
        淋巴结转移：0/12 = node-
        淋巴结转移：3/12 = node+
        前哨淋巴结（0/3） = node-
        淋巴结：未见转移癌（0/15） = node-
        腋窝淋巴结15枚，其中3枚见癌转移 = node+
        淋巴结0/12见癌转移 = node-
        Lymph nodes: 0/12 = node-
        0 of 12 lymph nodes involved = node-
        Metastatic carcinoma in 3 of 15 lymph nodes = node+
        Fifteen lymph nodes, negative for tumor (0/15) = node-
        Lymph nodes (15), negative. = node-
        胰周淋巴结 2 枚 ， 未见癌转移 = node-
        4/20LN(+) = node+
        No lymph nodes were found = 
        Lymph nodes involved: 0 = node-
        Lymph nodes involved: 3 = node+
        Lymph node metastasis: lymph nodes not submitted = node?
        Three of seven lymph nodes contain metastatic carcinoma = node+
        No lymph nodes are positive = node-
        No. of positive lymph nodes: 3 = node+
        Lymph nodes positive: 0 = node-
        Number of lymph nodes with macrometastases: 0 = node-
        Necrosis: 0% = necrosis-
        Necrosis: 30% = necrosis+
        Necrosis with mitoses 0/10 HPF = necrosis+
        Necrosis: 1% = necrosis+
        坏死灶位于0区 = necrosis+
        ER: <10% = er+
        Positive lymph nodes 0/12 = node-
        Lymph nodes positive 0/12 = node-
        Positive lymph nodes: none = node-
        Margins no tumor lymph nodes 3/12 = margin- node+
        DCIS in lymph nodes: 0/3 = dcis+ node-
        ER: 90% = er+
        ER: <1% = er-
        ER: 0 = er-
        ER, 90%, strong; PR, 0% = er+ pr-
        """,
    "receptors": r"""
        ER：阴性 = er-
        ER：阳性（90%），PR：阴性 = er+ pr-
        ER（约90%，强+），PR（-） = er+ pr-
        ER - PR + = er- pr+
        ER - positive; PR - negative = er+ pr-
        ER+/PR- = er+ pr-
        Tumor cells are positive for ER and PR = er+ pr+
        ER阳性、PR阴性 = er+ pr-
        ER PR均阳性 = er+ pr+
        ER done PR positive = pr+
        ER - see comment = 
        Negative controls are run with all ER stains = 
        HER2(2+) and ER negative = her2? er-
        ER、PR均阴性 = er- pr-
        ER/PR positive, HER2 negative = er+ pr+ her2-
        ER, PR and HER2 are negative = er- pr- her2-
        Positive for ER, negative for PR = er+ pr-
        Estrogen Receptor (ER) Status: Positive (greater than 10%) = er+
        Progesterone Receptor (PgR) Status: Negative = pr-
        ER (SP1, 90%, strong): positive = er+
        Breast, ER and PR were ordered = 
        HER2：阴性（1+） = her2-
        HER2(2+) = her2?
        HER2：阳性（3+） = her2+
        HER2 (IHC): Negative (Score 1+) = her2-
        HER-2/neu: equivocal (2+), FISH: HER2 not amplified = her2-
        ER(-)、PR(-)、HER2(0)，三阴性浸润性癌 = er- pr- her2- tn+ inv+
        """,
    "fixed terms": r"""
        Invasive carcinoma of no special type with necrosis = inv+ necrosis+
        Invasive carcinoma, not otherwise specified, necrosis = inv+ necrosis+
        浸润性癌，非特殊型伴坏死 = inv+ necrosis+
        无定形钙化 = calc+
        Non-necrotic; non-invasive carcinoma = inv-
        """,
    "grades": r"""
        Overall Grade: Grade 2 (scores of 6 or 7); nuclear grade: 3; mitotic score: 1; tubule formation: 3 = grade_2+
        Nuclear grade 3, Nottingham grade II/III = grade_2+
        组织学分级II级（腺管形成3分，核分级2级，核分裂象1分） = grade_2+
        浸润性导管癌，组织学分级：Ⅲ级；导管原位癌，核级2级 = inv+ dcis+ grade_3+
        Invasive carcinoma, grade I (tubule formation: 1, nuclear grade: 3, mitoses: 1) = inv+ grade_1+
        Nuclear Pleomorphism Grade: 2\nTubule Formation Grade: 3\nNottingham grade is 2 = grade_2+
        Histologic grade: III; DCIS, nuclear grade 2 = dcis+ grade_3+
        """,
    "lists": r"""
        Lymphovascular or perineural invasion is not identified = lvi- pni-
        Lymphovascular and perineural invasion present = lvi+ pni+
        no necrosis, ulceration or perforation, calcifications are seen = necrosis- calc+
        Negative for DCIS, and necrosis is present = dcis- necrosis+
        Negative for DCIS, necrosis and calcifications = dcis- necrosis- calc-
        Invasive ductal carcinoma, necrosis, and calcifications are not identified = inv+ necrosis- calc-
        Negative for DCIS, and necrosis is extensive = dcis- necrosis+
        No necrosis, breast with DCIS or calcifications = necrosis- dcis+ calc+
        (1) DCIS without necrosis   (2) calcifications = dcis+ necrosis- calc+
        ①未见坏死②钙化 = necrosis- calc+
        未见坏死、钙化及脉管癌栓 = necrosis- calc- lvi-
        未见坏死，钙化或脉管癌栓 = necrosis- calc- lvi-
        未见坏死，钙化形成 = necrosis- calc+
        Necrosis, other changes not identified = necrosis+
        Necrosis, absent LVI = necrosis+ lvi-
        坏死、钙化，均未见 = necrosis- calc-
        """,
    "scope": r"""
        No necrosis in the DCIS = necrosis- dcis+
        Necrosis in the DCIS is not identified = necrosis- dcis+
        Microcalcifications: Not identified in DCIS = calc- dcis+
        No foci of residual DCIS = dcis-
        DCIS (solid, no necrosis, with calcifications) = dcis+ necrosis- calc+
        Invasive carcinoma (see note; 2 cm) not identified = inv-
        No evidence (gross, microscopic) of DCIS = dcis-
        No tumor (DCIS, LVI) = dcis- lvi-
        Absent tumor (note\nDCIS = dcis+
        Negative control tissue and DCIS = dcis+
        坏死 钙化(-) = necrosis+ calc-
        No LVI identified and DCIS = lvi- dcis+
        未见坏死，脉管见癌栓 = necrosis- lvi+
        未见坏死但可见钙化 = necrosis- calc+
        No definite response in the invasive carcinoma = inv+
        No LVI in the DCIS with calcifications = lvi- dcis+ calc+
        浸润性导管癌伴坏死未见 = inv+ necrosis-
        Invasive ductal carcinoma with necrosis not identified = inv+ necrosis-
        All margins are free of tumor = margin-
        Margins are clear of DCIS. DCIS = margin- dcis+
        The tumor does not involve the margins = margin-
        Margins: Uninvolved by tumor = margin-
        No carcinoma at the margins = margin-
        切缘未见癌 = margin-
        Invasive carcinoma 1) no LVI 2) PNI present = inv+ lvi- pni+
        """,
    "doubt": r"""
        考虑浸润性导管癌；疑似神经侵犯；倾向导管原位癌 = inv? pni? dcis?
        脉管癌栓不除外 = lvi?
        建议免疫组化除外浸润性癌 = inv?
        无法评估脉管癌栓 = lvi?
        脉管癌栓？ = lvi?
        Rule out invasive carcinoma = inv?
        Invasive carcinoma has been ruled out = inv-
        Suspicious for lymphovascular invasion = lvi?
        Invasive carcinoma cannot be excluded = inv?
        Cannot exclude lymphovascular invasion = lvi?
        Possible perineural invasion; DCIS present = pni? dcis+
        No suspicious calcifications = calc-
        No necrosis and possible DCIS = necrosis- dcis?
        No prior material is at hand and it is suspicious for DCIS = dcis?
        Margins suspicious for carcinoma = margin?
        切缘可疑阳性 = margin?
        Margins likely negative = margin?
        Margin likely free = margin?
        Suspicious lymph nodes are positive = node+
        Cannot assess for LVI = lvi?
        It is not without necrosis = necrosis+
        并非没有坏死 = necrosis+
        建议行FISH明确浸润性癌 = inv?
        """,
}
ROWS = [line.strip().replace("\\n", "\n") for block in REPORTS.values() for line in block.strip().split("\n")]


def split_row(row: str) -> tuple[str, dict[str, str]]:
    text, said = row.rsplit("=", 1)
    return text.strip(), {SHORT.get(word[:-1], word[:-1]): STATUS[word[-1]] for word in said.split()}


@pytest.mark.parametrize("row", ROWS)
def test_reports(row):
    text, said = split_row(row)
    assert BREAST.read(text) == said


@pytest.mark.parametrize("cue", Cue)
def test_every_kind_of_cue_is_needed(cue, monkeypatch):
    monkeypatch.setattr(report_cues, "_PATTERN", cue_pattern(without={cue}))
    fresh = FindingDictionary(BREAST.findings, BREAST.ignored)
    assert any(fresh.read(text) != said for text, said in map(split_row, ROWS))


ANSWERS = {  # to a label: (English, Chinese)
    ABSENT: (["no", "none", "absent", "not identified", "not seen", "negative", "(-)"], ["无", "否", "未见", "阴性", "(-)", "未查见", "缺如"]),
    PRESENT: (["yes", "present", "identified", "positive", "(+)", "present, focal"], ["有", "是", "可见", "阳性", "(+)", "有（灶性）"]),
    UNCERTAIN: (["cannot be determined", "indeterminate", "suspicious", "not assessed"], ["不除外", "可疑", "无法评估", "未检测"]),
}
LABELS = [("Lymphovascular invasion", "脉管癌栓", "lvi"), ("Perineural invasion", "神经侵犯", "pni"),
          ("Necrosis", "坏死", "necrosis"), ("Microcalcifications", "钙化", "calc"), ("Ductal carcinoma in situ", "导管原位癌", "dcis")]


@pytest.mark.parametrize("language", [0, 1])
def test_a_form_is_read_line_by_line_whatever_the_order_and_the_signs(language):
    rng = random.Random(0)
    english, chinese = ((": ", " - "), ("\n", "; ", ". ", "\r\n", ".\n")), (("：", ": ", "　"), ("，", "；", "。", "\n", "  \n"))
    for _ in range(300):
        colon, end = (rng.choice(signs) for signs in (english, chinese)[language])
        text, said = "", {}
        for label in rng.sample(LABELS, rng.randint(1, len(LABELS))):
            status = rng.choice(list(ANSWERS))
            answer = rng.choice(ANSWERS[status][language])
            text += label[language] + colon + answer + end
            said[SHORT.get(label[2], label[2])] = status
        assert BREAST.read(text) == said, text


@pytest.mark.parametrize(("dictionary", "text", "said"), [
    (LUNG, "浸润性腺癌，贴壁型60%，腺泡型40%，未见气腔播散，脏层胸膜未受侵",
     {"adenocarcinoma": PRESENT, "invasive_adenocarcinoma": PRESENT, "lepidic_pattern": PRESENT, "acinar_pattern": PRESENT,
      "spread_through_air_spaces": ABSENT, "visceral_pleural_invasion": ABSENT}),
    (LUNG, "非小细胞癌，倾向腺癌", {"small_cell_carcinoma": ABSENT, "adenocarcinoma": UNCERTAIN}),
    (LUNG, "Non-small cell carcinoma with necrosis. Spread through air spaces (STAS): Not identified",
     {"small_cell_carcinoma": ABSENT, "necrosis": PRESENT, "spread_through_air_spaces": ABSENT}),
    (LUNG, "微浸润性腺癌，微乳头型", {"adenocarcinoma": PRESENT, "minimally_invasive_adenocarcinoma": PRESENT, "micropapillary_pattern": PRESENT}),
    (PROSTATE, "Prostatic adenocarcinoma, Gleason score 3+4=7 (grade group 2). Extraprostatic extension: Not identified. "
     "Seminal vesicle invasion: Absent. Margins: Positive",
     {"adenocarcinoma": PRESENT, "gleason_7_3_4": PRESENT, "extraprostatic_extension": ABSENT, "seminal_vesicle_invasion": ABSENT,
      "margin_involvement": PRESENT}),
    (PROSTATE, "前列腺腺泡腺癌，Gleason评分：4+3=7分，精囊腺未见癌累及，神经侵犯（+）",
     {"adenocarcinoma": PRESENT, "gleason_7_4_3": PRESENT, "seminal_vesicle_invasion": ABSENT, "perineural_invasion": PRESENT}),
    (COLORECTAL, "无蒂息肉，管状腺瘤，未见高级别上皮内瘤变", {"tubular_adenoma": PRESENT, "high_grade_intraepithelial_neoplasia": ABSENT}),
])
def test_other_organs(dictionary, text, said):
    assert dictionary.read(text) == said


def test_any_text_is_read():
    """Whatever its signs; and the same again if a sentence about something else stands before it."""
    rng = random.Random(0)
    pieces = ["脉管癌栓", "ER", "necrosis", "(", ")", "[", "】", ":", "：", ",", "，", "、", ";", "。", ".", "?", "-", " - ", "+", "0", "0/12", "3/12",
              "<1%", "٣%", "½", "no ", "未见", "无", "not identified", "可疑", " ", "\n", "\r", "\0", "①", "\u202e", "or", "and", "见癌", "🙂", "(1)", "present"]
    for _ in range(1500):
        text = "".join(rng.choices(pieces, k=rng.randint(1, 25)))
        said = FindingDictionary(BREAST.findings, BREAST.ignored).read(text)
        assert BREAST.read("The specimen is a breast.\n\n;\n" + text) == said, text


HOSTILE = ["  1", "x   ", "no necrosis, ", "no ", "，", "未见", "(", "脉管癌栓", "淋巴结(", "ER ", "a, ", "lymphovascular, ", "not ", ": ", "\n", "0/", "切缘见",
           "脉管癌栓、", "negative for a, ", "a", " ", "LVI\n", "待", "necrosis - ", "necrosis (necrosis) ", "浸润性导管癌,脉管癌栓(-),淋巴结0/12。"]


@pytest.mark.parametrize("piece", HOSTILE)
def test_the_time_is_linear_in_the_length_of_a_text(piece):
    def seconds(length: int) -> float:
        text = (piece * (length // len(piece) + 1))[:length]
        begin = time.process_time()
        FindingDictionary(BREAST.findings, BREAST.ignored).read(text)
        return time.process_time() - begin

    def ratio() -> float:
        return seconds(8_000) / min(seconds(1_000) for _ in range(2))

    assert min(ratio() for _ in range(2)) < 24  # 8 is linear, 64 quadratic; before, one label of 20 000 took over a minute
