"""What `auto` and null become. Truth: the table of docs/training.md."""

from __future__ import annotations

import copy

import pytest

from finetune.config.auto import AUTO_KEYS, SIZE_KEYS, describe, is_open, resolve, value_of
from finetune.config.schema import Config, apply_overrides, from_dict
from tests.helpers.files import refused

SMALL = {"dim": 128, "unimodal_depth": 2, "multimodal_depth": 2, "dim_latents": 128, "num_img_queries": 32, "heads": 4,
         "dim_head": 32}
BASE = {"dim": 256, "unimodal_depth": 4, "multimodal_depth": 4, "dim_latents": 256, "num_img_queries": 64, "heads": 8,
        "dim_head": 32}
LARGE = {"dim": 512, "unimodal_depth": 6, "multimodal_depth": 6, "dim_latents": 512, "num_img_queries": 256, "heads": 8,
         "dim_head": 64}


def made_of(*pairs: str, slides: int = 100) -> Config:
    return resolve(apply_overrides(Config(), pairs), slides)


def sizes_of(config: Config) -> dict[str, int]:
    return {name: value_of(config, f"model.{name}") for name in SIZE_KEYS}


@pytest.mark.parametrize(("slides", "size", "sizes", "epochs", "rate"), [
    (1, "small", SMALL, 50, 1e-3), (123, "small", SMALL, 50, 1e-3), (300, "small", SMALL, 43, 1e-3),
    (991, "small", SMALL, 13, 1e-3), (1999, "small", SMALL, 10, 1e-3), (2000, "base", BASE, 10, 5e-4),
    (100_000, "base", BASE, 10, 5e-4)])
def test_the_number_of_training_slides_gives_all_numbers(slides, size, sizes, epochs, rate):
    config = made_of(slides=slides)
    assert (config.model.size, sizes_of(config)) == (size, sizes)
    assert (config.training.epochs, config.training.learning_rate) == (epochs, rate)


@pytest.mark.parametrize(("slides", "views"), [(1, 8), (150, 8), (151, 7), (300, 4), (600, 2), (601, 1), (5000, 1)])
def test_views_are_for_few_slides(slides, views):
    assert made_of(slides=slides).data.views == views
    assert made_of("data.views=3", slides=slides).data.views == 3


@pytest.mark.parametrize("pair", ["data.latents_cache=null", "prism.freeze=false", "data.max_tiles=9", "model.decoder=prism"])
def test_without_a_cache_to_keep_them_auto_means_no_views(pair):
    assert made_of(pair).data.views == 1


@pytest.mark.parametrize(("predictable", "pairs", "tokens"), [
    (20, [], 4), (19, [], 0), (0, [], 0), (0, ["model.probe_tokens=2"], 2), (500, ["model.probe_tokens=0"], 0),
    (500, ["data.latents_cache=null"], 0), (500, ["prism.freeze=false"], 0), (500, ["data.max_tiles=9"], 0),
    (500, ["model.decoder=prism"], 0), (500, ["model.caption_loss_weight=0"], 0)])
def test_probe_tokens_are_for_texts_that_a_probe_can_predict_from_slides_encoded_once(predictable, pairs, tokens):
    config = resolve(apply_overrides(Config(), pairs), 100, predictable)
    assert config.model.probe_tokens == tokens


def test_nothing_is_open_afterwards_and_the_config_given_is_unchanged():
    before = Config()
    kept = copy.deepcopy(before)
    after = resolve(before, 100)
    assert before == kept and all(is_open(before, key) for key in AUTO_KEYS)
    assert not any(is_open(after, key) for key in AUTO_KEYS)
    assert resolve(after, 10**6) == after, "what has a number keeps it"
    assert from_dict(after.to_dict(), "c.pth") == after


@pytest.mark.parametrize(("pairs", "expected"), [
    (["model.size=large"], LARGE), (["model.size=base"], BASE), (["model.dim=512"], LARGE), (["model.dim=200"], BASE | {"dim": 200}),
    (["model.dim=64"], SMALL | {"dim": 64}), (["model.dim=1024", "model.dim_latents=5120"], LARGE | {"dim": 1024, "dim_latents": 5120}),
    (["model.size=small", "model.dim=512"], SMALL | {"dim": 512}), (["model.heads=3"], SMALL | {"heads": 3})])
def test_a_number_that_is_given_wins_and_the_rest_follows_it(pairs, expected):
    assert sizes_of(made_of(*pairs)) == expected


@pytest.mark.parametrize(("pairs", "rate"), [
    (["model.dim=128"], 1e-3), (["model.dim=129"], 5e-4), (["model.size=base"], 5e-4), (["model.dim=257"], 1e-4),
    (["model.size=large"], 1e-4), (["model.size=large", "training.learning_rate=0.5"], 0.5)])
def test_the_learning_rate_goes_with_the_width(pairs, rate):
    assert made_of(*pairs).training.learning_rate == rate


def test_the_former_keys_of_a_yaml_file_mean_what_they_meant():
    config = made_of("model.dim=512", "model.unimodal_depth=6", "model.multimodal_depth=6", "model.dim_latents=512",
                     "training.epochs=50", "training.learning_rate=1e-4", slides=5000)
    assert sizes_of(config) == LARGE and (config.training.epochs, config.training.learning_rate) == (50, 1e-4)


def test_prisms_decoder_keeps_its_length_and_rate():
    config = made_of("model.decoder=prism", slides=5000)
    assert (config.training.epochs, config.training.learning_rate) == (50, 1e-4)
    assert describe(apply_overrides(Config(), ["model.decoder=prism"]), config, 5000) == (
        "training.epochs auto: 50, training.learning_rate auto: 0.0001, data.views auto: 1, model.probe_tokens auto: 0 for "
        "5000 training slides")


def test_the_log_line_names_what_was_chosen_and_nothing_else():
    before = Config()
    assert describe(before, resolve(before, 123, 20), 123) == (
        "model.size auto: small (dim 128, 2 + 2 layers, 4 heads of 32, 32 queries, dim_latents 128), training.epochs "
        "auto: 50, training.learning_rate auto: 0.001, data.views auto: 8, model.probe_tokens auto: 4 for 123 "
        "training slides")
    given = apply_overrides(Config(), ["model.size=base", "training.epochs=7"])
    assert describe(given, resolve(given, 9), 9).startswith("model.size base (dim 256, ")
    assert "epochs" not in describe(given, resolve(given, 9), 9)
    assert describe(resolve(before, 9), resolve(before, 9), 9) is None


@pytest.mark.parametrize(("key", "bad", "word"), [
    ("model.size", "tiny", "auto, small, base, large"), ("training.epochs", "many", "or auto"),
    ("training.learning_rate", "fast", "or auto"), ("training.epochs", "0", "at least 1")])
def test_another_word_is_refused(key, bad, word):
    with refused(key, word):
        apply_overrides(Config(), [f"{key}={bad}"])


def test_a_checkpoint_from_before_the_sizes_is_what_it_was():
    old = {"model": {"dim": 8, "heads": 1}, "training": {"epochs": 3}}
    config = from_dict(old, "c.pth")
    assert (config.model.size, config.model.dim, config.training.monitor) == ("large", 8, "val_loss")
    assert config.data.views == 1
