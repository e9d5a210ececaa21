"""Probe tokens against their formula in numpy, with a probe refitted by brute force for each slide."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from coca_pytorch import CoCa
from finetune.data.batch import Collate, Sample
from finetune.data.slides import SlideFile
from finetune.models.linear_probe import CrossFit, LinearProbe, predictable_tokens, ridge
from finetune.models.probe_tokens import ProbeTokens, TrainingEvidence

WIDTH, LATENTS, SLIDES = 12, 3, 40
PAD, BOS, EOS = 0, 1, 2
GROUPS = [f"patient {i // 3}" for i in range(SLIDES)]


@pytest.fixture(scope="module")
def slides() -> tuple[torch.Tensor, list[list[int]]]:
    """Image tokens (SLIDES, 1 + LATENTS, WIDTH) whose latents say which of the tokens 4 to 8 stand in the text."""
    rng = np.random.default_rng(0)
    presence = rng.random((SLIDES, 5)) < 0.5
    latents = rng.normal(size=(SLIDES, LATENTS, WIDTH))
    latents[:, :, :5] += 2 * presence[:, None]
    tokens = np.concatenate([rng.normal(size=(SLIDES, 1, WIDTH)), latents], axis=1).astype(np.float32)
    return torch.from_numpy(tokens), [[BOS, *(4 + np.flatnonzero(row)).tolist(), EOS] for row in presence]


@pytest.fixture(scope="module")
def fit(slides) -> CrossFit:
    image_tokens, texts = slides
    return CrossFit.fit(image_tokens[:, 1:].mean(1).numpy(), texts, GROUPS)


@pytest.fixture
def tokens(fit) -> ProbeTokens:
    torch.manual_seed(1)
    tokens = ProbeTokens(2, 8, WIDTH, 5)
    tokens.set_probe(fit.probe)
    tokens.evidence = TrainingEvidence(fit, [f"s{i}" for i in range(SLIDES)], torch.device("cpu"))
    return tokens


def batch_of(slides, epoch: int = 0, rows: range = range(SLIDES), seed: int = 3):
    image_tokens, texts = slides
    samples = [Sample(SlideFile(f"s{i}", f"s{i}.h5", "embeddings", 4), texts[i]).at(epoch, seed) for i in rows]
    return Collate(PAD).encoded(samples, image_tokens[list(rows)])


def evidence_in(tokens: ProbeTokens, image_tokens: torch.Tensor, batch=None) -> tuple[np.ndarray, torch.Tensor]:
    """The evidence (B, W) that the module projects, and the pooled tokens it gives on."""
    seen = []
    hook = tokens.project.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0] / tokens.scale))
    pooled = torch.ones(len(image_tokens), 3, 8)
    if batch is None:
        context = tokens(image_tokens, pooled)
    else:
        with tokens.training_on(batch):
            context = tokens(image_tokens, pooled)
    hook.remove()
    return seen[0].detach().numpy(), context[:, 2:]


def test_the_fits_without_a_fold_are_those_of_its_left_out_predictions(slides, fit):
    image_tokens, texts = slides
    features = image_tokens[:, 1:].mean(1).numpy()
    probe, token_ids = fit.probe, predictable_tokens(texts)
    assert token_ids.tolist() == probe.token_ids.tolist() == [4, 5, 6, 7, 8] and fit.kept.tolist() == list(range(SLIDES))
    z = (features - probe.mean) / probe.std
    y = (np.array([np.isin(token_ids, text) for text in texts]) - probe.frequency) / \
        np.sqrt(probe.frequency * (1 - probe.frequency))
    _, left_out, penalty = ridge(z.astype(float), y, fit.folds)
    for i in range(SLIDES):
        others = fit.folds != fit.folds[i]
        assert not any(others[j] for j in range(SLIDES) if GROUPS[j] == GROUPS[i]), "a patient is left out as a whole"
        refitted = np.linalg.solve(z[others].T @ z[others] + penalty * np.eye(WIDTH), z[others].T @ y[others])
        np.testing.assert_allclose(z[i] @ fit.fold_weights[fit.folds[i]], z[i] @ refitted, atol=1e-4)
        np.testing.assert_allclose(z[i] @ refitted, left_out[i], atol=1e-4)
        np.testing.assert_allclose(fit.residuals[i], left_out[i] - probe.strength * y[i], atol=1e-4)


@pytest.mark.parametrize("wide", [True, False])
def test_a_fold_is_left_out_alike_with_fewer_slides_than_features_and_with_more(wide):
    rng = np.random.default_rng(2)
    features, texts = rng.normal(size=(20, 30 if wide else 6)), [[4] if i % 2 else [5] for i in range(20)]
    fit = CrossFit.fit(features, texts, [str(i) for i in range(20)])
    other = CrossFit.fit(np.concatenate([features, np.zeros((20, 40))], axis=1), texts, [str(i) for i in range(20)])
    np.testing.assert_allclose(other.fold_weights[:, :features.shape[1]], fit.fold_weights, atol=1e-5)


def test_a_new_slide_gets_what_the_whole_probe_says_of_it(slides, fit, tokens):
    image_tokens, _ = slides
    expected = fit.probe.predict(image_tokens[:, 1:].mean(1).numpy())
    for training, batch in [(False, None), (False, batch_of(slides)), (True, None)]:
        evidence, pooled = evidence_in(tokens.train(training), image_tokens, batch)
        np.testing.assert_allclose(evidence, expected, atol=1e-4)
        assert (pooled == 1).all()
    projected = (torch.from_numpy(expected) * tokens.scale) @ tokens.project.weight.T
    context = tokens.eval()(image_tokens, torch.zeros(SLIDES, 3, 8))[:, :2]
    torch.testing.assert_close(context, tokens.norm(projected.view(SLIDES, 2, 8)), atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(tokens.scale, fit.probe.strength / fit.probe.noise ** 2, rtol=1e-5)


def test_a_training_slide_gets_the_probe_without_it_or_evidence_made_from_its_text(slides, fit, tokens):
    image_tokens, texts = slides
    probe = fit.probe
    features = (image_tokens[:, 1:].mean(1).numpy() - probe.mean) / probe.std
    y = (np.array([np.isin(probe.token_ids, text) for text in texts]) - probe.frequency) / \
        np.sqrt(probe.frequency * (1 - probe.frequency))
    count_made = 0
    for epoch in range(4):
        evidence, pooled = evidence_in(tokens.train(), image_tokens, batch_of(slides, epoch))
        for i in range(SLIDES):
            hidden = bool((pooled[i] == 0).all())
            count_made += hidden
            if hidden:
                error = evidence[i] - probe.strength * y[i]
                distance = np.minimum(np.abs(fit.residuals - error), np.abs(fit.residuals + error)).max(1)
                assert distance.min() < 1e-4, "the errors of a training slide, with either sign"
            else:
                np.testing.assert_allclose(evidence[i], features[i] @ fit.fold_weights[fit.folds[i]], atol=1e-4)
                assert (pooled[i] == 1).all()
    assert 60 < count_made < 100, "half of 160"


def test_what_is_drawn_depends_on_seed_epoch_and_id_but_not_on_the_batch(slides, tokens):
    image_tokens = slides[0]
    whole, _ = evidence_in(tokens.train(), image_tokens, batch_of(slides, 1))
    torch.manual_seed(99)
    halves = [evidence_in(tokens, image_tokens[rows.start:rows.stop], batch_of(slides, 1, rows))[0]
              for rows in (range(13), range(13, SLIDES))]
    np.testing.assert_allclose(np.concatenate(halves), whole, atol=1e-5)
    for other in (batch_of(slides, 2), batch_of(slides, 1, seed=4)):
        assert np.abs(evidence_in(tokens, image_tokens, other)[0] - whole).max() > 0.1


def test_a_slide_that_was_not_fitted_gets_the_whole_probe(slides, fit, tokens):
    image_tokens = slides[0]
    tokens.evidence = TrainingEvidence(fit, [f"other {i}" for i in range(SLIDES)], torch.device("cpu"))
    evidence, pooled = evidence_in(tokens.train(), image_tokens, batch_of(slides))
    shown = (pooled == 1).all(2).all(1).numpy()
    expected = fit.probe.predict(image_tokens[:, 1:].mean(1).numpy())
    np.testing.assert_allclose(evidence[shown], expected[shown], atol=1e-4)


def test_the_slide_embedding_stands_in_where_there_are_no_latents():
    tokens = ProbeTokens(1, 4, WIDTH, 2)
    torch.nn.init.normal_(tokens.weight)
    one = torch.randn(3, 1, WIDTH)
    evidence, _ = evidence_in_plain(tokens, one)
    np.testing.assert_allclose(evidence, (one[:, 0] @ tokens.weight).numpy(), atol=1e-5)


def evidence_in_plain(tokens: ProbeTokens, image_tokens: torch.Tensor) -> tuple[np.ndarray, torch.Tensor]:
    seen = []
    hook = tokens.project.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    context = tokens(image_tokens, torch.ones(len(image_tokens), 2, 4))
    hook.remove()
    return seen[0].detach().numpy(), context


def test_the_text_attends_to_the_probe_tokens_and_they_to_the_latents():
    torch.manual_seed(0)
    coca = CoCa(dim=8, num_tokens=9, unimodal_depth=1, multimodal_depth=1, image_dim=WIDTH, num_img_queries=3,
                dim_head=8, heads=2).eval()
    image_tokens, text = torch.randn(2, 1 + LATENTS, WIDTH), torch.tensor([[1, 4, 5], [1, 6, 7]])
    before = coca(text, image_tokens=image_tokens)
    coca.img_context = ProbeTokens(2, 8, WIDTH, 5)
    torch.nn.init.normal_(coca.img_context.weight)
    assert not torch.allclose(coca(text, image_tokens=image_tokens), before)
    # the gradient of the evidence reaches the latents: with the pooling cut off, it is all there is
    image_tokens.requires_grad_()
    pooled = torch.zeros(2, 3, 8)
    coca.img_context(image_tokens, pooled)[:, :2].square().sum().backward()
    grads = image_tokens.grad
    assert (grads[:, 0] == 0).all() and grads[:, 1:].abs().max() > 0
    torch.testing.assert_close(grads[:, 1], grads[:, 2])


def test_compiled_training_takes_the_same_evidence(slides, tokens):
    image_tokens = slides[0][:4]
    compiled = torch.compile(tokens.train(), backend="eager", fullgraph=True, dynamic=True)
    pooled = torch.ones(4, 3, 8)
    for epoch in range(2):
        with tokens.training_on(batch_of(slides, epoch, range(4))):
            torch.testing.assert_close(compiled(image_tokens, pooled), tokens(image_tokens, pooled))
    torch.testing.assert_close(compiled(image_tokens, pooled), tokens(image_tokens, pooled))


def test_a_probe_is_what_nearest_pt_holds_too(slides, fit):
    image_tokens, texts = slides
    plain = LinearProbe.fit(image_tokens[:, 1:].mean(1).numpy(), texts, GROUPS)
    for name, value in vars(plain).items():
        assert np.array_equal(value, getattr(fit.probe, name)), name
