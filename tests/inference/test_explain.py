"""Tile maps against finite differences, brute force and the ordinary encoder."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from coca_pytorch import CoCa
from finetune.data.h5_files import Coords
from finetune.data.tokenizer import build_tokenizer
from finetune.inference.explain import (
    attribute_tiles,
    deletion_test,
    log_probs_without,
    phrases,
    token_attention,
    token_texts,
)
from finetune.inference.tile_maps import heatmap_png, lay_out, open_thumbnail, page_data
from finetune.models.captioner import SlideCaptioner
from prism import PerceiverConfig, PrismSlideEncoder
from prism.attention import encode_weighted
from tests.helpers.files import ROOT, refused, write_h5
from tests.helpers.pages import explain

IDS = [1, 5, 7, 4, 9, 2]


@pytest.fixture(scope="module", params=["latents", "embedding"])
def captioner(request):
    torch.manual_seed(0)
    prism = PrismSlideEncoder(PerceiverConfig(latent_seq=5, latent_dim=16, context_dim=12, mhsa_heads=2, perceiver_depth=3,
                                              transformer_depth=2)).double().freeze()
    with torch.no_grad():
        prism.image_resampler.perceiver.latents.mul_(50)  # queries that differ
    coca = CoCa(dim=16, num_tokens=12, unimodal_depth=1, multimodal_depth=2, image_dim=16, num_img_queries=3, dim_head=8, heads=2)
    torch.nn.init.normal_(coca.token_emb.weight)
    model = SlideCaptioner(prism, coca.double(), request.param).eval().requires_grad_(False)
    return SimpleNamespace(model=model)


@pytest.fixture
def tiles():
    return 3 * torch.randn(13, 12, dtype=torch.double, generator=torch.Generator().manual_seed(1))


def test_the_path_that_explains_equals_the_one_that_is_used(captioner, tiles):
    prism = captioner.model.prism
    used = prism.slide_representations(tiles[None])
    embedding, latents, rollout = encode_weighted(prism, tiles, torch.zeros(13, dtype=torch.double))
    torch.testing.assert_close(embedding, used["image_embedding"][0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(latents, used["image_latents"][0], rtol=1e-6, atol=1e-6)
    assert rollout.shape == (6, 13) and (rollout >= 0).all() and (rollout.sum(1) < 1).all()


def test_a_weight_of_zero_is_the_slide_without_the_tile(captioner, tiles):
    log_weights = torch.zeros(13, dtype=torch.double)
    log_weights[[2, 7]] = -torch.inf
    kept = [i for i in range(13) if i not in (2, 7)]
    without = captioner.model.prism.slide_representations(tiles[kept][None])
    _, latents, rollout = encode_weighted(captioner.model.prism, tiles, log_weights)
    torch.testing.assert_close(latents, without["image_latents"][0], rtol=1e-6, atol=1e-6)
    assert (rollout[:, [2, 7]] == 0).all()


def test_the_gradient_is_the_one_of_finite_differences_and_sums_to_zero(captioner, tiles):
    weights = attribute_tiles(captioner, tiles, IDS)
    assert weights.gradient.shape == (4, 13) and weights.gradient.abs().max() > 1e-4

    def log_probs(tile: int, by: float) -> torch.Tensor:
        log_weights = torch.zeros(13, dtype=torch.double)
        log_weights[tile] = by
        embedding, latents, _ = encode_weighted(captioner.model.prism, tiles, log_weights)
        tokens = torch.cat([embedding[None], latents])[: captioner.model.image_tokens_shape[0]]
        text = torch.tensor([IDS[:-1]])
        logits = captioner.model.decoder(text, image_tokens=tokens[None], text_mask=torch.ones_like(text).bool())
        return logits[0].log_softmax(-1)[range(4), IDS[1:-1]]

    for tile in (0, 6, 12):
        slope = (log_probs(tile, 0.02) - log_probs(tile, -0.02)) / 0.04  # CoCa computes its softmax in float32
        torch.testing.assert_close(weights.gradient[:, tile].float(), slope.float(), rtol=5e-3, atol=1e-4)
    torch.testing.assert_close(weights.gradient.sum(1), torch.zeros(4, dtype=torch.double), rtol=0, atol=1e-6)
    torch.testing.assert_close(weights.log_probs.double(), log_probs(0, 0.0), rtol=1e-5, atol=1e-5)


def test_attention_rows_are_shares_and_what_coca_attends_to_is_its_softmax(captioner, tiles):
    weights = attribute_tiles(captioner, tiles, IDS)
    torch.testing.assert_close(weights.attention.sum(1), torch.ones(4, dtype=torch.double))
    coca, tokens = captioner.model.decoder, weights.image_tokens
    _, seen = token_attention(coca, tokens, IDS)
    pool, norm = coca.img_attn_pool, torch.nn.functional.layer_norm
    query = (norm(coca.img_queries, (16,)) * pool.norm.gamma) @ pool.to_q.weight.T
    key = (norm(tokens, (16,)) * pool.context_norm.gamma) @ pool.to_kv.weight[:8].T
    by_hand = sum(torch.softmax(query[:, 8 * h:8 * h + 8] @ key.T / 8**0.5, -1) for h in range(2)) / 2
    assert seen.shape == (5, len(tokens))
    # each token's row is a mixture of the rows of the pooling queries 1 ..
    mixture = torch.linalg.lstsq(by_hand[1:].T, seen.T).solution
    torch.testing.assert_close(by_hand[1:].T @ mixture, seen.T, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(seen.sum(1), torch.ones(5, dtype=torch.double))


def test_probabilities_without_tiles_are_those_of_the_slide_that_never_had_them(captioner, tiles):
    kept = torch.ones(2, 13, dtype=torch.bool)
    kept[1, [0, 4, 11]] = False
    found = log_probs_without(captioner, tiles, kept, IDS)
    for row, mask in zip(found, kept, strict=True):
        tokens = captioner.model.image_tokens(tiles[mask][None], torch.ones(1, int(mask.sum()), dtype=torch.bool))
        torch.testing.assert_close(row, token_attention(captioner.model.decoder, tokens[0], IDS)[0][:-1])


def test_the_deletion_test_removes_the_tiles_that_weigh_most(captioner, tiles):
    weights = attribute_tiles(captioner, tiles, IDS)
    result, = deletion_test(captioner, tiles, IDS, [range(1, 3)], weights)
    assert result["removed"] == 1
    top = weights.gradient[1:3].sum(0).argmax()
    kept = torch.ones(1, 13, dtype=torch.bool)
    kept[0, top] = False
    without = log_probs_without(captioner, tiles, kept, IDS)[0, 1:3].sum().exp().item()
    assert result["without_top"] == pytest.approx(without) and result["holds"] == (without < result["without_random"])
    single, = deletion_test(captioner, tiles[:1], IDS, [range(4)], attribute_tiles(captioner, tiles[:1], IDS))
    assert single["holds"] is None


def test_a_phrase_whose_probability_is_no_float_any_more_is_still_tested(captioner, tiles):
    weights = attribute_tiles(captioner, tiles, [1, *[5, 7, 4, 9] * 100, 2])
    result, = deletion_test(captioner, tiles, [1, *[5, 7, 4, 9] * 100, 2], [range(400)], weights)
    assert result["without_top"] == result["without_random"] == 0 and result["holds"]


def test_phrases_end_at_punctuation_of_both_languages():
    assert phrases(list("胃腺癌，高分化。")) == [range(3), range(4, 7)]
    assert phrases(["invasive", " carcinoma", ",", " grade", " 2"]) == [range(2), range(3, 5)]
    assert phrases(["。", "，"]) == []
    assert phrases(["胃", "癌，", "", "分化。", "好"]) == [range(2), range(2, 4), range(4, 5)], "marks that end a longer token"


@pytest.mark.parametrize("kind", ["vocab", "bpe"])
def test_the_texts_of_the_tokens_are_the_caption_and_whole_characters(kind):
    tokenizer = build_tokenizer(kind, ["胃腺癌，grade 2。"], False)
    for text in ("胃腺癌，grade 2。", "肝癌 é🙂。"):
        ids = tokenizer.encode(text)
        texts = token_texts(tokenizer, ids)
        assert len(texts) == len(ids) and "".join(texts) == tokenizer.decode(ids)
        assert not any("\ufffd" in piece for piece in texts) or kind == "vocab"
    assert kind == "vocab" or "" in texts, "bytes of one character"


# --- pictures ---------------------------------------------------------------------------------------------------------

XY = Coords(np.array([[100.0, 40], [196, 40], [388, 232]]), tile_size=96)


def test_tiles_lie_where_their_coordinates_say():
    assert lay_out(3, XY).cells.tolist() == [[0, 0], [1, 0], [3, 2]] and lay_out(3, XY).shape == (4, 3)
    square = lay_out(5, None)
    assert square.cells.tolist() == [[0, 0], [1, 0], [2, 0], [0, 1], [1, 1]] and not square.known


def test_coordinates_on_no_grid_make_no_huge_picture():
    far = Coords(np.array([[0.0, 0], [0.001, 0], [1e9, 5]]))
    assert max(lay_out(3, far).shape) <= 4096
    assert len(heatmap_png(lay_out(3, far), [1, 0, 0])) < 200_000


def test_a_heatmap_is_hot_where_the_weight_is():
    image = Image.open(io.BytesIO(heatmap_png(lay_out(3, XY), [0.25, 0.0, 0.75])))
    cell = image.width // 4
    color = {name: image.getpixel((x * cell + cell // 2, y * cell + cell // 2)) for name, (x, y) in
             {"half": (0, 0), "none": (1, 0), "hot": (3, 2), "blank": (2, 1)}.items()}
    assert color["hot"] == (214, 73, 20) and color["none"] == (222, 226, 230) and color["blank"] == (255, 255, 255)
    assert color["hot"][2] < color["half"][2] < color["none"][2]


def test_over_a_thumbnail_the_heat_lies_at_the_slides_scale(tmp_path, log_lines):
    path = tmp_path / "t.png"
    Image.new("RGB", (100, 60), (0, 0, 200)).save(path)
    layout = lay_out(3, XY, (100, 60), 10.0)  # a tile is 9.6 pixels
    image = Image.open(io.BytesIO(heatmap_png(layout, [0.0, 0.0, 1.0], open_thumbnail(path))))
    assert image.size == (100, 60) and image.getpixel((43, 28))[0] > 150 and image.getpixel((13, 8)) == (0, 0, 200)
    assert lay_out(3, XY, (100, 60)).thumbnail_box[0] == pytest.approx(100 / 5.4667, rel=1e-3)
    assert "--thumbnail_scale" in log_lines[-1]


@pytest.mark.parametrize("scale", [0.01, 3.5])
def test_a_scale_at_which_tiles_lie_outside_the_thumbnail_is_refused(scale):
    with refused("--thumbnail_scale", "outside the thumbnail of 100x60"):
        lay_out(3, XY, (100, 60), scale)


@pytest.mark.parametrize(("name", "content", "words"), [("a.png", None, "not found"), ("a.png", b"GIF89a", "not a usable PNG"), ("a.jpg", b"\xff\xd8\xff", "not a usable PNG")])
def test_an_unusable_thumbnail_is_refused(tmp_path, name, content, words):
    if content:
        (tmp_path / name).write_bytes(content)
    with refused(name, words):
        open_thumbnail(tmp_path / name)


def test_the_page_of_a_large_slide_has_few_cells_and_loses_no_weight():
    side = 100
    xy = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2) * 256.0
    weights = np.zeros(side * side)
    weights[77 * side + 33] = 1.0
    explanation = {"tokens": [{"text": "a", "probability": 1.0, "weights": weights.tolist()}], "phrases": []}
    data = page_data(explanation, lay_out(side * side, Coords(xy)))
    heat = data["tokens"][0]["heat"]
    assert len(data["cells"]) == len(heat) <= 4096 and sum(heat) == 99
    assert data["cells"][heat.index(99)] == [33 // 2, 77 // 2]
    assert data["tokens"][0]["most"] == 1 and (data["origin"], data["step"], data["unit"]) == ((0, 0), 512, "px")


def test_a_cell_has_the_coordinates_of_its_tile():
    coords = Coords(np.array([[100.0, 40], [196, 40], [388, 232]]), unit="um", tile_size=96)
    explanation = {"tokens": [{"text": "a", "probability": 1.0, "weights": [0.2, 0.3, 0.5]}], "phrases": []}
    data = page_data(explanation, lay_out(3, coords))
    places = {tuple(data["origin"][axis] + cell[axis] * data["step"] for axis in (0, 1)) for cell in data["cells"]}
    assert places == {(100, 40), (196, 40), (388, 232)} and data["unit"] == "um" and data["tokens"][0]["most"] == 0.5


# --- the command ------------------------------------------------------------------------------------------------------



def test_the_command_writes_weights_pictures_and_a_page(run_with_coords):
    Image.new("RGB", (90, 80)).save(run_with_coords / "thumb.jpg")
    done = subprocess.run([sys.executable, "inference.py", "--checkpoint", run_with_coords / "run" / "best_model.pth", "--embeddings_file",
                           run_with_coords / "embeddings" / "s1.h5", "--explain", run_with_coords / "out", "--thumbnail", run_with_coords / "thumb.jpg"], cwd=ROOT,
                          capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    found = json.loads((run_with_coords / "out" / "explanation.json").read_text(encoding="utf-8"))
    assert found["id"] == "s1" and found["coordinates"][7] == [1024, 512] and found["unit"] == "px"
    assert "".join(t["text"] for t in found["tokens"]) == found["caption"] and f"caption: {found['caption']}" in done.stdout
    for row in [*found["tokens"], *found["phrases"]]:
        assert len(row["weights"]) == 20 and min(row["weights"]) >= 0 and sum(row["weights"]) == pytest.approx(1)
    for number, phrase in enumerate(found["phrases"], 1):
        assert phrase["deletion_test"]["removed"] == 2 and phrase["text"] in found["caption"] and phrase["text"] in done.stdout
        assert Image.open(run_with_coords / "out" / f"phrase_{number}.png").size == (90, 80)
    assert "explanation.html" in done.stdout and (run_with_coords / "out" / "explanation.html").stat().st_size < 200_000


def test_the_page_of_an_unusual_slide_says_so_first(run_with_coords, capsys):
    write_h5(run_with_coords / "equal.h5", np.ones((30, 2560), "f4"))
    explain(run_with_coords, "--embeddings_file", run_with_coords / "equal.h5", "--explain", run_with_coords / "equal")
    found = json.loads((run_with_coords / "equal" / "explanation.json").read_text(encoding="utf-8"))
    assert found["unusual"] is True and found["confidence"] == 0 and "all its tiles are equal" in found["unusual_reason"]
    assert f"\tunusual: {found['unusual_reason']}" in capsys.readouterr().out
    page = (run_with_coords / "equal" / "explanation.html").read_text(encoding="utf-8")
    assert "异常切片：所有图块都相同" in page and "Unusual slide: all its tiles are equal" in page


@pytest.mark.parametrize(("args", "words"), [(["--embeddings_dir", "embeddings"], ["--explain", "is for one slide"]), (["--embeddings_file", "x.h5", "--thumbnail", "no.png"], ["no.png: not found"]),
                                             (["--embeddings_file", "x.h5"], ["x.h5: "]), (["--embeddings_file", "x.h5", "--thumbnail_scale", "-1"], ["--thumbnail_scale: thumbnail_scale is -1.0"])])
def test_what_cannot_be_explained_is_one_line(run_with_coords, args, words):
    with refused(*words):
        explain(run_with_coords, *args, "--explain", run_with_coords / "bad")
