"""What still looks like an identifier in a cleaned text.

Shares no pattern with the rules that mask: it looks at the shape of what is left, without context, and rather too much
than too little. A person reads its list.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# Characters common in given names and rare as the last one of a medical word
_GIVEN = (
    "伟芳娜敏静丽强磊军勇艳杰娟涛霞刚桂英玉兰凤文辉梅鑫宇浩婷雪琴燕红云莉晶倩慧雅琳佳欣怡梦琪颖"
    "蕾薇洁岩峰鹏飞超亮波斌宾彬俊凯旭东海龙虎晨阳阔德福禄寿喜财富贵祥瑞春夏秋冬志坚毅伦翔坤乾栋梁"
    "柱松柏林森淑珍珠翠莲荷菊竹菲茜萍蓉萱妍彤悦涵子轩梓泽睿哲翰昊然博豪皓诚信义礼智仁忠孝廉建国庆"
    "邦兴旺发达昌盛荣华振宏广洪江河湖溪源永新民平安宁康健")
_SURNAMES = (
    "王李张刘陈杨黄赵吴周徐孙马朱胡郭何高林罗郑梁谢宋唐许韩冯邓曹彭曾肖田董潘袁蔡蒋余杜叶程"
    "魏苏吕丁任卢姚沈钟姜崔谭陆范汪廖贾夏付傅方邹熊孟秦邱侯江尹薛闫雷龙黎史陶贺毛郝顾龚邵万武钱戴严莫孔汤")
_COMPOUND = "欧阳|上官|司马|诸葛|皇甫|尉迟|慕容|令狐|司徒|夏侯|端木|南宫"
_FIRST_NAMES = (
    "James|John|Robert|Michael|William|David|Richard|Joseph|Thomas|Charles|Mary|Patricia|Jennifer|Linda|Elizabeth|"
    "Barbara|Susan|Jessica|Sarah|Karen|Nancy|Lisa|Margaret|Sandra|Ashley|Emily|Donna|Michelle|Carol|Amanda|Peter|Paul|"
    "Daniel|Matthew|Anthony|Steven|Andrew|Kevin|Brian|George|Edward|Ronald|Helen|Anna|Maria|Laura|Julia|Emma|Olivia|"
    "Wei|Li|Ming|Hong|Jing|Yan|Hiroshi|Kenji|Yuki|Mohammed|Ahmed|Ali|Fatima|Carlos|Juan|Jose|Luis|Ana|Ivan|Olga|Hans|"
    "Klaus|Pierre|Marie")
_HAN = r"[\u4e00-\u9fff]"
_PERSON = rf"(?:(?:{_COMPOUND}){_HAN}{{1,2}}|[{_SURNAMES}][{_GIVEN}]{{1,2}})"
_LABELS = [
    "姓名", "签名", "签字", "身份证", "电话", "手机", "住址", "地址", "住院号", "门诊号", "病理号", "病案号", "病历号",
    "登记号", "标本号", "床号", "条码", "微信", "报告者", "报告人", "报告医", "审核者", "审核人", "审核医", "送检医"]

_SHAPES = {kind: re.compile("|".join(shapes)) for kind, shapes in {
    "digits": [r"(?<![\d.])\d(?:[ -]?\d){5,}"],
    "letters and digits": [r"(?<![A-Za-z0-9])[A-Za-z]{1,5}[-_]?\d{5,}",
                           r"(?<![A-Za-z0-9])[A-Z]{0,4}\d{2,4}[-—–]\d{4,}"],
    "date": [r"(?:1[89]|20)\d\d\s*年(?!\s*(?:第.{1,2})?版?\s*(?:WHO|AJCC|UICC|NCCN|CAP|CSCO|版))",
             r"(?:1[89]|20)\d\d\s*[-/.\\]\s*\d{1,2}\b(?!\s*(?:cm|mm))",
             r"\d{1,2}\s*月\s*\d{1,2}\s*[日号]",
             r"[一二][〇○零九八]{1,2}[〇○零一二三四五六七八九]{1,2}年",
             r"\d{1,2}/\d{1,2}/\d{2,4}",
             r"(?i:\b(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|"
             r"oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?[ -]+\d{1,4}\b)",
             r"\b\d{1,2}:\d\d(?::\d\d)?\b(?=\s*(?:AM|PM|am|pm|时|分|$))"],
    "label": [r"\s*".join(label) for label in _LABELS] + [
        r"(?i:\b(?:MRN|DOB|SSN|phone|telephone|address|accession|signed|dictated|surname|first name|last name)\b)"],
    "name": [rf"(?<!{_HAN}){_PERSON}(?!{_HAN})", rf"[{_SURNAMES}][{_GIVEN}]{{2}}",
             rf"(?:患者|病人|患儿){_PERSON}", rf"[{_SURNAMES}]{_HAN}?[某*＊]",
             rf"{_HAN}{{2,}}·{_HAN}{{2,}}",
             rf"(?<!主)[{_SURNAMES}][{_GIVEN}]{{0,2}}(?:主任|医师|医生|教授|大夫|护士|先生|女士)"],
    "name (Latin)": [rf"\b(?:{_FIRST_NAMES})\b[ ,]+(?:[A-Z]\.? )?[A-Z][a-z]+", r"\b(?:Dr|Mr|Mrs|Ms|Prof)\b\.? ?[A-Z]",
                     r"\b[A-Z][a-z]+,? (?:M\.D\.|MD\b|MBBS|PhD|FRCPath)"],
    "place": [r"(?<![我外本某他该])(?<!外地)医院", r"卫生院|街道|小区",
              rf"{_HAN}{{2}}(?:省|自治区)", rf"{_HAN}{{2}}市{_HAN}",
              rf"{_HAN}{{2}}(?:路|街|村|镇|县)\d*[号\s,，。]",
              r"\b[A-Z][a-z]+ (?:Hospital|Clinic|Street|Avenue|Road|Medical Cent)"],
    "address": [r"\S@\S|https?:|www\."],
    "age": [r"(?<![\d.])(?:9\d|1[0-2]\d)\s*(?:岁|[- ]?years?[- ]old)"],
}.items()}
_PLACEHOLDER = re.compile(r"\[[A-Z]+\]")
_CONTEXT = 12  # characters shown on each side


@dataclass(frozen=True)
class Suspect:
    """What looks like an identifier: its kind, itself, and itself with some characters around it."""

    kind: str
    text: str
    context: str


def suspects(text: str) -> list[Suspect]:
    """All that looks like an identifier in a text, in order of kinds."""
    found = []
    text = _PLACEHOLDER.sub("□", text)
    for kind, shape in _SHAPES.items():
        for match in shape.finditer(text):
            context = text[max(0, match.start() - _CONTEXT):match.end() + _CONTEXT]
            found.append(Suspect(kind, match[0], context))
    return found
