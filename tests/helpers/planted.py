"""A captioner whose reasons are known: a real slide encoder, and a decoder that reads one direction of its latents."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from finetune.data.tokenizer import VocabTokenizer
from finetune.explanation.caption_tokens import KnownPhrases, phrases, read_caption
from finetune.explanation.contrast import Alternatives
from finetune.models.captioner import SlideCaptioner
from prism import PerceiverConfig, PrismSlideEncoder

TEXTS = ["见坏死，组织好。", "无坏死，组织好。", "见坏死，组织差。"]


class Reader:
    """A decoder of two phrases. The first is 见坏死 rather than 无坏死 the more, the further the mean latent lies in a
    direction, and is certain soon; the second is 组织好 rather than 组织差 whatever the slide. All else has no probability.
    """

    never_generated, max_positions, supports = (), None, frozenset()
    dtype, device = torch.float64, torch.device("cpu")

    def __init__(self, tokenizer: VocabTokenizer, choices: bool = True) -> None:
        self.ids = {text: tokenizer.encode(text)[0] for text in "见无坏死组织好差，。"} | {"end": tokenizer.eos_id}
        self.begin, self.size, self.choices = tokenizer.bos_id, len(tokenizer), choices
        self.direction = self.middle = None

    def embed_image(self, *, image_tokens):
        return None, image_tokens

    def score(self, image_tokens):
        return 8 * torch.tanh((image_tokens[:, 1:].mean(1) - self.middle) @ self.direction)

    def __call__(self, text, *, image_tokens, text_mask):
        assert text_mask.all()
        logits = torch.full((*text.shape, self.size), -torch.inf, dtype=torch.float64)
        score = self.score(image_tokens)
        follows = {self.begin: "见", **{self.ids[a]: b for a, b in zip("见无坏死，组织好差。", [*"坏坏死，组织好。。", "end"], strict=True)}}
        for (row, at), token in ((tuple(i), int(text[tuple(i)])) for i in torch.cartesian_prod(*map(torch.arange, text.shape))):
            logits[row, at, self.ids[follows[token]]] = 0.0
            if token == self.begin and self.choices:
                logits[row, at, self.ids["无"]] = -score[row]
            if token == self.ids["织"] and self.choices:
                logits[row, at, self.ids["差"]] = -3.0
        return logits

    def start_decoding(self, context):
        return SimpleNamespace(context=context, text=torch.zeros(len(context), 0, dtype=torch.long))

    def decode_step(self, token_ids, cache):
        cache.text = torch.cat([cache.text, token_ids], dim=1)
        return self(cache.text, image_tokens=cache.context, text_mask=torch.ones_like(cache.text, dtype=torch.bool))[:, -1]


def tiny_encoder() -> PrismSlideEncoder:
    torch.manual_seed(0)
    prism = PrismSlideEncoder(PerceiverConfig(latent_seq=5, latent_dim=16, context_dim=12, mhsa_heads=2, perceiver_depth=3,
                                              transformer_depth=2)).double().freeze()
    with torch.no_grad():
        prism.image_resampler.perceiver.latents.mul_(50)  # queries that differ
    return prism


def planted(num_tiles: int = 40, num_marked: int = 9, choices: bool = True):
    """(captioner, tiles (N, 12), which tiles are marked (N,)): the marked ones have a pattern, which alone moves the
    decoder's direction, and three in four of them are enough."""
    tokenizer = VocabTokenizer.build(TEXTS)
    model = SlideCaptioner(tiny_encoder(), torch.nn.Identity(), "latents")
    decoder = Reader(tokenizer, choices)
    del model.decoder  # no module
    model.decoder = decoder
    generator = torch.Generator().manual_seed(3)
    plain = torch.randn(num_tiles, 12, dtype=torch.float64, generator=generator)
    marked = torch.zeros(num_tiles, dtype=torch.bool)
    marked[torch.randperm(num_tiles, generator=generator)[:num_marked]] = True
    tiles = plain + 3 * marked[:, None] * torch.randn(12, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        few = plain.clone()
        enough = marked.nonzero()[:num_marked * 3 // 4, 0]
        few[enough] = tiles[enough]
        without, with_few = (model.image_tokens(x[None], torch.ones(1, num_tiles, dtype=torch.bool))[0, 1:].mean(0) for x in (plain, few))
    difference = with_few - without
    decoder.middle, decoder.direction = without + difference / 2, 4 * difference / difference.square().sum()
    captioner = SimpleNamespace(model=model, tokenizer=tokenizer)
    return captioner, tiles, marked


def contrasts_of(captioner, tiles, caption, texts=(), finished=True):
    """(image tokens (n, D), contrast of each phrase) of a slide's caption."""
    image_tokens = captioner.model.image_tokens(tiles[None], torch.ones(1, len(tiles), dtype=torch.bool))[0]
    tokens = read_caption(captioner.tokenizer, caption, finished)
    found = Alternatives(captioner.model.decoder, captioner.tokenizer, image_tokens, tokens, KnownPhrases(texts, captioner.tokenizer))
    return image_tokens, [found.of_phrase(i, span) for i, span in enumerate(phrases(tokens.pieces))]
