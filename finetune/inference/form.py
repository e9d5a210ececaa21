"""Captions that follow a template: --template and --choices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..checkpoints.format import Checkpoint
from ..checkpoints.nearest_index import field_temperature_of
from ..common.errors import UserError
from ..common.files import expand
from ..common.log import logger
from ..config.yaml_file import load_plain_yaml
from ..data.labels import Label
from ..data.text_encoding import decode, read_bytes
from ..data.tokenizer import Tokenizer
from ..models.captioner import CaptionDecoder
from ..models.field_calibration import FieldCalibration, calibrate_fields, known_fields
from ..models.template_decoding import fill_template
from ..models.template_fields import FilledTemplate
from ..models.template_tokens import TemplateTokens
from ..templates.template import Template
from .options import InferenceOptions
from .records import FieldRecord, Record, new_record

_CHOICES_FORMAT = "write one text on each line, or a YAML list"

_MOST_ALTERNATIVES, _LEAST_PROBABLE = 5, 0.01
AUTO = "auto"


@dataclass
class Form:
    """A template that captions follow, in the tokens of a model.

    Attributes:
        temperature: Of the fields' probabilities.
        keep: Whether `measure` keeps the fields of slides in `filled`, {slide id: its fields}, to calibrate.
    """

    tokens: TemplateTokens
    temperature: float = 1.0
    keep: bool = False
    filled: dict[str, FilledTemplate] = field(default_factory=dict, repr=False)

    @property
    def template(self) -> Template:
        """The template."""
        return self.tokens.template

    @classmethod
    def of_options(cls, options: InferenceOptions, decoder: CaptionDecoder, tokenizer: Tokenizer,
                   checkpoint: Checkpoint | None) -> Form | None:
        """The form that the flags ask for, None for free captions. Raises UserError if this model cannot fill it."""
        template = _template(options, checkpoint)
        if template is None:
            return None
        flag = "--template" if options.template else "--choices"
        if "template" not in decoder.supports:
            raise UserError(flag, "this model's decoder cannot fill templates", "leave it out")
        tokens = TemplateTokens(template, tokenizer)
        _check_length(tokens.longest, decoder.max_positions, flag)
        return cls(tokens, options.field_temperature or _fitted(options, checkpoint),
                   keep=options.labels_file is not None)

    def fill(self, decoder: CaptionDecoder, image_tokens: torch.Tensor, ids: list[str], num_beams: int) -> list[Record]:
        """Records of B slides from their image tokens (B, n, D). Raises UserError."""
        filled = fill_template(decoder, image_tokens, self.tokens, num_beams=num_beams, temperature=self.temperature)
        self.measure(decoder, image_tokens, ids, num_beams)
        return [self._record(slide_id, found) for slide_id, found in zip(ids, filled, strict=True)]

    def measure(self, decoder: CaptionDecoder, image_tokens: torch.Tensor, ids: list[str], num_beams: int) -> None:
        """Keep the scores of all values, if they are wanted; arguments as of `fill`.

        Apart from the records: these must be the same with labels and without, and may be of an earlier command.
        """
        if self.keep:
            filled = fill_template(decoder, image_tokens, self.tokens, num_beams=num_beams, exact=0.0)
            self.filled |= dict(zip(ids, filled, strict=True))

    def calibration(self, labels: Mapping[str, Label]) -> FieldCalibration:
        """What the kept fields of slides with labels that follow the template say of the probabilities."""
        known = []
        for slide_id, found in self.filled.items():
            truth = self.template.parse(labels[slide_id].texts[0]) if slide_id in labels else None
            if truth is not None:
                known.append(known_fields(found.fields, truth))
        return calibrate_fields(known)

    def _record(self, slide_id: str, found: FilledTemplate) -> Record:
        record = new_record(slide_id, caption=found.text, confidence=found.probability, finished=True)
        record["fields"] = {}
        for name, one in found.fields.items():
            record["fields"][name] = {"value": one.value, "probability": one.probability}
            if alternatives := _alternatives(one.shares(self.temperature), one.value):
                record["fields"][name]["alternatives"] = alternatives
        return record


def withhold_fields(fields: dict[str, FieldRecord], thresholds: Mapping[str, float]) -> None:
    """Take away the values whose probability is below the threshold of their field, and what else was possible."""
    for name, one in fields.items():
        if one["probability"] < thresholds[name]:
            one["value"], one["abstained"] = None, True
            one.pop("alternatives", None)


def _alternatives(shares: dict[str | None, float], chosen: str | None) -> dict[str, float]:
    """{value: probability} of the next best values; "" for none."""
    others = sorted(((share, value) for value, share in shares.items() if value != chosen), key=lambda pair: -pair[0])
    return {value or "": share for share, value in others[:_MOST_ALTERNATIVES] if share >= _LEAST_PROBABLE}


def _template(options: InferenceOptions, checkpoint: Checkpoint | None) -> Template | None:
    if options.choices:
        return read_choices(options.choices)
    if options.template == AUTO:
        return _of_checkpoint(checkpoint)
    return Template.from_file(options.template) if options.template else None


def _of_checkpoint(checkpoint: Checkpoint | None) -> Template:
    if checkpoint is None:
        raise UserError("--template", "Prism itself has no training texts", "give a template file")
    if checkpoint.template is None:
        raise UserError("--template", f"{checkpoint.path} has no template: the training texts follow none, or the "
                        "program was older", "give a template file")
    return Template.from_dict(checkpoint.template, f"template of {checkpoint.path}")


def _check_length(longest: int, positions: int | None, flag: str) -> None:
    if positions is not None and longest > positions:
        raise UserError(flag, f"its texts have up to {longest} tokens, the decoder {positions} positions",
                        "use shorter values")


def _fitted(options: InferenceOptions, checkpoint: Checkpoint | None) -> float:
    """The temperature of the checkpoint's own template; 1 for others, which it was not fitted for."""
    temperature = field_temperature_of(checkpoint) if checkpoint is not None and options.template == AUTO else None
    if temperature is None:
        logger.warning("field probabilities are not calibrated: see --field_temperature")
    return temperature or 1.0


def read_choices(path: str) -> Template:
    """The template of a list of texts: a YAML or JSON list, or a text file with one on each line. Raises UserError."""
    if Path(path).suffix.lower() in (".yaml", ".yml", ".json"):
        texts = load_plain_yaml(path, _CHOICES_FORMAT)
    else:
        file = expand(path)
        texts = [line.strip() for line in decode(read_bytes(file), file).splitlines() if line.strip()]
    if not isinstance(texts, list) or len(texts) < 2:
        raise UserError(path, "does not hold two or more texts", _CHOICES_FORMAT)
    return Template.of_choices(texts, path)
