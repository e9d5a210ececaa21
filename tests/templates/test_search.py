"""Templates found in texts, held against the forms that the texts were written to."""

from __future__ import annotations

import random
import time

import pytest

from finetune.demo import GRADES, NECROSIS, TISSUES
from finetune.templates.search import find_template
from finetune.templates.template import Template
from tests.helpers.forms import english, fill, free_text, random_form, same_partition


def filled(form, number, seed=0):
    rng = random.Random(seed)
    return dict(fill(form, rng) for _ in range(number))


def test_the_form_of_the_sample_slides_is_found():
    rng = random.Random(0)
    texts = [f"{rng.choice(TISSUES)}，{rng.choice(GRADES)}，{rng.choice(NECROSIS)}。" for _ in range(60)]
    found = find_template(texts)
    content = found.template.to_dict()
    assert (found.coverage, found.expected) == (1, 1)
    assert content["text"] == "{slot_1}，{slot_2}，{slot_3}。"
    assert [set(values) for values in content["slots"].values()] == [set(TISSUES), set(GRADES), set(NECROSIS)]


def test_labels_name_slots_and_words_that_all_values_share_stand_in_the_text():
    rng = random.Random(1)
    texts = [f"{rng.choice(('头颈部鳞状细胞癌', '皮肤组织'))}，细胞核{rng.choice(('密集', '稀疏', '密度中等'))}，"
             f"脉管侵犯：{rng.choice('有无')}，HER2（{rng.choice(('0', '1+', '2+'))}）。" for _ in range(80)]
    content = find_template(texts).template.to_dict()
    assert content["text"] == "{slot_1}，细胞核{细胞核}，脉管侵犯：{脉管侵犯}，HER2（{HER2}）。"
    assert set(content["slots"]["HER2"]) == {"0", "1+", "2+"}


def test_a_grade_that_only_carcinomas_have_gets_a_condition():
    rng = random.Random(2)
    texts = []
    for _ in range(120):
        kind = rng.choice(("浸润性癌", "鳞状细胞癌", "慢性炎症", "腺瘤"))
        grade = f"，{rng.choice(GRADES)}" if kind.endswith("癌") else ""
        texts.append(f"胃，{rng.choice(('活检', '切除标本'))}：{kind}{grade}，脉管侵犯：{rng.choice('有无')}。")
    content = find_template(texts).template.to_dict()
    assert content["text"] == "胃，{slot_1}：{slot_2}[，{slot_3}]，脉管侵犯：{脉管侵犯}。"
    assert set(content["slots"]["slot_3"]["only_if"]["slot_2"]) == {"浸润性癌", "鳞状细胞癌"}
    assert "optional" not in content["slots"]["slot_3"]


def test_texts_without_punctuation_are_cut_between_characters():
    rng = random.Random(3)
    texts = [rng.choice(("胃", "乳腺", "结肠", "肺", "肝脏")) + rng.choice(GRADES) + rng.choice(("腺癌", "鳞状细胞癌"))
             + rng.choice(("", "伴坏死", "伴出血")) for _ in range(120)]
    content = find_template(texts).template.to_dict()
    assert content["text"] == "{slot_1}{slot_2}{slot_3}[{slot_4}]"
    assert set(content["slots"]["slot_2"]) == set(GRADES)
    assert content["slots"]["slot_4"] == {"values": sorted(content["slots"]["slot_4"]["values"]), "optional": True} \
        or content["slots"]["slot_4"]["optional"] is True


def test_english_reports_are_cut_between_words():
    rng = random.Random(4)
    sites = {"Breast": ["invasive carcinoma, grade 1", "invasive carcinoma, grade 2", "adenosis"],
             "Left breast": ["invasive carcinoma, grade 3", "adenosis"], "Stomach": ["chronic gastritis"]}
    texts = [english(rng, sites) for _ in range(100)]
    template = find_template(texts).template
    assert all(template.render(template.parse(text)) == text for text in texts)
    assert {"clear", "involved"} in [set(slot.values) for slot in template.slots.values()]


@pytest.mark.parametrize("seed", range(12))
def test_a_template_found_on_half_of_the_texts_reads_the_other_half_as_they_were_written(seed):
    form = random_form(random.Random(seed))
    fields = filled(form, 300, seed)
    texts = list(fields)
    found = find_template(texts[::2])
    parsed = {text: found.template.parse(text) for text in texts[1::2]}
    read = [text for text, of_text in parsed.items() if of_text]
    assert len(read) >= 0.97 * len(parsed) and found.expected >= 0.97
    for piece in form:  # some slot says the same
        assert any(same_partition(read, lambda text, name=piece.name: fields[text].get(name),
                                  lambda text, name=name: parsed[text][name]) for name in found.template.slots), piece


def test_free_texts_are_refused():
    rng = random.Random(5)
    found = find_template([free_text(rng) for _ in range(100)])
    assert found.template is None and found.expected == 0
    assert found.summary().startswith("no template: ")


@pytest.mark.parametrize(("share", "is_found"), [(0.1, True), (0.4, False)])
def test_the_share_of_texts_that_follow_is_told(share, is_found):
    rng = random.Random(6)
    texts = list(filled(random_form(random.Random(7)), 200))
    free = [free_text(rng) for _ in range(round(len(texts) * share / (1 - share)))]
    found = find_template(texts + free)
    assert (found.template is not None) == is_found
    assert abs(found.expected - (1 - share)) < 0.02
    assert f"{found.expected:.0%} of new ones" in found.summary()


def test_few_or_equal_texts_have_no_template():
    assert find_template(["胃腺癌。"] * 3).summary() == "no template: 3 texts are too few to find one (8 are needed)"
    assert "have no slots in common" in find_template(["胃腺癌。"] * 30).summary()
    assert find_template([]).template is None


def test_a_list_of_diagnoses_is_one_slot():
    names = ("浸润性导管癌", "皮肤慢性炎", "正常肝组织", "纤维腺瘤")
    template = find_template([name for name in names for _ in range(5)]).template
    assert template.to_dict()["text"] == "{slot_1}" and set(template.slots["slot_1"].values) == set(names)


def test_a_long_text_of_one_patient_is_no_value():
    private = "患者自述三年前于外院行右乳肿物切除术后病理提示纤维腺瘤现复发"
    texts = [f"{organ}，{kind}。" for organ in ("乳腺", "胃") for kind in ("腺瘤", "癌") for _ in range(10)]
    found = find_template([*texts, f"乳腺，{private}。"])
    assert private not in found.template.to_yaml()
    assert found.coverage == pytest.approx(40 / 41)


def test_what_is_written_for_a_person_is_read_back(tmp_path):
    template = find_template(list(filled(random_form(random.Random(8)), 200))).template
    path = tmp_path / "template.yaml"
    path.write_text(template.to_yaml(), encoding="utf-8")
    assert Template.from_file(path).to_dict() == template.to_dict()


def test_the_order_of_the_texts_changes_no_share():
    texts = list(filled(random_form(random.Random(9)), 200))
    shuffled = random.Random(1).sample(texts, len(texts))
    one, other = find_template(texts), find_template(shuffled)
    assert (one.coverage, one.expected) == (other.coverage, other.expected)
    assert find_template(texts).template.to_dict() == one.template.to_dict()


@pytest.mark.slow
def test_20000_texts_take_seconds():
    rng = random.Random(10)
    form = random_form(random.Random(0))
    for texts in ([fill(form, rng)[0] for _ in range(20_000)], [free_text(rng) for _ in range(20_000)]):
        start = time.process_time()
        find_template(texts)
        assert time.process_time() - start < 10
