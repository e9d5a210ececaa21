"""A pretrained language model as decoder: its numbers against transformers' own, what trains, and the traps."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
import torch.nn.functional as F

from finetune.common.distributed import World
from finetune.config.auto import describe, resolve
from finetune.config.schema import Config
from finetune.models import language_model
from finetune.models.build import build_model, check_architecture, decoder_tokenizer, describe_prism
from finetune.models.captioner import encoded
from finetune.models.generation import confidences, generate
from finetune.models.rerank import log_probabilities
from finetune.training.objective import Objective
from finetune.training.optim import build_optimizer, describe_rates, pretrained_factor
from prism import GenerationOptions
from tests.helpers.decoders import train_steps
from tests.helpers.files import refused
from tests.helpers.language_models import (
    SIZES,
    TEXTS,
    batch_for,
    config_for,
    make_language_model,
    special_of,
    tiny_captioner,
)
from tests.helpers.training import gradients, objective_of

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A function from an architecture to the folder of a tiny model, made once."""
    root, made = tmp_path_factory.mktemp("lms"), {}

    def folder(kind: str):
        return made.setdefault(kind, None) or made.update({kind: make_language_model(root / kind, kind)}) or made[kind]

    return folder


@pytest.fixture
def qwen(folders):
    return tiny_captioner(folders("qwen2"))


def end_more_often(decoder, by: float) -> torch.nn.Module:
    """Move the row of the end token, and return a copy of the language model that has it moved in its head too."""
    head = decoder.lm.get_output_embeddings()
    with torch.no_grad():
        decoder.end_output.copy_(head.weight[decoder.end_id] * by)
        changed = copy.deepcopy(decoder.lm)
        changed.get_output_embeddings().weight[decoder.end_id] = decoder.end_output
    return changed


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", sorted(SIZES))
def test_captions_are_those_of_transformers_own_generate_token_for_token(folders, kind, beams):
    model, tokenizer = tiny_captioner(folders(kind))
    batch, decoder = batch_for(tokenizer, TEXTS * 2), model.decoder
    tokens = model.encode(batch)
    bos = decoder.lm.get_input_embeddings()(torch.full((6, 1), tokenizer.bos_id))
    embeds = torch.cat([bos, decoder.embed_image(image_tokens=tokens)[1]], dim=1)
    lengths = set()
    for factor in (1.0, 2.5, 4.0, -4.0):
        reference = end_more_often(decoder, factor)
        theirs = reference.generate(
            inputs_embeds=embeds, attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long), max_new_tokens=19,
            num_beams=beams, do_sample=False, eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id,
            suppress_tokens=list(decoder.never_generated))
        ours = generate(decoder, tokens, GenerationOptions(max_length=20, num_beams=beams), **special_of(tokenizer))
        for caption, row in zip(ours, theirs.tolist(), strict=True):
            assert caption == (row[:row.index(tokenizer.eos_id)] if tokenizer.eos_id in row else row)
        lengths |= {len(caption) for caption in ours}
    assert 19 in lengths and len(lengths) > 1, "some must end by themselves and some be cut at max_length"


@pytest.mark.parametrize("kind", sorted(SIZES))
def test_the_caption_loss_is_that_of_transformers_on_the_target_positions(folders, kind):
    model, tokenizer = tiny_captioner(folders(kind))
    batch, decoder = batch_for(tokenizer), model.decoder
    out = model(batch, logits=True)
    embeds = decoder._join(batch.text, decoder.embed_image(image_tokens=model.encode(batch))[1])
    labels = torch.full(embeds.shape[:2], -100)
    labels[:, -batch.labels.shape[1]:] = batch.labels.masked_fill(~batch.text_mask, -100)
    logits = decoder.lm(inputs_embeds=embeds).logits
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
    torch.testing.assert_close(out.caption_loss, expected, rtol=1e-5, atol=1e-4)
    assert out.num_tokens == int(batch.text_mask.sum())
    torch.testing.assert_close(out.logits[batch.text_mask], logits[:, 4:][batch.text_mask], rtol=1e-4, atol=1e-4)


def test_the_text_vector_is_the_state_of_the_end_token_after_the_text_alone(qwen):
    model, tokenizer = qwen
    decoder, ids = model.decoder, [tokenizer.bos_id, *tokenizer.encode(TEXTS[0]), tokenizer.eos_id]
    with torch.no_grad():
        hidden = decoder.lm.base_model(input_ids=torch.tensor([ids])).last_hidden_state[:, -1]
        text = torch.tensor([ids[:-1]])
        torch.testing.assert_close(decoder.embed_text(text, torch.ones_like(text, dtype=torch.bool))[0], hidden)


# --- padding, cache, memory ------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", sorted(SIZES))
def test_nothing_of_a_slide_depends_on_the_padding_or_the_others_of_its_batch(folders, kind):
    model, tokenizer = tiny_captioner(folders(kind))
    assert tokenizer.pad_id == tokenizer.eos_id == tokenizer.bos_id, "the case that a mask by id gets wrong"
    decoder, batch = model.decoder, batch_for(tokenizer)
    tokens, special = model.encode(batch), special_of(tokenizer)
    end_more_often(decoder, 2.5)
    captions = {n: generate(decoder, tokens, GenerationOptions(max_length=15, num_beams=n), **special) for n in (1, 2)}
    sure = confidences(decoder, tokens, captions[1], 15, **special)
    whole, summed = model(batch), 0.0
    for row, one in enumerate(batch.split(1)):
        length = int(one.text_mask.sum())
        one.text, one.labels, one.text_mask = (t[:, :length] for t in (one.text, one.labels, one.text_mask))
        alone = model(one)
        summed += float(alone.caption_loss)
        torch.testing.assert_close(alone.text_latents[0], whole.text_latents[row], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(alone.image_latents[0], whole.image_latents[row], atol=1e-5, rtol=1e-4)
        for beams, of_batch in captions.items():
            options = GenerationOptions(max_length=15, num_beams=beams)
            assert generate(decoder, tokens[row:row + 1], options, **special) == [of_batch[row]]
        assert confidences(decoder, tokens[row:row + 1], [captions[1][row]], 15, **special)[0] == pytest.approx(sure[row], rel=1e-4)
    assert summed == pytest.approx(float(whole.caption_loss), rel=1e-5)


@pytest.mark.parametrize("kind", sorted(SIZES))
def test_the_cache_is_reordered_and_repeated_as_beams_are(folders, kind):
    model, tokenizer = tiny_captioner(folders(kind))
    decoder, batch = model.decoder, batch_for(tokenizer)
    tokens = model.encode(batch)
    prefix = decoder.embed_image(image_tokens=tokens)[1]
    cache = decoder.start_decoding(prefix)
    decoder.decode_step(batch.text[:, :2], cache)
    cache.repeat(2)
    rows = torch.tensor([5, 0, 3, 3])
    cache.reorder(rows)
    then = decoder.decode_step(torch.tensor([[7], [8], [9], [10]]), cache)
    slides = rows // 2
    text = torch.cat([batch.text[slides, :2], torch.tensor([[7], [8], [9], [10]])], dim=1)
    whole = decoder(text, image_tokens=tokens[slides], text_mask=torch.ones_like(text, dtype=torch.bool))
    torch.testing.assert_close(then, whole[:, -1], atol=1e-4, rtol=1e-4)


def test_no_logits_of_prefix_or_padding_are_made_and_pieces_change_nothing(qwen, monkeypatch):
    model, tokenizer = qwen
    batch, seen = batch_for(tokenizer), []
    model.decoder.lm.get_output_embeddings().register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))
    loss = model(batch).caption_loss
    assert seen == [(int(batch.text_mask.sum()), 32)]
    loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    monkeypatch.setattr(language_model, "_CHUNK", 4 * 305)  # four positions at a time
    seen.clear()
    pieces = model(batch).caption_loss
    assert max(shape[0] for shape in seen) == 4
    pieces.backward()
    torch.testing.assert_close(pieces, loss)
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(p.grad, expected[name], atol=1e-5, rtol=1e-4)


def test_confidence_and_reranking_hold_few_logits_at_a_time_and_equal_those_of_all(qwen, monkeypatch):
    model, tokenizer = qwen
    decoder, batch = model.decoder, batch_for(tokenizer)
    captions = [tokenizer.encode(text) for text in TEXTS]
    tokens = model.encode(batch)
    with torch.no_grad():
        logits = decoder(batch.text, image_tokens=tokens, text_mask=batch.text_mask)  # of all at once
    chosen = logits.gather(2, batch.labels.clamp(min=0).unsqueeze(2)).squeeze(2)
    expected = [(chosen - logits.logsumexp(-1))[i][batch.text_mask[i]] for i in range(len(TEXTS))]
    seen = []
    handle = decoder.lm.get_output_embeddings().register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))
    monkeypatch.setattr(language_model, "_CHUNK", 4 * 305)  # four positions at a time
    found = confidences(decoder, tokens, captions, 64, **special_of(tokenizer))
    texts = [[tokenizer.bos_id, *caption, tokenizer.eos_id] for caption in captions]
    likelihood = log_probabilities(decoder, tokens[1:2], texts, tokenizer.pad_id)
    handle.remove()
    assert {shape[0] for shape in seen[:-1]} <= {1, 2, 3, 4} and max(shape[0] for shape in seen) == 4
    assert found == pytest.approx([float(row.exp().mean()) for row in expected], rel=1e-4)
    assert likelihood[1] == pytest.approx(float(expected[1].sum()), rel=1e-4)
    assert len(set(likelihood.round(3))) == len(TEXTS)


def test_micro_batches_and_checkpointing_give_the_gradients_of_one_batch(folders):
    model, tokenizer = tiny_captioner(folders("qwen2"), lora_rank=2)
    batch = batch_for(tokenizer, TEXTS * 2)
    objective = Objective(model.train(), objective_of(World()).precision, World())
    losses, whole = gradients(objective, [batch])
    for micro_batches, checkpointing in ((batch.split(2), False), ([batch], True), (batch.split(4), True)):
        model.decoder.grad_checkpointing = checkpointing
        again, parts = gradients(objective, micro_batches)
        assert again["caption_loss"] == pytest.approx(losses["caption_loss"], rel=1e-5)
        assert again["contrastive_loss"] == pytest.approx(losses["contrastive_loss"], rel=1e-5)
        assert parts.keys() == whole.keys()
        for name, gradient in parts.items():
            torch.testing.assert_close(gradient, whole[name], atol=1e-5, rtol=1e-3)


def test_without_the_contrastive_loss_its_pass_costs_nothing(folders):
    model, tokenizer = tiny_captioner(folders("qwen2"), contrastive_loss_weight=0)
    calls = []
    model.decoder.lm.base_model.register_forward_hook(lambda *_: calls.append(1))
    out = model(batch_for(tokenizer))
    assert out.text_latents is None and len(calls) == 1


# --- what trains -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("settings", [{}, {"lora_rank": 2}, {"freeze_decoder": "false"}])
def test_a_step_moves_what_it_should_and_a_checkpoint_holds_that_alone(folders, settings):
    model, tokenizer = tiny_captioner(folders("qwen2"), **settings)
    before = {k: v.clone() for k, v in model.decoder.state_dict().items()}
    train_steps(model, batch_for(tokenizer), steps=2, lr=1e-2)  # lora_A moves from the second step on
    moved = {k for k, v in model.decoder.state_dict().items() if not torch.equal(v, before[k])}
    ours = {k for k in before if not k.startswith("lm.") and "beta" not in k}
    of_lm = {k for k in before if k.startswith("lm.")}
    expected = {(): set(), ("lora_rank",): {k for k in of_lm if "lora" in k}, ("freeze_decoder",): of_lm}[tuple(settings)]
    assert moved == ours | expected and (expected or not settings)
    assert {k.removeprefix("coca.") for k in model.saved_state()} == moved | {k for k in before if "beta" in k}
    assert not any("lm_head" in k or "embed_tokens" in k for k in expected) or "freeze_decoder" in settings
    assert all(p.dtype == torch.float32 for p in model.trained_parameters())


@pytest.mark.parametrize("settings", [{}, {"lora_rank": 2}, {"freeze_decoder": "false"}])
def test_the_saved_part_completes_a_fresh_model(folders, settings):
    config = config_for(folders("qwen2"), **settings)
    tokenizer = decoder_tokenizer(config)
    model, fresh = build_model(config, tokenizer), build_model(config, tokenizer)
    with torch.no_grad():
        for parameter in model.trained_parameters():
            parameter.add_(0.05)
    state = {k: v.clone() for k, v in model.saved_state().items()}
    check_architecture(config, tokenizer, describe_prism(model), state, "c.pth")
    fresh.load_saved_state(state, "c.pth")
    batch = batch_for(tokenizer)
    assert torch.equal(fresh(batch).caption_loss, model(batch).caption_loss)
    del state["coca.end_output"]
    with refused("c.pth", "not of the model"):
        check_architecture(config, tokenizer, describe_prism(model), state, "c.pth")


def test_adapters_begin_as_nothing_and_need_peft(folders, monkeypatch):
    (plain, tokenizer), (adapted, _) = tiny_captioner(folders("gpt2")), tiny_captioner(folders("gpt2"), lora_rank=4)
    batch = batch_for(tokenizer)
    torch.testing.assert_close(adapted(batch).caption_loss, plain(batch).caption_loss)
    monkeypatch.setitem(sys.modules, "peft", None)
    with refused("model.lora_rank", "pip install peft"):
        tiny_captioner(folders("gpt2"), lora_rank=4)


def test_a_frozen_body_in_bf16_gives_nearly_the_same_loss_and_trains_in_float32(folders):
    model, tokenizer = tiny_captioner(folders("qwen2"), lora_rank=2)
    batch = batch_for(tokenizer)
    exact = float(model(batch).caption_loss)
    model.decoder.cast_frozen(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(batch)
    assert out.caption_loss.dtype == torch.float32 and float(out.caption_loss) == pytest.approx(exact, rel=0.03)
    out.caption_loss.backward()
    assert all(p.dtype == torch.float32 for p in model.trained_parameters())
    assert {p.dtype for p in model.decoder.lm.parameters() if not p.requires_grad} == {torch.bfloat16}


def test_each_vector_of_the_prefix_begins_at_the_size_of_a_token_embedding(qwen):
    model, tokenizer = qwen
    prefix = model.decoder.embed_image(image_tokens=model.encode(batch_for(tokenizer)))[1]
    size = model.decoder.lm.get_input_embeddings().weight.square().mean().sqrt()
    torch.testing.assert_close(prefix.square().mean(-1).sqrt(), size.expand(3, 4), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(prefix[0, 0], prefix[0, 1], atol=0.1), "its vectors differ"


def test_prefix_and_adapters_have_their_own_learning_rates(folders):
    for settings, rate in (({}, 1.0), ({"lora_rank": 2}, 2e-4), ({"freeze_decoder": "false"}, 2e-5)):
        config = config_for(folders("qwen2"), **settings)
        config.training.learning_rate = 1e-3
        said = describe_rates(config)
        assert f" {rate:g} for the " in said if settings else said is None
        model = build_model(config, decoder_tokenizer(config))
        optimizer = build_optimizer(model.named_trained_parameters(), 1e-3, 0.01, pretrained_factor(config))
        of_lm = {id(p) for p in model.decoder.lm.parameters()}
        for group in optimizer.param_groups:
            is_lm = {id(p) in of_lm for p in group["params"]}
            assert len(is_lm) == 1
            assert group.get("lr_factor", 1.0) * 1e-3 == pytest.approx(rate if is_lm == {True} else 1e-3)
        assert len(optimizer.param_groups) == 2 + len(settings) + ("freeze_decoder" in settings)
    config.training.decoder_learning_rate = 5e-4
    assert pretrained_factor(config) == pytest.approx(0.5) and pretrained_factor(Config()) == 1


# --- the end of a text -----------------------------------------------------------------------------------------------

def test_it_learns_texts_and_to_end_them(folders):
    model, tokenizer = tiny_captioner(folders("qwen2"), lora_rank=4)
    batch = encoded(model, batch_for(tokenizer))
    before = {name: getattr(model.decoder, name).clone() for name in ("end_input", "end_output")}
    losses = train_steps(model, batch, steps=120, lr=1e-2)
    assert losses[-1].caption_loss < 0.1 * losses[0].caption_loss
    assert losses[-1].contrastive_loss < 0.5 * losses[0].contrastive_loss
    captions = generate(model.decoder, model.encode(batch), GenerationOptions(max_length=64), **special_of(tokenizer))
    assert [tokenizer.decode(ids) for ids in captions] == TEXTS
    assert not any(torch.equal(getattr(model.decoder, name), old) for name, old in before.items())


def test_captions_never_contain_chat_markers_or_rows_without_a_token(qwen):
    model, tokenizer = qwen
    markers = [tokenizer._tokenizer.token_to_id(text) for text in ("<|im_start|>", "<|im_end|>")]
    rows = model.decoder.lm.get_input_embeddings().num_embeddings
    assert {*markers, *range(len(tokenizer), rows)} <= set(model.decoder.never_generated) and rows - len(tokenizer) == 5
    assert tokenizer.eos_id not in model.decoder.never_generated
    with torch.no_grad():  # tied: the best token is now a marker wherever it may be
        model.decoder.lm.get_output_embeddings().weight[[*markers, rows - 1]] *= 50
    options = GenerationOptions(max_length=12, do_sample=True, temperature=3.0)
    for ids in generate(model.decoder, model.encode(batch_for(tokenizer)), options, **special_of(tokenizer)):
        assert not {*markers, rows - 1} & set(ids)


# --- sizes, settings ------------------------------------------------------------------------------------

def test_auto_chooses_a_prefix_and_says_so():
    config = Config()
    config.set("model.decoder", "hf:Qwen/Qwen2.5-0.5B", "test")
    for slides, epochs in ((100, 20), (1000, 13), (5000, 10)):
        chosen = resolve(config, slides)
        assert chosen.training.epochs == epochs
        assert (chosen.model.num_img_queries, chosen.model.dim, chosen.training.learning_rate) == (32, 512, 1e-3)
        assert "a prefix of 32 vectors" in describe(config, chosen, slides)
    config.model.num_img_queries = 64
    assert resolve(config, 100).model.num_img_queries == 64


@pytest.mark.parametrize(("pairs", "words"), [
    ({"model.lora_rank": "8", "model.freeze_decoder": "false"}, ["model.lora_rank", "freeze_decoder"]),
    ({"training.precision": "fp16"}, ["training.precision", "bf16"]),
    ({"data.tokenizer": "bpe"}, ["data.tokenizer", "its own tokenizer"]),
    ({"model.decoder": "coca", "model.freeze_decoder": "false"}, ["model.freeze_decoder", "coca"]),
    ({"model.decoder": "prism", "training.decoder_learning_rate": "1e-4"}, ["training.decoder_learning_rate", "prism"])])
def test_settings_that_contradict_each_other_are_refused(pairs, words):
    config = Config()
    for key, value in ({"data.embeddings_dir": "x", "data.labels_file": "x", "model.decoder": "hf:x"} | pairs).items():
        config.set(key, value, "test")
    with refused("config.yaml", *words):
        config.check("config.yaml")


@pytest.mark.parametrize("name", ["hf:", "hf", "qwen", "coca:x"])
def test_a_decoder_that_does_not_exist_is_refused(name):
    with refused("c.yaml", "model.decoder", "hf:NAME_OR_FOLDER"):
        Config().set("model.decoder", name, "c.yaml")


def test_compile_and_too_long_texts_are_refused(folders):
    config = config_for(folders("gpt2"))
    config.data.max_seq_len = 253
    with refused("data.max_seq_len", 253, "252 positions"):
        build_model(config, decoder_tokenizer(config))
    config.data.max_seq_len, config.training.compile = 252, True
    with refused("training.compile", "no support"):
        build_model(config, decoder_tokenizer(config))
