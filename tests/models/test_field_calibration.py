"""The temperature of field probabilities, on fields drawn from a known one."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.models.field_calibration import calibrate_fields, known_fields
from finetune.models.template_fields import Field


def slides(count: int, temperature: float, spread: float = 3.0, seed: int = 0):
    """Of each slide three fields of four values whose right one is drawn from softmax(scores / temperature)."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        known = []
        for _ in range(3):
            scores = rng.normal(0, spread, 4)
            shares = np.exp(scores / temperature)
            right = rng.choice(4, p=shares / shares.sum())
            known.append((Field(str(scores.argmax()), 0.9, {str(i): [s] for i, s in enumerate(scores)}), str(right)))
        made.append(known)
    return made


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_temperature_that_the_values_were_drawn_at_is_found(temperature):
    found = calibrate_fields(slides(400, temperature))
    assert found.temperature == pytest.approx(temperature, rel=0.2)
    assert found.num_fields == 1200 and found.after <= found.before
    if temperature != 1.0:
        assert found.after < found.before and f"--field_temperature {found.temperature:.2f}" in found.line()


def test_slides_that_cannot_show_it_leave_the_probabilities_as_they_are():
    right = [[(field, field.value) for field, _ in slide] for slide in slides(100, 1.0)]
    found = calibrate_fields(right)
    assert found.temperature == 1.0 and found.num_wrong == 0 and "not calibrated" in found.line()
    assert calibrate_fields(slides(19, 3.0)).temperature == 1.0
    assert calibrate_fields([]).temperature == 1.0


def test_fields_without_a_choice_say_nothing():
    fields = {"a": Field("x", 1.0, {"x": [0.0]}), "b": Field("y", 0.7, {"y": [-1.0], None: [-2.0]})}
    assert [right for _, right in known_fields(fields, {"a": "x", "b": None})] == [None]
