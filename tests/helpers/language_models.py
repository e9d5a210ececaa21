"""Tiny random language models in Hugging Face's folder layout, with a byte-level tokenizer that knows Chinese."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from finetune.config.schema import Config
from finetune.data.batch import Batch, Collate, Sample, encode_text
from finetune.data.slides import SlideFile
from finetune.data.tokenizer import FastTokenizer
from finetune.models.build import build_model, decoder_tokenizer
from finetune.models.captioner import SlideCaptioner

TEXTS = ["胃腺癌。", "正常胃黏膜，未见肿瘤。", "invasive carcinoma"]
END, CHAT = "<|endoftext|>", ("<|im_start|>", "<|im_end|>")
_SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
          "num_key_value_heads": 2, "max_position_embeddings": 256}
SIZES: dict[str, dict[str, Any]] = {
    "qwen2": _SMALL | {"tie_word_embeddings": True},
    "qwen3": _SMALL | {"head_dim": 8},
    "llama": _SMALL,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "phi": _SMALL | {"num_key_value_heads": 4},  # its head has a bias
}


def save_tokenizer(folder: Path, texts: list[str] = TEXTS, **special: str) -> int:
    """Write tokenizer.json and its config; returns its number of tokens. special: as in tokenizer_config.json."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bpe.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=300, show_progress=False, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[END, *CHAT]))
    bpe.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast"} | (special or {"eos_token": END, "pad_token": END})
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return bpe.get_vocab_size()


def make_language_model(folder: Path, kind: str = "qwen2", spare_rows: int = 5, *, seed: int = 0, std: float = 0.3,
                        **settings: Any) -> Path:
    """A random model of one of SIZES; large weights, so that its captions differ between slides."""
    from transformers import AutoConfig, AutoModelForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    rows = save_tokenizer(folder) + spare_rows
    config = AutoConfig.for_model(kind, **{**SIZES[kind], "vocab_size": rows, "initializer_range": std, "eos_token_id": 0,
                                           "bos_token_id": 0, "pad_token_id": None, **settings})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        if (bias := model.get_output_embeddings().bias) is not None:
            torch.nn.init.normal_(bias)
        model.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# tiny\n", encoding="utf-8")
    return folder


def config_for(folder: Path, **model: object) -> Config:
    """A config with the decoder in `folder` and a small prefix over random-tiny Prism."""
    config = Config()
    config.prism.weights = "random-tiny"
    sizes = {"dim": 16, "heads": 2, "dim_head": 8, "dim_latents": 16, "num_img_queries": 4}
    for key, value in ({"decoder": f"hf:{folder}"} | sizes | model).items():
        config.set(f"model.{key}", str(value), "test")
    return config


def tiny_captioner(folder: Path, **model: object) -> tuple[SlideCaptioner, FastTokenizer]:
    """The model of `config_for`, in float32 and eval mode, and its tokenizer."""
    config = config_for(folder, **model)
    tokenizer = decoder_tokenizer(config)
    captioner = build_model(config, tokenizer).eval()
    captioner.decoder.cast_frozen(torch.float32)
    return captioner, tokenizer


def batch_for(tokenizer: FastTokenizer, texts: list[str] = TEXTS) -> Batch:
    """One slide of 4 random tiles for each text."""
    generator = torch.Generator().manual_seed(0)
    return Collate(tokenizer.pad_id)([
        (Sample(SlideFile(f"s{i}", f"s{i}.h5", "embeddings", 4), encode_text(tokenizer, text, 64)[0]),
         torch.randn(4, 2560, generator=generator).numpy()) for i, text in enumerate(texts)])


def special_of(tokenizer: FastTokenizer) -> dict[str, int]:
    return {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
