"""Templates that ask for what the training texts do not say."""

from __future__ import annotations

from types import SimpleNamespace

from finetune.inference.nearest import warn_of_unlearned
from finetune.templates.template import Template
from finetune.templates.unlearned import unlearned

CONTENT = {"text": "{organ}，{grade}[，脉管侵犯：{invasion}][，HER2 {her2}]。",
           "slots": {"organ": ["胃", "肺"], "grade": ["高分化", "未分化", "甲", "乙", "丙"], "invasion": {"values": ["有", "无"], "optional": True},
                     "her2": {"values": ["Positive", "Negative"], "optional": True}}}
TEXTS = ["胃，高分化，有无不明。", "肺，未分化，ｈｅｒ２ positive。", "肺，高分化，her2 negative。"]


def test_words_and_values_that_no_training_text_has_are_named_by_slot():
    template = Template.from_dict(CONTENT)
    assert [*unlearned(template, TEXTS)] == [
        ("grade", "3 of its 5 values ('甲', '乙', '丙') stand"), ("invasion", "its words '脉管侵犯' stand")]
    assert [*unlearned(template, [*TEXTS, "甲乙丙，脉管侵犯：有"])] == []
    assert dict(unlearned(Template.of_choices(["a", "b", *"vwxyz"]), ["A b."])) == {"text": "5 of its 7 values ('v', 'w', 'x', ...) stand"}


def test_the_log_has_a_line_for_each_slot(log_lines):
    training = SimpleNamespace(all_texts=lambda: [*TEXTS])
    form = SimpleNamespace(template=Template.from_dict(CONTENT))
    for nothing in ((None, training), (form, None)):
        warn_of_unlearned(*nothing)
    assert log_lines == []
    warn_of_unlearned(form, training)
    assert len(log_lines) == 2 and "slot invasion: its words '脉管侵犯' stand in no training text" in log_lines[1]
