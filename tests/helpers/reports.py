"""Made-up pathology reports in Chinese and English, clean or with identifiers planted in them.

No patient, doctor or hospital number is real: names are random pairs of a surname and given names, numbers random digits.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

SURNAMES = ("王李张刘陈杨赵黄周吴徐孙胡朱高林何郭马罗梁宋郑谢韩唐冯于董萧程曹袁邓许傅沈曾彭吕苏卢蒋蔡贾丁魏薛叶阎余潘杜戴夏钟汪田任姜范方石姚谭廖邹熊金陆郝孔白崔康毛邱秦江史顾侯邵孟龙万段雷钱汤尹黎易常武乔贺赖龚文")
COMPOUND = ("欧阳", "上官", "司马", "诸葛", "皇甫", "尉迟", "公孙", "慕容", "令狐", "司徒", "夏侯", "端木", "南宫")
GIVEN = "伟芳娜秀英敏静丽强磊军洋勇艳杰娟涛明超兰霞平刚桂华玉萍红建国志梅琳晨宇浩轩子涵欣怡雨桐嘉铭思源文博海燕春花宝成德全福生金凤银凤翠花世昌永贵长顺"
MINORITY = ("阿卜杜拉·买买提", "古丽·艾则孜", "买买提·吐尔逊", "扎西·多吉")
FIRST = ("James", "Mary", "Robert", "Patricia", "Mei", "Li", "Ahmed", "Ingrid", "Carlos", "Yuki", "Siobhan", "Olumide", "Priya", "Jean")
LAST = ("Smith", "O'Brien", "Garcia", "Nguyen", "Zhang", "van Dyke", "McDonald", "Okafor", "Schneider", "Kowalski", "Tanaka", "Johnson-Lee")
CITIES = ("石家庄市长安区", "杭州市余杭区", "成都市武侯区", "武汉市洪山区", "临沂市兰山区", "哈尔滨市南岗区")
PROVINCES = ("河北省", "浙江省", "四川省", "湖北省", "山东省", "黑龙江省")
ROADS = ("中山路", "解放大道", "人民南路", "建设街", "和平里")
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December")

SITES = ("胃窦", "胃体", "贲门", "乙状结肠", "左乳", "右乳", "右肺上叶", "甲状腺左叶", "宫颈", "食管中段", "前列腺", "肝右叶")
FINDINGS = (
    "{site}中分化腺癌，Lauren分型：肠型，大小{a}×{b}×1cm",
    "（{site}）浸润性导管癌，Ⅱ级，肿瘤最大径{a}cm",
    "{site}黏膜慢性炎，中度，活动性，伴肠上皮化生（轻度）",
    "（{site}）低级别上皮内瘤变，局灶高级别",
    "{site}鳞状细胞癌，中-低分化，侵及固有肌层，脉管内见癌栓",
    "（{site}）何杰金淋巴瘤，结节硬化型",
    "{site}腺泡腺癌，Gleason评分3+4=7分，分级分组2组",
    "{site}腺癌，Barrett食管背景，肿瘤3-4 mm厚",
    "（{site}）李-佛美尼综合征相关肉瘤，核分裂象约12/10HPF",
    "{site}神经内分泌瘤，G2，核分裂象2-3个/10HPF",
    "符合（{site}）高分化管状腺癌，侵至黏膜下层（SM1，约350μm）",
    "{site}间质瘤，梭形细胞型，大小{a}×{b}cm，核分裂象<5/50HPF，低危险度",
    "（{site}）弥漫大B细胞淋巴瘤，CD20阳性的大细胞弥漫浸润",
    "黄瘤样组织细胞聚集，{site}黏膜白斑",
)
MORE = (
    "脉管内未见癌栓", "神经未见侵犯", "切缘未见癌", "淋巴结转移（1/12）", "淋巴结10/12见癌转移", "腋窝淋巴结（0/15）未见癌转移", "间质淋巴细胞浸润",
    "周围肝组织呈结节性肝硬化（G2S3）", "上切缘距肿瘤2.5cm", "局灶坏死，约占10%", "高级别导管原位癌成分约20%", "病变直径0.3-0.5cm", "另见子宫平滑肌瘤一枚，直径2.0cm",
    "1-3号切片均见肿瘤", "参照2019年WHO分类", "WHO 4级", "石蜡切片证实", "方向不清", "时有核异型", "于黏膜下层浸润", "常见核分裂", "左右两侧均受累", "金属夹旁组织", "连续性受累",
)
ENGLISH = (
    "Invasive ductal carcinoma, Nottingham grade 2 (3+2+2=7), {a} cm", "Adenocarcinoma, moderately differentiated, invading the muscularis propria",
    "Chronic active gastritis with intestinal metaplasia", "Barrett esophagus, negative for dysplasia", "Classic Hodgkin lymphoma, nodular sclerosis",
    "Prostatic adenocarcinoma, Gleason score 4+3=7, grade group 3, in 5 of 12 cores", "Tubular adenoma, {a} x {b} mm",
    "Paget disease of the nipple with underlying carcinoma", "Squamous cell carcinoma, 3-4 mm thick, Clark level IV, Breslow 1.2 mm",
    "Metastatic carcinoma in 10/12 lymph nodes", "Ewing sarcoma, mitoses 12/10 HPF", "Li-Fraumeni associated sarcoma",
)
ENGLISH_MORE = (
    "margins are free of tumor", "no lymphovascular invasion", "lymph nodes: 0/15", "mitotic count 3-4 per mm2", "may represent reactive change",
    "necrosis in about 30% of the tumor", "tumor extends to within 0.5 cm of the margin", "Van Gieson pattern of fibrosis is present", "residual tumor in March of crypts",
)


@dataclass(frozen=True)
class Report:
    """A text, and each identifier that was planted in it."""

    text: str
    planted: tuple[str, ...] = ()


def identity_card(rng: random.Random) -> str:
    """18 characters with the right check digit, by the standard's own recurrence rather than weights."""
    body = f"{rng.choice(['110101', '330106', '510107', '420111'])}{rng.randint(1930, 2010)}{rng.randint(1, 12):02d}{rng.randint(1, 28):02d}{rng.randint(0, 999):03d}"
    for last in "0123456789X":  # ISO 7064 MOD 11-2: p = 2 p + digit, the number is right if p = 1 at the end
        total = 0
        for c in body + last:
            total = (total * 2 + (10 if c == "X" else int(c))) % 11
        if total == 1:
            return body + last
    raise AssertionError(body)


def chinese_name(rng: random.Random) -> str:
    if rng.random() < 0.02:
        return rng.choice(MINORITY)
    surname = rng.choice(COMPOUND) if rng.random() < 0.08 else rng.choice(SURNAMES)
    return surname + "".join(rng.sample(GIVEN, rng.choice([1, 2, 2])))


def english_name(rng: random.Random) -> str:
    middle = f" {rng.choice('ABCDEGHJKL')}." if rng.random() < 0.3 else ""
    return f"{rng.choice(FIRST)}{middle} {rng.choice([n for n in LAST if n != 'van Dyke'])}"


def _date(rng: random.Random) -> str:
    y, m, d = rng.randint(1998, 2025), rng.randint(1, 12), rng.randint(1, 28)
    return rng.choice([f"{y}年{m}月{d}日", f"{y}-{m:02d}-{d:02d}", f"{y}/{m}/{d}", f"{y}.{m:02d}.{d:02d}", f"{y}年{m}月", f"{y}{m:02d}{d:02d}", f"{m}月{d}日",
                       f"{y}-{m:02d}-{d:02d} {rng.randint(8, 18):02d}:{rng.randint(10, 59)}"])


def _english_date(rng: random.Random) -> str:
    y, m, d = rng.randint(1998, 2025), rng.randint(1, 12), rng.randint(1, 28)
    name = MONTHS[m - 1]
    return rng.choice([f"{name} {d}, {y}", f"{d} {name} {y}", f"{name[:3]} {d}, {y}", f"{m}/{d}/{y}", f"{m:02d}/{d:02d}/{y % 100:02d}", f"{y}-{m:02d}-{d:02d}", f"{name} {y}",
                       f"{d:02d}-{name[:3].upper()}-{y}"])


def _phone(rng: random.Random) -> str:
    tail = "".join(rng.choices("0123456789", k=8))
    mobile = f"1{rng.choice(['38', '59', '86', '77', '91'])}{tail}"
    return rng.choice([mobile, f"{mobile[:3]}-{mobile[3:7]}-{mobile[7:]}", f"{mobile[:3]} {mobile[3:7]} {mobile[7:]}", f"0571-8{tail[1:]}", f"(010)6{tail[1:]}", f"+86 {mobile}"])


def _number(rng: random.Random) -> str:
    return rng.choice([f"S{rng.randint(10, 25)}-{rng.randint(10000, 99999)}", f"{rng.randint(2010, 2025)}-{rng.randint(10000, 99999)}", f"B{rng.randint(2010, 2025)}{rng.randint(10000, 99999)}",
                       f"{rng.randint(1000000, 9999999)}", f"ZY{rng.randint(100000, 999999)}", f"SP-{rng.randint(10, 25)}-{rng.randint(1000, 99999)}"])


def _address(rng: random.Random) -> str:
    city = rng.randrange(len(CITIES))
    return f"{rng.choice([PROVINCES[city], ''])}{CITIES[city]}{rng.choice(ROADS)}{rng.randint(1, 300)}号{rng.choice(['', '3栋2单元501室'])}"


def clean_chinese(rng: random.Random) -> Report:
    """A report without identifiers, staging, stains, recommendations or references: nothing of it may change."""
    finding = rng.choice(FINDINGS).format(site=rng.choice(SITES), a=f"{rng.uniform(0.5, 9):.1f}", b=f"{rng.uniform(0.5, 5):.1f}")
    parts = [finding, *rng.sample(MORE, rng.randint(0, 3))]
    return Report(rng.choice(["，", "；", "。"]).join(parts) + "。")


def clean_english(rng: random.Random) -> Report:
    """As `clean_chinese`."""
    finding = rng.choice(ENGLISH).format(a=f"{rng.uniform(0.5, 9):.1f}", b=f"{rng.uniform(0.5, 5):.1f}")
    return Report(", ".join([finding, *rng.sample(ENGLISH_MORE, rng.randint(0, 2))]) + ".")


def planted_chinese(rng: random.Random) -> Report:
    """A report with one to four identifiers before, behind or between what it says."""
    name, doctor, date, phone, number = chinese_name(rng), chinese_name(rng), _date(rng), _phone(rng), _number(rng)
    card, address, age = identity_card(rng), _address(rng), rng.randint(90, 104)
    before = [
        (f"姓名：{name} 性别：女 年龄：56岁 病理号：{number} ", (name, number)), (f"患者{name}，男，{rng.randint(20, 80)}岁。", (name,)), (f"患者姓名: {name}\n", (name,)),
        (f"{name}，女，{rng.randint(20, 80)}岁，", (name,)), (f"住院号：{number}，", (number,)), (f"送检日期：{date}。", (date,)), (f"患者于{date}行胃镜检查。", (date,)),
        (f"身份证号：{card}，", (card,)), (f"联系电话{phone}。", (phone,)), (f"家庭住址：{address}。", (address,)), (f"患者{age}岁，", (f"{age}岁",)), (f"病理号 {number}：", (number,)),
        (f"姓 名：{name}　住 院 号：{number}\n", (name, number)), (f"【姓名】{name}【住院号】{number}\n", (name, number)),
    ]
    after = [
        (f"报告医师：{doctor}", (doctor,)), (f"报告医师：{doctor} 审核医师：{name} {date}", (doctor, name, date)), (f"诊断医师:{doctor}/{name}", (doctor, name)), (f"{doctor}主任会诊同意。", (doctor,)),
        (f"已请{doctor}教授会诊。", (doctor,)), (f"报告日期：{date}", (date,)), (f"电话：{phone}", (phone,)), (f"{card}", (card,)), (f"（{date}，{doctor}医师）", (date, doctor)), (f"签名：{doctor}", (doctor,)),
        (f"送检医生{doctor}，{phone}。", (doctor, phone)), (f"审核：{doctor}", (doctor,)), (f"取材：{doctor}；记录：{name}", (doctor, name)), (f"蜡块编号：{number}", (number,)),
        (f"现住{address}。", (address,)), (f"（{number}）", (number,)), (f"微信号：wx_{number[-5:]}a", (f"wx_{number[-5:]}a",)),
    ]
    pieces = [rng.choice(before) if rng.random() < 0.7 else ("", ()), rng.choice(after)]
    return Report(pieces[0][0] + clean_chinese(rng).text + pieces[1][0], pieces[0][1] + pieces[1][1])


def planted_english(rng: random.Random) -> Report:
    """As `planted_chinese`."""
    name, doctor, date, number = english_name(rng), english_name(rng), _english_date(rng), _number(rng)
    phone = f"{rng.choice(['(555) ', '555-', '212-'])}{rng.randint(200, 999)}-{rng.randint(1000, 9999)}"
    last = doctor.split()[-1]
    before = [
        (f"Patient: {name}, ", (name,)), (f"Patient Name: {name}\nMRN: {number}\n", (name, number)), (f"NAME: {name.upper()}\n", (name.upper(),)), (f"Collected: {date}. ", (date,)), (f"Case #: {number}. ", (number,)),
        (f"Mr. {name} was seen on {date}. ", (name, date)), (f"DOB: {date}. ", (date,)), (f"Accession No: {number}; ", (number,)), ("92-year-old woman. ", ("92-year-old",)),
    ]
    after = [
        (f" Electronically signed by {doctor}, M.D. on {date}.", (doctor, date)), (f" Reviewed with Dr. {last}.", (last,)), (f" Pathologist: {doctor}, MD", (doctor,)), (f" Dr. {doctor} agrees.", (doctor,)),
        (f" Signed: {doctor} {date}", (doctor, date)), (f" Phone: {phone}", (phone,)), (f" Call {phone}.", (phone,)), (f" Email: {last.lower().replace(chr(39), '')}@example.org", ("@example.org",)), (f" ({date})", (date,)),
        (f" {rng.randint(10, 999)} Oak Street, Springfield, IL 62704", ("Oak Street",)), (f" Specimen received at Mercy General Hospital on {date}.", ("Mercy General", date)),
    ]
    pieces = [rng.choice(before) if rng.random() < 0.7 else ("", ()), rng.choice(after)]
    return Report(pieces[0][0] + clean_english(rng).text + pieces[1][0], pieces[0][1] + pieces[1][1])
