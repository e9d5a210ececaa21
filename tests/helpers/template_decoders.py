"""Tiny random decoders, sharp enough that slides and values differ, and tokenizers of every kind made of given texts."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from finetune.config.schema import Config
from finetune.data.tokenizer import FastTokenizer, VocabTokenizer
from finetune.models.build import build_model

SLIDES = 3


def wordpiece(texts):
    """As BERT's: characters of Chinese alone, words of lower-case letters in pieces."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.train_from_iterator(texts, trainers.WordPieceTrainer(
        vocab_size=200, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"], show_progress=False))
    return FastTokenizer("hf", made.to_str(), {"pad": 0, "unk": 1, "bos": 2, "eos": 3}, False)


def sentencepiece(texts):
    """Pieces that may cross borders of words, blanks as ▁, as T5's or Llama's."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    made.train_from_iterator(texts, trainers.UnigramTrainer(vocab_size=120, special_tokens=["<pad>", "<s>", "</s>", "<unk>"],
                                                            unk_token="<unk>", show_progress=False))
    return FastTokenizer("hf", made.to_str(), {"pad": 0, "bos": 1, "eos": 2, "unk": 3}, False)


TOKENIZERS = {"vocab": VocabTokenizer.build, "bpe": lambda texts: FastTokenizer.train(texts, 400, False),
              "wordpiece": wordpiece, "sentencepiece": sentencepiece}


def coca_of(tokenizer, decoder="coca"):
    config = Config()
    for pair in (f"model.decoder={decoder}", "prism.weights=random-tiny", "model.dim=32", "model.unimodal_depth=1",
                 "model.multimodal_depth=1", "model.dim_latents=16", "model.num_img_queries=3", "model.heads=2",
                 "model.dim_head=16"):
        config.set(*pair.split("="), "test")
    model = build_model(config, tokenizer).decoder.eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():  # sharper: so that slides and values differ
            if "emb" in name or "logits" in name:
                weight.mul_(3)
    return model


def images_for(decoder):
    """(slides, tokens, D)."""
    width = 1280 if not hasattr(decoder, "text_decoder") else decoder.text_decoder.context_dim
    torch.manual_seed(1)
    return torch.randn(SLIDES, 9, width)
