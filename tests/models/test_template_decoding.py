"""Decoding along a template, against all its texts scored one by one by the decoder itself."""

from __future__ import annotations

import math
import random

import pytest
import torch

from finetune.common.errors import UserError
from finetune.models.generation import token_log_probabilities
from finetune.models.template_decoding import fill_template
from finetune.models.template_tokens import TemplateTokens
from finetune.templates.template import Template
from tests.helpers.decoders import LETTERS
from tests.helpers.language_models import make_language_model, tiny_captioner
from tests.helpers.template_decoders import SLIDES, TOKENIZERS, coca_of, images_for
from tests.helpers.templates import by_brute_force, random_content

CHINESE = {"text": "{organ}，{type}[，{grade}][，脉管{invasion}]。", "slots": {
    "organ": ["乳腺", "胃", "胃窦"], "type": ["浸润性癌", "浸润性小叶癌", "原位癌"],
    "grade": {"values": ["高分化", "低分化"], "only_if": {"type": ["浸润性癌", "浸润性小叶癌"]}},
    "invasion": {"values": ["侵犯", "未见侵犯"], "optional": True}}}
ENGLISH = {"text": "{organ}, {type}[, grade {grade}].", "slots": {
    "organ": ["breast", "stomach"], "type": ["invasive carcinoma", "invasive lobular carcinoma", "carcinoma in situ"],
    "grade": {"values": ["1", "2", "3"], "optional": True}}}


def texts_of(content):
    return [text for text, _ in by_brute_force(Template.from_dict(content))]


@pytest.fixture(params=[*TOKENIZERS, "prism", "hf"], scope="module")
def decoder(request, tmp_path_factory):
    """(decoder, tokenizer, content of a template)."""
    torch.manual_seed(0)
    if request.param == "prism":
        return coca_of(LETTERS, "prism"), LETTERS, ENGLISH
    if request.param == "hf":
        captioner, tokenizer = tiny_captioner(make_language_model(tmp_path_factory.mktemp("form") / "lm"))
        return captioner.decoder, tokenizer, CHINESE
    content = ENGLISH if request.param == "sentencepiece" else CHINESE
    tokenizer = TOKENIZERS[request.param](texts_of(content))
    return coca_of(tokenizer), tokenizer, content


@torch.no_grad()
def all_scores(decoder, tokenizer, images, ids):
    """Log probability of each of some texts among them, (slides, texts), by one pass without a cache for each slide.

    Of every token only its share counts, among the tokens with which one of the texts goes on there.
    """
    rows = [[tokenizer.bos_id, *row] for row in ids]
    scores = torch.zeros(len(images), len(ids), dtype=torch.double)
    for slide in range(len(images)):
        found = token_log_probabilities(decoder, images[slide:slide + 1].expand(len(rows), -1, -1), rows, tokenizer.pad_id)[0]
        of_beginning = {tuple(row[:i + 1]): float(found[n, i]) for n, row in enumerate(ids) for i in range(len(row))}
        for beginning, own in of_beginning.items():
            others = [math.exp(p) for other, p in of_beginning.items() if other[:-1] == beginning[:-1]]
            for number, row in enumerate(ids):
                if tuple(row[:len(beginning)]) == beginning:
                    scores[slide, number] += own - math.log(sum(others))
    return scores


def scores_of(decoder, tokenizer, images, template):
    """Texts of a template, {text: fields}, with `all_scores`."""
    texts = dict(by_brute_force(template))
    return texts, all_scores(decoder, tokenizer, images, [[*tokenizer.encode(text), tokenizer.eos_id] for text in texts])


def test_wide_beams_find_the_most_probable_of_all_texts(decoder):
    decoder, tokenizer, content = decoder
    template, images = Template.from_dict(content), images_for(decoder)
    texts, scores = scores_of(decoder, tokenizer, images, template)
    found = fill_template(decoder, images, TemplateTokens(template, tokenizer), num_beams=len(texts))
    assert [f.text for f in found] == [list(texts)[i] for i in scores.argmax(1).tolist()]
    for filled in found:
        assert template.parse(filled.text) == {name: f.value for name, f in filled.fields.items()}


def test_probabilities_of_choices_are_those_of_all_texts(decoder):
    decoder, tokenizer, content = decoder
    images = images_for(decoder)
    template = Template.of_choices(texts_of(content))
    texts, scores = scores_of(decoder, tokenizer, images, template)
    for exact, temperature in ((0.0, 1.0), (1e-3, 1.0), (1e-3, 3.0), (1e-3, 0.5)):
        expected = (scores / temperature).softmax(1)
        found = fill_template(decoder, images, TemplateTokens(template, tokenizer), temperature=temperature, exact=exact)
        for slide, filled in enumerate(found):
            best = int(expected[slide].argmax())
            assert filled.text == list(texts)[best]
            assert filled.fields["text"].probability == pytest.approx(expected[slide, best].item(), abs=1e-4 + exact)


def test_each_field_is_the_best_of_its_slot_with_its_share_of_the_probability(decoder):
    """The probability of a value is that of all texts with it, among the texts with the values before it.

    A part that may be left out and its value are one decision, so its field is checked by its probability alone.
    """
    decoder, tokenizer, content = decoder
    template, images = Template.from_dict(content), images_for(decoder)
    texts, scores = scores_of(decoder, tokenizer, images, template)
    found = fill_template(decoder, images, TemplateTokens(template, tokenizer), exact=0.0)
    checked = 0
    for filled, log_probabilities in zip(found, scores, strict=True):
        left = {text: math.exp(score) for text, score in zip(texts, log_probabilities.tolist(), strict=True)}
        for name, field in filled.fields.items():
            values = {value: sum(p for text, p in left.items() if texts[text][name] == value)
                      for value in {texts[text][name] for text in left}}
            assert field.probability == pytest.approx(values[field.value] / sum(values.values()), abs=1e-4)
            if None not in values and len(values) > 1:
                assert field.value == max(values, key=values.get)
                checked += 1
            left = {text: p for text, p in left.items() if texts[text][name] == field.value}
        assert list(left) == [filled.text]
        assert filled.probability == pytest.approx(math.prod(f.probability for f in filled.fields.values()))
    assert checked >= SLIDES


def test_a_slide_is_filled_alike_alone_and_in_a_batch(decoder):
    decoder, tokenizer, content = decoder
    images, tokens = images_for(decoder), TemplateTokens(Template.from_dict(content), tokenizer)
    for beams in (1, 3):
        together = fill_template(decoder, images, tokens, num_beams=beams)
        for slide, filled in enumerate(together):
            alone = fill_template(decoder, images[slide:slide + 1], tokens, num_beams=beams)[0]
            assert alone.text == filled.text
            for name, field in filled.fields.items():
                assert alone.fields[name].probability == pytest.approx(field.probability, abs=2e-3)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_random_templates_are_filled_with_texts_that_parse(kind):
    """Wide beams find the most probable text, but for templates whose further text changes tokens before a decision.

    There the branchings of whole texts are not those of the decisions; with characters as tokens that cannot happen.
    """
    torch.manual_seed(0)
    rng, filled, best_found = random.Random(7), 0, 0
    corpus = ["".join(rng.choices("ab，。", k=30)) for _ in range(50)]
    tokenizer = TOKENIZERS[kind](corpus)
    decoder = coca_of(tokenizer)
    images = images_for(decoder)
    while filled < 30:
        try:
            template = Template.from_dict(random_content(rng))
        except UserError:
            continue
        tokens = TemplateTokens(template, tokenizer)
        texts, scores = scores_of(decoder, tokenizer, images, template)
        if len(texts) < 2:
            continue
        for found in fill_template(decoder, images, tokens, num_beams=rng.choice([1, 2])):
            assert template.parse(found.text) == {name: f.value for name, f in found.fields.items()}
        best = fill_template(decoder, images, tokens, num_beams=len(texts))
        best_found += [f.text for f in best] == [list(texts)[i] for i in scores.argmax(1).tolist()]
        filled += 1
    assert best_found >= (30 if kind == "vocab" else 28)
