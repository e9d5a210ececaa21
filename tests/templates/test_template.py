"""Template files: what is read from and written into texts, held against all texts of small templates."""

from __future__ import annotations

import random
import time

import pytest

from finetune.common.errors import UserError
from finetune.templates.template import Template
from tests.helpers.templates import by_brute_force, random_content

YAML = """
text: "{organ}，{procedure}：{diagnosis}[，{grade}][，脉管侵犯：{invasion}]。"
slots:
  organ: [乳腺, 胃, 结肠]
  procedure: [穿刺, "no", 1e-4]
  diagnosis: [浸润性癌, 原位癌]
  grade: {values: [高分化, 低分化], only_if: {diagnosis: [浸润性癌]}}
  invasion: {values: [有, 无], optional: true}
"""


def test_fields_of_a_file_are_read_from_all_texts_and_no_others(tmp_path):
    (tmp_path / "t.yaml").write_text(YAML, encoding="utf-8")
    template = Template.from_file(tmp_path / "t.yaml")
    assert list(template.slots) == ["organ", "procedure", "diagnosis", "grade", "invasion"]
    texts = dict(by_brute_force(template))
    assert len(texts) == 3 * 3 * (2 + 1) * 3
    for text, fields in texts.items():
        assert template.parse(text) == fields
        assert template.render(fields) == text
    assert template.parse("乳腺，no：原位癌，脉管侵犯：无。")["procedure"] == "no"
    for text in ("乳腺，no：原位癌，高分化。", "乳腺，no：浸润性癌。", "乳腺，no：原位癌", "", "乳腺，no：原位癌。。"):
        assert template.parse(text) is None


def test_random_templates_read_and_refuse_as_the_list_of_all_their_texts_says():
    rng, ambiguous, good = random.Random(0), 0, 0
    for _ in range(250):
        content = random_content(rng)
        try:
            template = Template.from_dict(content)
        except UserError as error:
            assert "ambiguous" in error.what
            template = unchecked(content)
            texts = [text for text, _ in by_brute_force(template)]
            assert len(set(texts)) < len(texts), content
            ambiguous += 1
            continue
        texts = list(by_brute_force(template))
        assert len(dict(texts)) == len(texts), content
        for text, fields in texts:
            assert template.parse(text) == fields and template.render(fields) == text, content
            other = text + "a"
            assert template.parse(other) == dict(texts).get(other)
        again = Template.from_dict(template.to_dict())
        assert again.items == template.items
        good += 1
    assert ambiguous > 25 and good > 80


def unchecked(content):
    from finetune.templates.reader import read_template
    return Template(read_template(content, "t"))


def test_a_written_template_is_read_as_the_same(tmp_path):
    slots = {"organ": ["no", "1e-4", " x", "~", "null", "a: b", "it's \"so\"", "#1"],
             "the grade": {"values": ["{1}", "[2]"], "only_if": {"organ": ["no", "~"]}, "optional": True}}
    template = Template.from_dict({"text": "{{[[\n{organ}}}[ {the grade}]]]%", "slots": slots})
    assert template.render({"organ": "~", "the grade": "[2]"}) == "{[\n~} [2]]%"
    (tmp_path / "t.yaml").write_text(template.to_yaml(), encoding="utf-8")
    assert Template.from_file(tmp_path / "t.yaml").items == template.items


@pytest.mark.parametrize(("fields", "named"), [
    ({"organ": "乳腺", "procedure": "穿刺", "diagnosis": "原位癌", "grade": "高分化"}, "grade"),
    ({"organ": "乳腺", "procedure": "穿刺", "diagnosis": "浸润性癌"}, "grade"),
    ({"organ": "肺", "procedure": "穿刺", "diagnosis": "原位癌"}, "organ"),
    ({"organ": "乳腺", "procedure": "穿刺", "diagnosis": "原位癌", "stage": "I"}, "stage")])
def test_fields_that_no_text_has_are_not_rendered(tmp_path, fields, named):
    (tmp_path / "t.yaml").write_text(YAML, encoding="utf-8")
    with pytest.raises(ValueError, match=named):
        Template.from_file(tmp_path / "t.yaml").render(fields)


@pytest.mark.parametrize(("yaml", "said"), [
    ("text: '{a}'", "holds the keys text"),
    ("- a", "not text and slots"),
    ("text: '{a}'\nslots: [a]", "not a mapping"),
    ("text: ''\nslots: {a: [x]}", "text is not a text"),
    ("text: '{a}，{organs}'\nslots: {a: [x], organ: [y]}", "{organs} that slots does not list; did you mean organ?"),
    ("text: '{a}'\nslots: {a: [x], b: [y]}", "slot b does not occur in text"),
    ("text: '{a}{a}'\nslots: {a: [x]}", "slot a stands 2 times"),
    ("text: '{a}'\nslots: {a: []}", "slot a has no list of values"),
    ("text: '{a}'\nslots: {a: x}", "slot a has no values"),
    ("text: '{a}'\nslots: {a: {value: [x]}}", "slot a has no values"),
    ("text: '{a}'\nslots: {a: {values: [x], need: 1}}", "slot a: unknown key need"),
    ("text: '[{a}]'\nslots: {a: {values: [x], optional: maybe}}", "slot a: optional is 'maybe'"),
    ("text: '{a}'\nslots: {a: [x, ' ']}", "slot a has the value ' '"),
    ("text: '{a}'\nslots: {a: [x, [y]]}", "slot a has the value ['y']"),
    ("text: '{a}'\nslots: {a: [x, x]}", "slot a lists 'x' twice"),
    ("text: '{a}'\nslots: {a: [\"x\\u202e\"]}", "slot a has the invisible character U+202E"),
    ("text: '{a}[{b}]'\nslots: {a: [x], b: {values: [y], only_if: {c: [x]}}}", "slot b: only_if names c, which is not"),
    ("text: '[{b}]{a}'\nslots: {a: [x], b: {values: [y], only_if: {a: [x]}}}", "slot b: only_if names a, which does n"),
    ("text: '{a}[{b}]'\nslots: {a: [x], b: {values: [y], only_if: {a: [z]}}}", "slot b: only_if has 'z', which a can"),
    ("text: '{a}[{b}{c}]'\nslots: {a: [x], b: {values: [y], optional: true}, c: {values: [z], only_if: {b: [y]}}}",
     "slot c: only_if names b of the same [ ]"),
    ("text: '{a}{b}'\nslots: {a: [x], b: {values: [y], optional: true}}", "slot b may have no value, but stands out"),
    ("text: '[{a}]'\nslots: {a: [x]}", "[ ] around a, which always has a value"),
    ("text: '{a}[b]'\nslots: {a: [x]}", "[ ] around no slot"),
    ("text: '{a}[，[{b}] ]'\nslots: {a: [x], b: {values: [y], optional: true}}", "[ ] inside [ ]"),
    ("text: '{a}]'\nslots: {a: [x]}", "a ] without a ["),
    ("text: '[{a}] '\nslots: {a: {values: [x], optional: true}}", "may be empty"),
    ("text: '{a}[b'\nslots: {a: [x]}", "a [ without a ]"),
    ("text: '{a}} '\nslots: {a: [x]}", "a single }"),
    ("text: '{a}{b}'\nslots: {a: [x, xy], b: [z, yz]}", "ambiguous: two sets of fields give a text that begins 'xyz'"),
    ("text: '{a}'\nslots: {a: !!python/object/apply:os.system [x]}", "tags and aliases"),
    ("text: '{a}'\nslots: {a: [x], a: [y]}", "a appears twice"),
    ("text: '{a}'\nslots: {a: [x\n", "not valid YAML"),
    ("text: '{a}'\nslots: {a: [[[[[[[[x]]]]]]]]}", "nested too deeply"),
    ("text: '{a}'\nslots: {a: ['" + "x" * 20_000 + "']}", "a value of 20000 characters"),
    ("text: '" + "{a}" * 400 + "'\nslots: {a: [x]}", "text has 400 slots"),
    ("text: '{a}'\nslots: {a: [" + "x, " * 400_000 + "]}", "is not a config file"),
])
def test_a_faulty_file_is_one_line_that_names_file_place_and_fix(tmp_path, yaml, said):
    path = tmp_path / "t.yaml"
    path.write_text(yaml, encoding="utf-8")
    with pytest.raises(UserError) as error:
        Template.from_file(path)
    assert said in error.value.line() and error.value.line().startswith(str(path))
    assert "\n" not in error.value.line() and len(error.value.fix) > 5


@pytest.mark.parametrize(("yaml", "said"), [("", "empty"), ("# nothing yet\n", "empty"), ("text: '{a}'\nslots: {a: [x\n", "not valid YAML"),
                                            ("x", "holds 'x', not text and slots")])
def test_a_file_that_is_no_template_shows_what_one_looks_like(tmp_path, yaml, said):
    path = tmp_path / "t.yaml"
    path.write_text(yaml, encoding="utf-8")
    with pytest.raises(UserError, match=said) as error:
        Template.from_file(path)
    assert error.value.fix.startswith("write text:") and "slots" in error.value.fix


def test_a_template_of_many_texts_is_checked_and_read_at_once():
    slots = {f"s{i}": [f"{value}号" for value in range(20)] for i in range(15)}
    began = time.perf_counter()
    template = Template.from_dict({"text": "，".join(f"{{{name}}}" for name in slots), "slots": slots})
    text = "，".join(["7号"] * 15)
    assert template.render(template.parse(text)) == text and template.parse(text + "，") is None
    choices = Template.of_choices([("癌" * (i % 300)) + str(i) for i in range(5_000)])
    assert choices.parse("癌" * 299 + "599") == {"text": "癌" * 299 + "599"}
    assert time.perf_counter() - began < 5
