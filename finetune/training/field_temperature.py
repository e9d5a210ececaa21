"""The temperature of the fields' probabilities, for a model whose training texts follow a template."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..common.device import Precision
from ..common.errors import UserError
from ..common.log import logger, notice
from ..data.batch import Batch, Sample
from ..data.tokenizer import Tokenizer
from ..models.captioner import SlideCaptioner
from ..models.field_calibration import calibrate_fields, known_fields
from ..models.template_decoding import fill_template
from ..models.template_tokens import TemplateTokens
from ..templates.template import Template


def fit_field_temperature(model: SlideCaptioner, precision: Precision, template: dict[str, Any], tokenizer: Tokenizer,
                          samples: list[Sample], batches: Iterable[Batch]) -> dict[str, float]:
    """What `calibration` of a checkpoint holds of its template: `field_temperature` and the number of `fields`.

    Empty if this model cannot fill the template.

    Args:
        template: That of the checkpoint.
        samples: Validation slides, which `batches` are of.
    """
    if "template" not in model.decoder.supports:
        return {}
    form = Template.from_dict(template)
    truths = {sample.slide.slide_id: form.parse(sample.references[0]) for sample in samples}
    known = []
    try:
        tokens = TemplateTokens(form, tokenizer)
        for batch in batches:
            with precision.autocast():
                filled = fill_template(model.decoder, model.encode(batch.to(precision.device)), tokens, exact=0.0)
            known += [known_fields(found.fields, truths[slide]) for slide, found in zip(batch.ids, filled, strict=True)
                      if truths[slide] is not None]
    except UserError as error:  # training texts may hold what the tokenizer does not know
        logger.warning("the probabilities of fields are not calibrated: %s", error.what)
        return {}
    calibration = calibrate_fields(known)
    notice("%s", calibration.line())
    return {"field_temperature": calibration.temperature, "fields": calibration.num_fields}
