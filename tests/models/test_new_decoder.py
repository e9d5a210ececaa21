"""The worked example of the guide: a custom GRU decoder, from its module to training, captions and scores."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from coca_pytorch import CoCaOutputs, ContrastiveCaptioner, EmbedToLatents, caption_loss, equal_text_groups
from finetune.config.schema import Config
from finetune.models import build
from finetune.models.embeddings import embed_slides, embed_texts
from finetune.models.generation import confidences, generate
from prism import GenerationOptions
from tests.helpers.decoders import LETTERS, SPECIAL, batch_of, train_steps


# guide: begin
class GruCache:
    """State of the GRU (1, B, D) between two tokens."""

    def __init__(self, state: Tensor) -> None:
        self.state = state

    def repeat(self, n: int) -> None:
        self.state = self.state.repeat_interleave(n, dim=1)

    def reorder(self, rows: Tensor) -> None:
        self.state = self.state[:, rows]


class GruDecoder(ContrastiveCaptioner):
    """A GRU whose first state is the mean image token."""

    def __init__(self, config: Config, vocabulary: int) -> None:
        model = config.model
        super().__init__(model.caption_loss_weight, model.contrastive_loss_weight, config.training.label_smoothing)
        self.embedding = nn.Embedding(vocabulary, model.dim)
        self.image = nn.Linear(model.image_dim, model.dim)
        self.gru = nn.GRU(model.dim, model.dim, batch_first=True)
        self.text_to_latents = EmbedToLatents(model.dim, model.dim_latents)
        self.img_to_latents = EmbedToLatents(model.dim, model.dim_latents)
        self.init_temperature(model.contrastive)

    def embed_image(self, *, image_tokens: Tensor) -> tuple[Tensor, Tensor]:
        embeds = self.image(image_tokens.mean(1)).tanh()  # (B, D): for the contrastive loss, and the context of the text
        return embeds, embeds

    def embed_text(self, text: Tensor, text_mask: Tensor) -> tuple[Tensor, Tensor]:
        states, _ = self.gru(self.embedding(text))  # without the image
        last = text_mask.sum(1) - 1
        return states[torch.arange(len(text)), last], states

    def hidden(self, text: Tensor, image_tokens: Tensor) -> Tensor:
        context = self.embed_image(image_tokens=image_tokens)[1]
        return self.gru(self.embedding(text), context.unsqueeze(0))[0]  # (B, T, D)

    def forward(self, text: Tensor, *, image_tokens: Tensor, text_mask: Tensor) -> Tensor:
        return self.hidden(text, image_tokens) @ self.embedding.weight.T

    def outputs(self, text: Tensor, labels: Tensor, *, image_tokens: Tensor, text_mask: Tensor, caption: bool = True,
                logits: bool = False) -> CoCaOutputs:
        text_latents = self.text_to_latents(self.embed_text(text, text_mask)[0])
        image_latents = self.img_to_latents(self.embed_image(image_tokens=image_tokens)[0])
        hidden = self.hidden(text, image_tokens)
        loss = caption_loss(hidden[text_mask], self.embedding.weight, labels[text_mask], self.smoothing)
        all_logits = hidden @ self.embedding.weight.T if logits else None
        return CoCaOutputs(text_latents, image_latents, equal_text_groups(text, text_mask), loss,
                           int(text_mask.sum()), all_logits)

    def start_decoding(self, context: Tensor) -> GruCache:
        return GruCache(context.unsqueeze(0))

    def decode_step(self, token_ids: Tensor, cache: GruCache) -> Tensor:
        states, cache.state = self.gru(self.embedding(token_ids), cache.state)
        return states[:, -1] @ self.embedding.weight.T


def build_gru(config, tokenizer, _prism):
    return GruDecoder(config, len(tokenizer))
# guide: end


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setitem(build.DECODERS, "gru", build_gru)  # in the program: a line in DECODERS, a choice in schema.py
    config = Config()
    config.prism.weights, config.model.decoder, config.model.dim, config.model.dim_latents = "random-tiny", "gru", 32, 16
    return config


def test_it_learns_writes_and_scores(config):
    torch.manual_seed(0)
    texts = ["invasive", "benign", "no tumor"]
    model, batch = build.build_model(config, LETTERS), batch_of(texts)
    losses = train_steps(model, batch, steps=60, lr=1e-2)
    assert losses[-1].caption_loss < 0.1 * losses[0].caption_loss
    assert losses[-1].contrastive_loss < 0.1 * losses[0].contrastive_loss
    with torch.no_grad():
        tokens = model.encode(batch)
    for beams in (1, 3):
        captions = generate(model.decoder, tokens, GenerationOptions(num_beams=beams), **SPECIAL)
        assert [LETTERS.decode(ids) for ids in captions] == texts
    assert min(confidences(model.decoder, tokens, captions, 100, **SPECIAL)) > 0.5
    cosines = embed_slides(model.decoder, tokens) @ embed_texts(model.decoder, LETTERS, texts, 64).T
    assert cosines.argmax(1).tolist() == [0, 1, 2]


def test_its_checkpoint_is_checked_and_comes_back(config):
    model, other = (build.build_model(config, LETTERS) for _ in range(2))
    with torch.no_grad():
        model.decoder.temperature.add_(0.1)
    build.check_architecture(config, LETTERS, build.describe_prism(model), model.saved_state(), "c.pth")
    other.load_saved_state(model.saved_state(), "c.pth")
    assert torch.equal(other.decoder.temperature, model.decoder.temperature)
