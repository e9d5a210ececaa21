"""All of Prism: numbers and keys of the published model, decoding with and without its cache, every form of checkpoint."""

import json
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import errors

from prism import BioGptConfig, Prism, PrismWeightsError, load_prism
from prism.tokenizer import letters_tokenizer
from tests.helpers.prism import play_hub, put
from tests.parity.prism_weights import WHOLE_CONFIG, full_keys, full_text_keys, small_state

PARITY = Path(__file__).parents[1] / "parity"
REFERENCE = {k: torch.from_numpy(v) for k, v in np.load(PARITY / "prism_small.npz").items()}
TILES, MASK, IDS, LATENTS = (REFERENCE[k] for k in ("tile_embeddings", "tile_mask", "input_ids", "image_latents"))
HEAD = "text_decoder.model.output_projection.weight"




@pytest.fixture(scope="module")
def prism(tmp_path_factory) -> Prism:
    prism = Prism.from_pretrained(put(tmp_path_factory.mktemp("prism"), small_state(text=True)))
    prism.tokenizer = letters_tokenizer()
    return prism


def close(a, b, atol=1e-4):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


def test_forward_equals_the_reference(prism):
    out = prism(IDS, TILES, MASK)
    close(out["logits"][..., :512], REFERENCE["logits"])
    for name in ("text_embedding", "image_embedding", "image_latents", "sim"):
        close(out[name], REFERENCE[name])


def test_generated_ids_equal_the_reference(prism):
    assert torch.equal(prism.generate(key_value_states=LATENTS, max_length=12), REFERENCE["greedy_ids"])
    beams = prism.generate(key_value_states=LATENTS, max_length=12, num_beams=3, num_beam_groups=1)
    assert torch.equal(beams, REFERENCE["beam3_ids"])


def test_full_size_has_the_keys_shapes_and_sharing_of_the_published_checkpoint():
    with torch.device("meta"):
        state = Prism().state_dict(keep_vars=True)
    shapes, _ = full_keys()
    assert len(shapes) + len(full_text_keys()) == 1085
    assert {key: tuple(value.shape) for key, value in state.items()} == shapes | full_text_keys()
    assert state[HEAD] is state["text_decoder.model.biogpt.embed_tokens.weight"]


@pytest.mark.parametrize("prompt", [[[2]], [[2, 100, 200], [2, 41000, 5]]])
def test_decoding_with_the_cache_equals_forward_passes_without(prism, prompt):
    ids = torch.tensor(prompt).expand(2, -1)
    written = prism.generate(inputs=ids, key_value_states=LATENTS, max_length=9)
    for _ in range(9 - ids.shape[1]):
        ids = torch.cat([ids, prism.text_decoder(ids, LATENTS)["logits"][:, -1:].argmax(-1)], dim=1)
    assert torch.equal(written, ids)


def test_padding_changes_no_embedding_and_no_logit(prism):
    alone = prism.text_decoder(IDS[1:, :5], LATENTS[1:])
    padded = prism.text_decoder(torch.nn.functional.pad(IDS[1:, :5], (0, 7), value=1), LATENTS[1:])
    close(padded["text_embedding"], alone["text_embedding"], 1e-6)
    close(padded["logits"][:, :5], alone["logits"], 1e-5)


def test_texts_that_end_are_closed_and_padded(prism):
    """With the end token made likely for one slide, its row is prompt, end, padding."""
    end_first = torch.tensor([[1e4], [0.0]]) * torch.nn.functional.one_hot(torch.tensor(2), 42384)
    hook = prism.text_decoder.model.output_projection.register_forward_hook(lambda _, __, out: out + end_first[-len(out):])
    try:
        ids = prism.generate(key_value_states=LATENTS, max_length=6)
    finally:
        hook.remove()
    assert ids[0].tolist() == [2, 2, 1, 1, 1, 1] and torch.equal(ids[1], REFERENCE["greedy_ids"][1, :6])


def test_sampling_is_seeded(prism):
    first, second, other = (prism.generate(key_value_states=LATENTS, max_length=9, do_sample=True, temperature=3.0,
                                           seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_zero_shot_is_a_softmax_over_all_prompts_summed_per_class(prism):
    negative, positive = ["benign", "no tumor"], ["tumor", "cancer here", "a b"]
    image = REFERENCE["image_embedding"]
    ids = [[2, *letters_tokenizer().encode(p), 2] for p in negative + positive]
    width = max(map(len, ids))
    rows = [(row + [1] * (width - len(row)))[: width - 1] for row in ids]  # as published: the last column goes
    embedded = torch.cat([prism.text_decoder(torch.tensor([r]), LATENTS[:1])["text_embedding"] for r in rows])
    want = []
    for picture in image @ prism.img_to_latents.to_latents.weight.T:
        texts = embedded @ prism.text_to_latents.to_latents.weight.T
        odds = (torch.cosine_similarity(texts, picture[None]) * prism.temperature.exp()).exp()
        want.append([float(odds[:2].sum() / odds.sum()), float(odds[2:].sum() / odds.sum())])
    close(prism.zero_shot(image, neg_prompts=negative, pos_prompts=positive), torch.tensor(want), 1e-5)


def test_tokenize_and_untokenize_as_published(prism):
    ids = prism.tokenize(["Squamous mucosa. ", "x"])
    assert ids.shape[0] == 2 and ids[0, 0] == ids[0, -1] == 2 and ids[1].tolist()[2:4] == [2, 1]
    assert prism.untokenize(ids[:1]) == ["</s>Squamous mucosa. </s>"]


@pytest.mark.parametrize(("repeated", "name"), [(True, "model.safetensors"), (False, "model.safetensors"),
                                                (True, "pytorch_model.bin"), (False, "pytorch_model.bin")])
def test_every_form_of_checkpoint_gives_the_same_model(tmp_path, prism, repeated, name):
    folder = put(tmp_path, small_state(repeated, text=True), name)
    loaded = Prism.from_pretrained(folder)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in prism.state_dict().items())
    assert loaded.sha256 == load_prism(folder).sha256 == prism.sha256 and loaded.frozen and not loaded.training
    assert torch.equal(loaded.slide_encoder()(TILES, MASK)["image_latents"], prism(IDS, TILES, MASK)["image_latents"])


def refusal(weights) -> str:
    with pytest.raises(PrismWeightsError) as error:
        Prism.from_pretrained(weights)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_checkpoints_of_less_or_other_are_refused(tmp_path):
    assert "slide encoder alone" in refusal(put(tmp_path / "a", small_state()))
    state = small_state(text=True)
    assert "differ in the file" in refusal(put(tmp_path / "b", {**state, HEAD: state[HEAD] + 1}))
    del state["temperature"]
    assert "1 missing (temperature)" in refusal(put(tmp_path / "c", state))


@pytest.mark.parametrize(("section", "field", "value"), [
    ("biogpt_config", "hidden_act", "relu"), ("biogpt_config", "num_attention_heads", 5),
    ("biogpt_config", "vocab_size", "many"), (None, "dim_latents", 0), (None, "biogpt_context_dim", 47)])
def test_bad_config_is_refused_by_file_and_field(tmp_path, section, field, value):
    folder = put(tmp_path, small_state(text=True))
    config = json.loads(json.dumps(WHOLE_CONFIG))
    (config[section] if section else config)[field] = value
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    message = refusal(folder)
    assert message.startswith(str(folder / "config.json")) and field in message and repr(value) in message


def test_a_vocabulary_with_other_special_ids_is_refused(tmp_path):
    folder = put(tmp_path, small_state(text=True))
    letters_tokenizer().save(folder)
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8")) | {"<pad>": 2, "</s>": 1}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    assert "<pad> and </s> of its vocabulary are 2 and 1" in refusal(folder)


def test_a_model_loaded_in_inference_mode_works_under_autocast():
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        made_there = Prism.from_pretrained("random-tiny").slide_representations(torch.ones(1, 3, 2560))
    with torch.autocast("cpu", torch.bfloat16):
        usual = Prism.from_pretrained("random-tiny").slide_representations(torch.ones(1, 3, 2560))
    assert torch.equal(made_there["image_latents"], usual["image_latents"])


@pytest.mark.parametrize("place", [".", "biogpt"])
def test_the_tokenizer_lies_beside_the_weights(tmp_path, place):
    folder = put(tmp_path, small_state(text=True))
    with pytest.raises(ValueError, match=r"vocab\.json"):
        Prism.from_pretrained(folder).tokenize(["a"])
    (folder / place).mkdir(exist_ok=True)
    letters_tokenizer().save(folder / place)
    loaded = Prism.from_pretrained(folder)
    assert loaded.untokenize(loaded.tokenize(["a b"])) == ["</s>a b </s>"]
    (folder / place / "vocab.json").write_text("[]", encoding="utf-8")
    assert "vocab.json" in refusal(folder)


def test_random_tiny_is_the_same_encoder_and_writes_text():
    prism = Prism.from_pretrained("random-tiny")
    assert prism.sha256 == load_prism("random-tiny").sha256
    slide = prism.slide_representations(torch.randn(2, 5, 2560))
    assert len(prism.untokenize(prism.generate(key_value_states=slide["image_latents"], max_length=20))) == 2


def test_what_cannot_be_generated_is_refused(prism):
    for words, options in [("image latents", {}), ("beams", {"key_value_states": LATENTS, "num_beam_groups": 2}),
                           ("padding", {"key_value_states": LATENTS, "inputs": IDS}),
                           ("64", {"key_value_states": LATENTS, "max_length": 70})]:
        with pytest.raises(ValueError, match=words):
            prism.generate(**options)
    with pytest.raises(ValueError, match="vocab_size"):
        BioGptConfig(vocab_size=2)


def test_bfloat16_autocast_stays_near_float32(prism):
    with torch.autocast("cpu", torch.bfloat16):
        out = prism(IDS, TILES, MASK)
    assert torch.cosine_similarity(out["text_embedding"].float(), REFERENCE["text_embedding"]).min() > 0.999


@pytest.mark.parametrize("there", [True, False])
def test_from_the_hub_the_tokenizer_is_that_of_biogpt(tmp_path, monkeypatch, there):
    folder = put(tmp_path / "snapshots" / "0123abc", small_state(text=True))
    other = tmp_path / "biogpt"
    other.mkdir()
    if there:
        letters_tokenizer().save(other)
    asked = play_hub(monkeypatch, folder)
    download = huggingface_hub.hf_hub_download

    def of_either(repo_id, name, revision=None, local_files_only=False):
        if repo_id != "microsoft/biogpt":
            return download(repo_id, name, revision, local_files_only)
        asked.append((name, revision))
        if not (other / name).exists():
            raise errors.EntryNotFoundError("no")
        return str(other / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", of_either)
    loaded = Prism.from_pretrained("paige-ai/Prism")
    assert loaded.revision == "0123abc" and (loaded.tokenizer is not None) == there
    assert ("vocab.json", "eb0d815e95434dc9e3b78f464e52b899bee7d923") in asked
