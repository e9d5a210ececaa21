"""Random templates of values that are easily confused: what a decoder fills in always parses as the fields it says."""

from __future__ import annotations

import pytest
import torch

from finetune.common.errors import UserError
from finetune.models.template_decoding import fill_template
from finetune.models.template_tokens import TemplateTokens
from finetune.templates.template import Template
from tests.helpers.language_models import make_language_model, tiny_captioner
from tests.helpers.odd_templates import alphabet, odd_templates
from tests.helpers.template_decoders import SLIDES, TOKENIZERS, coca_of, images_for

KINDS = [*TOKENIZERS, "prism", "language model"]
MOST_REFUSED = 0.3  # of the templates: those of which a tokenizer has no token, or two values with the same tokens


def decoder_of(kind, folder):
    """(decoder, tokenizer); Prism's decoder here has a tokenizer that knows all characters, in place of its own."""
    torch.manual_seed(0)
    if kind == "language model":
        captioner, tokenizer = tiny_captioner(make_language_model(folder / "lm"))
        return captioner.decoder, tokenizer
    tokenizer = TOKENIZERS["vocab" if kind == "prism" else kind](alphabet())
    return coca_of(tokenizer, "prism" if kind == "prism" else "coca"), tokenizer


def fill_and_check(kind, folder, number, seed):
    decoder, tokenizer = decoder_of(kind, folder)
    images = images_for(decoder)
    filled = refused = 0
    texts = set()
    for template in odd_templates(seed):
        try:
            tokens = TemplateTokens(template, tokenizer)
            for beams in (1, 3):
                for found in fill_template(decoder, images, tokens, num_beams=beams):
                    fields = {name: field.value for name, field in found.fields.items()}
                    assert template.parse(found.text) == fields, template.to_dict()
                    assert all(0 <= field.probability <= 1 + 1e-6 for field in found.fields.values())
                    texts.add(found.text)
            filled += 1
        except UserError as error:
            assert "tokenizer" in error.line(), error.line()
            refused += 1
        if filled == number:
            break
    assert refused <= MOST_REFUSED * (filled + refused), refused
    assert len(texts) > filled


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_filled_in_parses(kind, tmp_path):
    fill_and_check(kind, tmp_path, 5, seed=1)


def test_a_template_of_one_text_is_that_text(tmp_path):
    decoder, tokenizer = decoder_of("bpe", tmp_path)
    template = Template.from_dict({"text": "胃，{a}。", "slots": {"a": ["癌"]}})
    found = fill_template(decoder, images_for(decoder), TemplateTokens(template, tokenizer))
    assert [(one.text, one.fields["a"].value, one.probability) for one in found] == [("胃，癌。", "癌", 1.0)] * SLIDES


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_1000_random_templates_are_filled_with_texts_that_parse(kind, tmp_path):
    fill_and_check(kind, tmp_path, 1000, seed=2)
