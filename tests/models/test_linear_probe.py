"""The linear probe against refits by brute force, and what it is to find in made-up slides."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.models.linear_probe import LinearProbe, ridge


@pytest.mark.parametrize("slides, features", [(30, 6), (24, 50)], ids=["more slides", "more features"])
def test_left_out_predictions_are_those_of_a_fit_without_the_fold(slides, features):
    rng = np.random.default_rng(3)
    x, y, folds = rng.normal(size=(slides, features)), rng.normal(size=(slides, 4)), rng.integers(0, 5, slides)
    weight, left_out, chosen = ridge(x, y, folds)
    errors = {}
    for penalty in 10 ** np.arange(1, 6, 0.5):
        def fit(rows, penalty=penalty):
            return np.linalg.solve(x[rows].T @ x[rows] + penalty * np.eye(features), x[rows].T @ y[rows])
        refitted = np.zeros_like(y)
        for fold in np.unique(folds):
            refitted[folds == fold] = x[folds == fold] @ fit(folds != fold)
        errors[penalty] = ((y - refitted) ** 2).mean(), refitted, fit(np.full(slides, True))
    assert chosen == min(errors, key=lambda penalty: errors[penalty][0])
    _, refitted, full = errors[chosen]
    np.testing.assert_allclose(left_out, refitted, atol=1e-9)
    np.testing.assert_allclose(weight, full, atol=1e-9)


def made_up(slides: int, seed: int = 0) -> tuple[np.ndarray, list[list[int]]]:
    """Features (slides, 20) whose first six say which of the tokens 4 to 9 stand in the text; 1 and 2 always do."""
    rng = np.random.default_rng(seed)
    presence = rng.random((slides, 6)) < 0.5
    features = rng.normal(size=(slides, 20))
    features[:, :6] += 2 * presence
    return features, [[1, *(4 + np.flatnonzero(row)).tolist(), 2] for row in presence]


@pytest.mark.parametrize("groups", [None, [f"patient {i // 2}" for i in range(200)]], ids=["clusters", "patients"])
def test_the_text_of_a_new_slide_has_the_highest_score_far_more_often_than_by_chance(groups):
    features, texts = made_up(200)
    probe = LinearProbe.fit(features, texts, groups)
    assert probe.token_ids.tolist() == [4, 5, 6, 7, 8, 9] and (probe.strength > 0.3).all()
    new, truth = made_up(100, seed=1)
    candidates = sorted({tuple(text) for text in texts})
    scores = probe.text_scores(new, candidates)
    found = [candidates[i] == tuple(text) for i, text in zip(scores.argmax(1), truth, strict=True)]
    assert np.mean(found) > 0.2, "of 64 texts"


def test_scores_are_log_likelihoods_of_independent_normal_predictions():
    probe = LinearProbe.fit(*made_up(100))
    new = made_up(3, seed=2)[0]
    predictions = probe.predict(new)
    spread = np.sqrt(probe.frequency * (1 - probe.frequency))
    texts = [[4, 4, 7], [], [9, 100]]
    for j, text in enumerate(texts):
        y = (np.isin(probe.token_ids, text) - probe.frequency) / spread
        log_density = -((predictions - probe.strength * y) / probe.noise) ** 2 / 2
        empty = -(predictions / probe.noise) ** 2 / 2
        np.testing.assert_allclose(probe.text_scores(new, texts)[:, j], (log_density - empty).sum(1), rtol=1e-3, atol=1e-3)


def test_noise_has_no_strength():
    rng = np.random.default_rng(5)
    probe = LinearProbe.fit(rng.normal(size=(200, 20)), [[int(t)] for t in rng.integers(4, 6, 200)])
    assert np.abs(probe.strength).max() < 0.15


def test_a_probe_survives_a_file_and_is_the_same_each_time():
    first, second = LinearProbe.fit(*made_up(60)), LinearProbe.from_dict(LinearProbe.fit(*made_up(60)).to_dict())
    for name, value in vars(first).items():
        assert np.array_equal(value, vars(second)[name]), name


@pytest.mark.parametrize("features, texts", [
    (np.ones((4, 3)), [[1], [2], [1], [2]]),
    (np.ones((20, 3)), [[1, 2]] * 20),
    (np.ones((20, 3)), [[k] for k in range(20)]),
], ids=["too few", "one text", "no text twice"])
def test_without_anything_to_predict_there_is_no_probe(features, texts):
    assert LinearProbe.fit(features, texts) is None


def test_slides_that_are_all_alike_leave_the_common_text():
    probe = LinearProbe.fit(np.ones((20, 3)), [[4], [5]] * 10)
    scores = probe.text_scores(np.ones((1, 3)), [[4], [5]])
    assert np.isfinite(scores).all() and abs(scores[0, 0] - scores[0, 1]) < 1e-3
