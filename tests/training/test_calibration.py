"""Calibration against an independent search; the index of training slides; confidence of captions."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from finetune.checkpoints.format import BEST, Checkpoint, write_pth
from finetune.checkpoints.nearest_index import NEAREST, read_nearest, require_fit, same_weights, temperature_of
from finetune.common.device import Precision
from finetune.config.schema import Config
from finetune.data.batch import Sample
from finetune.data.prepare import Data
from finetune.data.slides import SlideFile
from finetune.models.embeddings import embed_slides
from finetune.models.generation import confidences, generate
from finetune.models.linear_probe import folds_of_groups
from finetune.training.calibration import calibrate_and_index, is_calibrated_and_indexed
from finetune.training.temperature import TEMPERATURES, TokenSums, calibrate
from prism import GenerationOptions
from tests.helpers.files import refused
from tests.helpers.scripts import TEXTS
from tests.helpers.training import CPU, TOKENIZER, a_batch, tiny_model

FP32 = Precision("fp32", CPU, "test")


def checkpoint_of(model=None, step: int = 1, fingerprint: str = "f", calibration: dict | None = None) -> Checkpoint:
    sections = ("config", "tokenizer", "prism", "versions", "random_states", "optimizer", "scaler")
    return Checkpoint(data={"fingerprint": fingerprint}, progress={"step": step}, calibration=calibration,
                      model=model.saved_state() if model else {}, **{name: {} for name in sections})


def samples_of(batches) -> list[Sample]:
    return [Sample(SlideFile(i, f"{i}.h5", "x", 1), [1, 2], (TEXTS[k % 3],)) for k, i in
            enumerate(i for b in batches for i in b.ids)]


def data_of(train, validation=()) -> Data:
    return Data(samples_of(train), samples_of(validation), TOKENIZER, "f", [])


def batches_of(*batches):
    """The batches that hold a sample."""
    def chosen(samples):
        ids = {sample.slide.slide_id for sample in samples}
        return [batch for batch in batches if ids.issuperset(batch.ids)]
    return chosen


def likelihood(model, batches, temperature: float) -> float:
    """Token by token, from the model's plain forward pass."""
    total = 0.0
    for batch in batches:
        tokens = model.image_tokens(batch.tile_embeddings, batch.tile_mask)
        logits = model.decoder(batch.text, image_tokens=tokens, text_mask=batch.text_mask)
        for row, column in batch.text_mask.nonzero().tolist():
            total += (logits[row, column] / temperature).log_softmax(-1)[batch.labels[row, column]].item()
    return total


def scaled_model(scale: float):
    """A model that is far too sure, or not sure at all."""
    model = tiny_model().eval()
    norm, _ = model.decoder.to_logits
    with torch.no_grad():
        norm.gamma.mul_(scale)
    return model


def own_texts(model, batch, wrong: float = 0.0):
    """The batch with the model's own first choices as its texts, a share of the last ones exchanged for others."""
    labels = batch.labels.clone()
    tokens = model.image_tokens(batch.tile_embeddings, batch.tile_mask)

    def text() -> torch.Tensor:
        return torch.cat([batch.text[:, :1], labels[:, :-1]], dim=1) * batch.text_mask

    for column in range(labels.shape[1]):
        labels[:, column] = model.decoder(text(), image_tokens=tokens, text_mask=batch.text_mask)[:, column].argmax(-1)
    labels[:int(wrong * len(labels)), -1] += 1
    return dataclasses.replace(batch, text=text(), labels=labels % 11)


@torch.no_grad()
@pytest.mark.parametrize(("scale", "wrong", "at_bound"), [(1.0, 1.0, True), (8.0, 1.0, False), (200.0, 0.9, True)])
def test_the_temperature_maximizes_the_likelihood_of_the_validation_tokens(scale, wrong, at_bound, log_lines):
    model = scaled_model(scale)
    batches = [own_texts(model, a_batch(1, 13), wrong), own_texts(model, a_batch(2, 12), wrong)]
    found = calibrate(model, FP32, batches)
    assert found["temperature"] == max(TEMPERATURES, key=lambda t: likelihood(model, batches, t)) != 1
    assert found["at_bound"] == at_bound == any("end of what is tried" in line for line in log_lines)


@torch.no_grad()
def test_nothing_is_sharpened_where_all_is_right_or_slides_are_few(log_lines):
    model = scaled_model(1.0)
    for number, (slides, wrong) in enumerate([(25, 0.0), (25, 0.7), (19, 1.0)]):
        batch = own_texts(model, a_batch(1, slides), wrong)
        assert max(TEMPERATURES, key=lambda t: likelihood(model, [batch], t)) == 0.25
        found = calibrate(model, FP32, [batch])
        assert (found["temperature"], found["at_bound"]) == (1, False) and found["confidence"] == found["confidence_before"]
        assert f"{slides} validation slides with {int(wrong * slides)} wrong tokens cannot show" in log_lines[3 * number]


@torch.no_grad()
def test_a_temperature_that_does_not_pay_on_slides_that_did_not_fit_it_is_not_used(log_lines):
    model, batch = scaled_model(12.0), a_batch(1, 25)
    assert max(TEMPERATURES, key=lambda t: likelihood(model, [batch], t)) > 1
    rows = np.arange(25)
    sums = TokenSums.of(model, FP32, [batch])
    folds = folds_of_groups(batch.ids, np.random.default_rng(0), 5)
    gain = 0.0
    for fold in range(5):
        place = max(16, int(sums.likelihood[folds != fold].sum(0).argmax()))
        gain += sum(sums.likelihood[i, place] - sums.likelihood[i, 16] for i in rows[folds == fold])
    assert (calibrate(model, FP32, [batch])["temperature"] == 1) == (gain <= 0) == ("it stays 1" in log_lines[0])


@torch.no_grad()
def test_the_calibration_error_is_that_of_tokens_whose_slide_did_not_fit_the_temperature():
    model, batch = scaled_model(4.0), a_batch(1, 9, [5, 2, 4] * 3)
    batch = dataclasses.replace(batch, ids=[f"p{i // 3}_{i}" for i in range(9)])
    found = calibrate(model, FP32, [batch], group_pattern="^p[0-9]")
    parts = {patient: [one for one in batch.split(1) if one.ids[0].startswith(patient)] for patient in ("p0", "p1", "p2")}
    gaps = {name: [0.0] * 10 for name in ("error", "error_before")}
    for patient, own in parts.items():  # a fold each
        others = [one for name, part in parts.items() if name != patient for one in part]
        best = max([t for t in TEMPERATURES if t >= 1], key=lambda t: likelihood(model, others, t))
        for one, (name, temperature) in itertools.product(own, (("error", best), ("error_before", 1.0))):
            tokens = model.image_tokens(one.tile_embeddings, one.tile_mask)
            logits = model.decoder(one.text, image_tokens=tokens, text_mask=one.text_mask)[one.text_mask] / temperature
            for row, label in zip(logits.softmax(-1), one.labels[one.text_mask], strict=True):
                gaps[name][int(row.max() * 10)] += row.max().item() - float(row.argmax() == label)
    for name, of_bins in gaps.items():
        assert found[name] == pytest.approx(sum(map(abs, of_bins)) / 33, abs=1e-5), name
    assert found["error"] < found["error_before"] and found["error_low"] <= found["error"] <= found["error_high"]
    assert "error" not in calibrate(model, FP32, [batch], group_pattern="^p"), "one patient judges nothing"
    sums = TokenSums.of(model, FP32, [batch])
    assert sums.likelihood[:, 16].sum() == pytest.approx(likelihood(model, [batch], 1.0), rel=1e-5)


def test_without_validation_nothing_is_calibrated():
    assert calibrate(tiny_model(), FP32, []) == {"temperature": 1.0, "words": 0}
    for calibration, temperature in (({"temperature": 1.0, "words": 0}, None), (None, None),
                                     ({"temperature": 1.5, "words": 3}, 1.5)):
        assert temperature_of(checkpoint_of(calibration=calibration)) == temperature


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e300, 0.0, -1.0, math.nan, math.inf, "1", None, [1.0]], ids=str)
def test_A03_a_temperature_that_makes_the_confidence_nan_is_refused(temperature):
    with refused("no usable temperature", "another checkpoint"):
        temperature_of(checkpoint_of(calibration={"temperature": temperature, "words": 3}))


@pytest.mark.parametrize("temperature", [0.01, 0.25, 4.0, 100.0])
def test_A03_every_temperature_that_is_let_through_gives_a_finite_confidence(temperature):
    logits = torch.tensor([[1e30, -1e30, 0.0]])
    assert temperature_of(checkpoint_of(calibration={"temperature": temperature, "words": 3})) == temperature
    assert torch.isfinite((logits / temperature).softmax(-1)).all()


@pytest.mark.parametrize("calibration", [[1], {"temperature": math.nan}, {"words": [1]}, {1: 1.0}, {"right": math.inf},
                                         {"rerank": None}], ids=str)
def test_A05_a_checkpoint_with_another_calibration_than_a_run_writes_is_refused(tmp_path, calibration):
    checkpoint = checkpoint_of(tiny_model(), calibration={"temperature": 1.5, "words": 3, "rerank": True})
    checkpoint.save(tmp_path, [BEST])
    assert Checkpoint.load(tmp_path / BEST).calibration == checkpoint.calibration
    dataclasses.replace(checkpoint, calibration=calibration).save(tmp_path, [BEST])
    with refused(BEST, "its calibration is not what a run writes"):
        Checkpoint.load(tmp_path / BEST)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True}, {"max_length": 4}], ids=str)
def test_confidence_is_the_mean_token_probability(options):
    model, batch = tiny_model(), a_batch(1, 4)
    model.eval()
    tokens = model.image_tokens(batch.tile_embeddings, batch.tile_mask)
    options = GenerationOptions(**{"max_length": 9} | options)
    captions = generate(model.decoder, tokens, options, bos_id=1, eos_id=2, pad_id=0)
    found = confidences(model.decoder, tokens, captions, options.max_length, bos_id=1, eos_id=2, pad_id=0, temperature=1.7)
    for row, ids in enumerate(captions):
        full = [1, *ids] + [2] * (len(ids) < options.max_length - 1)  # no end token where the length cut it
        cache = model.decoder.start_decoding(model.decoder.embed_image(image_tokens=tokens[row:row + 1])[1])
        steps = [(model.decoder.decode_step(torch.tensor([[a]]), cache) / 1.7).softmax(-1)[0, b].item()
                 for a, b in itertools.pairwise(full)]
        assert found[row] == pytest.approx(sum(steps) / len(steps), abs=1e-5)


def test_a_finished_run_has_its_calibration_and_its_training_slides_once(tmp_path):
    model, train, validation = tiny_model(), [a_batch(1, 3), a_batch(2, 2)], [a_batch(3, 2)]
    checkpoint_of(model).save(tmp_path, [BEST])
    with torch.no_grad():
        model.decoder.img_queries.add_(1)  # training went on: the index must be of the best weights
    data = data_of(train, validation)
    calibrate_and_index(tmp_path, model, FP32, data, Config(), batches_of(*train, *validation))
    best, index = Checkpoint.load(tmp_path / BEST), read_nearest(tmp_path / BEST, checkpoint_of(model))
    assert best.calibration["words"] == 10 and is_calibrated_and_indexed(tmp_path) and same_weights(index, best)
    fresh = tiny_model().eval()
    expected = embed_slides(fresh.decoder, fresh.image_tokens(train[0].tile_embeddings, train[0].tile_mask))
    assert torch.allclose(index["embeddings"][:3], torch.from_numpy(expected), atol=1e-6)
    assert index["ids"] == train[0].ids + train[1].ids and index["texts"][1] == [TEXTS[1]]
    assert torch.allclose(index["embeddings"].norm(dim=1), torch.ones(5))
    tokens = fresh.image_tokens(train[1].tile_embeddings, train[1].tile_mask)
    assert torch.allclose(index["slide_embeddings"][3:].float(), tokens[:, 0], atol=1e-2)
    assert index["probe"] is None, "five slides show nothing"
    assert index["unusual"] == {"least_tiles": 1} and index["confidence"] is None
    before = (tmp_path / BEST).stat().st_mtime_ns
    calibrate_and_index(tmp_path, model, FP32, data, Config(), lambda samples: pytest.fail("nothing is left to do"))
    old = {name: value for name, value in index.items() if name not in ("unusual", "confidence")}
    assert read_nearest(tmp_path / BEST, checkpoint_of(model)) is not None
    write_pth(tmp_path, [NEAREST], old)
    assert read_nearest(tmp_path / BEST, checkpoint_of(model)).keys() == old.keys(), "an older version's is read"
    assert not is_calibrated_and_indexed(tmp_path), "and --resume auto adds what it lacks"
    write_pth(tmp_path, [NEAREST], index)
    assert (tmp_path / BEST).stat().st_mtime_ns == before
    assert not same_weights(index, checkpoint_of(model, step=2)), "of other weights of the same run"
    assert read_nearest(tmp_path / BEST, checkpoint_of(model, fingerprint="other")) is None


def test_without_the_contrastive_loss_there_are_texts_but_no_embeddings(tmp_path):
    model, train = tiny_model(contrastive_weight=0.0), [a_batch(1, 2)]
    checkpoint_of(model).save(tmp_path, [BEST])
    calibrate_and_index(tmp_path, model, FP32, data_of(train), Config(), batches_of(*train))
    index = read_nearest(tmp_path / BEST, Checkpoint.load(tmp_path / BEST))
    assert index["embeddings"] is None and index["texts"] == [[TEXTS[0]], [TEXTS[1]]]


def a_probe(**changes) -> dict:
    one, two = torch.full((1,), 0.5), torch.ones(2)
    return {"mean": two, "std": two, "weight": torch.ones(2, 1), "frequency": one, "strength": one, "noise": one,
            "token_ids": torch.tensor([4])} | changes


def test_an_index_may_hold_a_probe_and_slide_embeddings(tmp_path):
    index = {"format_version": 1, "fingerprint": "f", "ids": ["a", "b"], "texts": [["x"], ["y"]], "embeddings": None,
             "slide_embeddings": torch.zeros(2, 4).half(), "probe": a_probe(),
             "unusual": {"least_tiles": 2, "prism_median": 0.1, "prism_limit": 0.2},
             "confidence": {"bias": 1.0, "likelihood": 1.0, "probe": 0.0, "auroc": 0.9}}
    write_pth(tmp_path, [NEAREST], index)
    assert read_nearest(tmp_path / BEST, checkpoint_of())["probe"].keys() == a_probe().keys()


@pytest.mark.parametrize("change", [
    {"fingerprint": torch.zeros(3)}, {"step": torch.zeros(3)}, {"step": [1]}, {"ids": ["a"]}, {"ids": [1, 2]}, {"ids": ["a", None]}, {"texts": [["x"], [1]]}, {"texts": "abc"},
    {"embeddings": torch.zeros(2, 4).double()}, {"embeddings": torch.zeros(2, 4).bfloat16()},
    {"embeddings": torch.zeros(2, 4, dtype=torch.int64)}, {"embeddings": torch.ones(2, 4)},
    {"embeddings": torch.tensor([[math.inf] * 4] * 2)}, {"slide_embeddings": torch.zeros(2, 4).bfloat16()},
    {"probe": a_probe(strength=torch.full((1,), math.nan))}, {"probe": a_probe(token_ids=torch.tensor([4.0]))}, {"texts": [["a"], []]}, {"embeddings": torch.zeros(3)},
    {"slide_embeddings": torch.zeros(3, 4)}, {"slide_embeddings": torch.full((2, 4), math.nan)}, {"probe": [1]},
    {"probe": {}}, {"probe": a_probe(weight=torch.ones(3, 1))}, {"probe": a_probe(noise=torch.zeros(1))},
    {"unusual": [1]}, {"unusual": {}}, {"unusual": {"least_tiles": math.nan}}, {"unusual": {"least_tiles": 10**400}}, {"unusual": {"least_tiles": torch.ones(1)}},
    {"unusual": {"least_tiles": 1, "prism_limit": 0.5}}, {"confidence": {"bias": 1.0, "likelihood": 1.0}},
    {"confidence": {"bias": math.inf, "likelihood": 1.0, "probe": 1.0}}, {"confidence": {"bias": 1.0, "likelihood": 1.0, "probe": "1"}},
    {"probe": a_probe(token_ids=torch.ones(1))}, {"probe": a_probe(mean=torch.ones(2).double())}], ids=str)
def test_an_index_that_is_not_one_is_refused(tmp_path, change):
    good = {"format_version": 1, "ids": ["a", "b"], "texts": [["x"], ["y"]], "embeddings": torch.zeros(2, 4)}
    write_pth(tmp_path, [NEAREST], good | change)
    with refused(NEAREST, "not an index"):
        read_nearest(tmp_path / BEST, checkpoint_of())


def test_A05_an_index_without_the_entry_of_its_embeddings_is_refused(tmp_path):
    write_pth(tmp_path, [NEAREST], {"format_version": 1, "ids": ["a"], "texts": [["x"]]})
    with refused(NEAREST, "not an index"):
        read_nearest(tmp_path / BEST, checkpoint_of())


@pytest.mark.parametrize(("change", "fits"), [
    ({}, True), ({"embeddings": None, "slide_embeddings": None, "probe": None}, True),
    ({"embeddings": torch.zeros(2, 5)}, False), ({"slide_embeddings": torch.zeros(2, 3)}, False),
    ({"probe": a_probe(token_ids=torch.tensor([10]))}, False), ({"probe": a_probe(token_ids=torch.tensor([-1]))}, False),
    ({"probe": a_probe(mean=torch.ones(3), std=torch.ones(3), weight=torch.ones(3, 1))}, False)], ids=str)
def test_A05_an_index_of_a_model_of_another_size_is_refused(tmp_path, change, fits):
    index = {"embeddings": torch.zeros(2, 4), "slide_embeddings": torch.zeros(2, 2), "probe": a_probe()} | change
    with contextlib.nullcontext() if fits else refused(NEAREST, "of this model", "delete it"):
        require_fit(index, tmp_path / NEAREST, dim_latents=4, image_dim=2, vocabulary=10)
