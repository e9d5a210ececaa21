"""Slides unlike the training slides, against distances computed pair by pair."""

from __future__ import annotations

import math

import numpy as np
import pytest

from finetune.data.tile_facts import TileFacts, facts_of
from finetune.models.training_texts import SlideVectors, TrainingTexts
from finetune.models.unusual import UsualSlides, distances
from tests.helpers.training import TOKENIZER


def cosine(a, b) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def slides_of(rng: np.random.Generator, count: int) -> SlideVectors:
    """Embeddings with a large mean, as Prism's have; unit vectors in the contrastive space."""
    contrastive = rng.standard_normal((count, 4))
    embedding = 5 + rng.standard_normal((count, 6))
    return SlideVectors(contrastive / np.linalg.norm(contrastive, axis=1, keepdims=True), embedding, embedding)


def training_of(slides: SlideVectors) -> TrainingTexts:
    return TrainingTexts(["甲"] * len(slides.embedding), slides.contrastive, slides.embedding, None, TOKENIZER, 9)


def brute_force(slides: SlideVectors, groups: list[str]) -> dict[str, list[float]]:
    """The distance of each slide to the third nearest one of another patient."""
    mean = slides.embedding.mean(0)
    points = {"prism": slides.embedding - mean, "contrastive": slides.contrastive}
    return {space: [sorted(1 - cosine(a, b) for b, other in zip(of_space, groups, strict=True) if other != group)[2]
                    for a, group in zip(of_space, groups, strict=True)] for space, of_space in points.items()}


@pytest.mark.parametrize("patients", [40, 13])
@pytest.mark.parametrize("num_unseen", [0, 7])
def test_limits_are_the_99th_percentile_of_distances_between_patients_and_stretched_where_trained(patients, num_unseen):
    rng = np.random.default_rng(patients)
    slides, unseen = slides_of(rng, 40), slides_of(rng, num_unseen) if num_unseen else None
    groups = [f"p{i % patients}" for i in range(40)]
    training = training_of(slides)
    usual = UsualSlides.of(training, range(10, 50), None if patients == 40 else groups, unseen)
    expected = brute_force(slides, groups)
    assert usual.least_tiles == 10 and set(usual.ranges) == ({"prism", "contrastive"} if num_unseen else {"prism"})
    for space, margin in (("prism", 1), ("contrastive", 2)):
        if space not in usual.ranges:
            continue
        stretch = 1.0
        if space == "contrastive":
            far = sorted(sorted(1 - cosine(q, p) for p in slides.contrastive)[2] for q in unseen.contrastive)
            stretch = max(1.0, far[3] / np.median(expected[space]))
        assert usual.ranges[space].median == pytest.approx(np.median(expected[space]) * stretch)
        assert usual.ranges[space].limit == pytest.approx(margin * sorted(expected[space])[39] * stretch), "of 40 the largest"


def test_a_slide_beyond_a_limit_is_unusual_and_one_within_is_not():
    rng = np.random.default_rng(1)
    slides, unseen = slides_of(rng, 120), slides_of(rng, 5)
    training = training_of(slides)
    usual = UsualSlides.of(training, [20] * 120, None, unseen)
    expected = brute_force(slides, [*map(str, range(120))])["prism"]
    assert usual.ranges["prism"].limit == pytest.approx(sorted(expected)[118]), "one of 120 training slides is farther"
    trained = UsualSlides.of(training, [20] * 120, None, unseen, ("prism", "contrastive")).ranges
    stretch = max(1.0, np.median(distances(training, unseen)["prism"]) / np.median(expected))
    assert trained["prism"].limit == pytest.approx(sorted(expected)[118] * stretch)
    assert UsualSlides.of(training, [20] * 120, trained=("prism", "contrastive")).ranges == {}, "nothing unseen"
    away = SlideVectors(-slides.contrastive.mean(0, keepdims=True), slides.embedding.mean(0, keepdims=True), slides.latent_mean[:1])
    facts = TileFacts(20, False, False)
    near, far = ({space: known.limit + step for space, known in usual.ranges.items()} for step in (-1e-6, 1e-6))
    assert usual.reasons(facts, near) == [] and len(usual.reasons(facts, far)) == 2
    assert usual.reasons_of(training, slides, [facts] * 120) == [[]] * 120, "a training slide is near to itself"
    (reasons,) = usual.reasons_of(training, away, [facts])
    assert reasons and reasons[0].startswith("far from the training slides in Prism's space (1, limit "), "no direction at all"


@pytest.mark.parametrize(("facts", "reasons"), [
    (TileFacts(30, False, False), []), (TileFacts(20, False, False), []),
    (TileFacts(30, False, False, 0.2), []), (TileFacts(30, False, False, 0.5), ["50% of its tiles are zero"]),
    (TileFacts(30, True, True), ["all its tiles are zero"]), (TileFacts(30, True, False), ["all its tiles are equal"]),
    (TileFacts(19, False, False), ["fewer tiles than any training slide (19, the fewest were 20)"]),
    (TileFacts(1, False, True), ["all its tiles are zero", "fewer tiles than any training slide (1, the fewest were 20)"])])
def test_tiles_alone_can_make_a_slide_unusual(facts, reasons):
    assert UsualSlides(20, {}).reasons(facts, {}) == reasons


def test_a_single_tile_is_unusual_even_where_training_slides_had_one():
    assert UsualSlides(1, {}).reasons(TileFacts(1, False, False), {}) == ["a single tile"]


@pytest.mark.parametrize(("count", "patients"), [(19, 19), (40, 1)])
def test_few_slides_or_a_single_patient_give_no_limits(count, patients):
    slides = slides_of(np.random.default_rng(2), count)
    usual = UsualSlides.of(training_of(slides), [20] * count, [f"p{i % patients}" for i in range(count)], slides)
    assert usual.ranges == {} and UsualSlides.from_dict(usual.to_dict()) == usual


def test_copies_of_a_slide_do_not_make_everything_else_unusual_by_rounding():
    slides = slides_of(np.random.default_rng(3), 30)
    copies = SlideVectors(*(np.concatenate([a, a]) for a in slides))
    training = training_of(copies)
    usual = UsualSlides.of(training, [20] * 60, None, slides)
    rounded = SlideVectors(slides.contrastive, slides.embedding.astype(np.float16).astype(np.float32), slides.latent_mean)
    assert usual.reasons_of(training, rounded, [TileFacts(20, False, False)] * 30) == [[]] * 30


def test_numbers_survive_the_file():
    slides = slides_of(np.random.default_rng(4), 30)
    usual = UsualSlides.of(training_of(slides), [20] * 30, None, slides)
    numbers = usual.to_dict()
    assert UsualSlides.from_dict(numbers) == usual and all(math.isfinite(value) for value in numbers.values())
    assert set(numbers) == {"least_tiles", *(f"{s}_{n}" for s in ("prism", "contrastive") for n in ("median", "limit"))}


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("count", [1, 2, 16, 17, 40])
def test_facts_of_tiles_are_those_of_all_pairs(count, dtype):
    rng = np.random.default_rng(count)
    for tiles in (np.zeros((count, 3)), np.ones((count, 3)), rng.standard_normal((count, 3))):
        tiles = tiles.astype(dtype)
        last = tiles.copy()
        last[-1, -1] += 1
        for one in (tiles, last):
            equal = count > 1 and len({row.tobytes() for row in one}) == 1
            assert facts_of(one) == TileFacts(count, equal, not np.abs(one).sum(), np.mean([not row.any() for row in one]))
