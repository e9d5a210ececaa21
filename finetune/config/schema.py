"""Every setting of a run: one typed schema, defaults < YAML < flags. The only module that reads YAML.

YAML scalars are parsed by the schema's type, not by YAML's guess: to PyYAML `1e-4` is a string, `010` is 8 and `on` is
true; here `learning_rate: 1e-4` is 0.0001, and a value that does not fit its type is refused with the line it is on.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..common.errors import UserError
from ..common.score_table import canonical_name
from .values import _known, _set_field


def _key(default: Any, help: str, low: float | None = None, high: float | None = None, *, open_low: bool = False,
         choices: tuple[str, ...] = ()) -> Any:
    """A config field: its default, a help line, and the allowed range (`low` itself excluded if `open_low`), or the
    allowed words; with both, the words stand in place of a number."""
    return field(default=default, metadata={"help": help, "low": low, "high": high, "open_low": open_low,
                                            "choices": choices})


@dataclass(kw_only=True)
class DataConfig:
    embeddings_dir: str = _key("", "folder of H5 tile embeddings, flat or nested; the file name is the slide id")
    labels_file: str = _key("", "JSON file {slide id: text}, or with several texts or slides to an id")
    max_seq_len: int = _key(128, "longest text in tokens, begin and end token included; longer texts are cut", 4)
    tokenizer: str = _key("vocab", "vocab: characters and words of the training texts; bpe or bpe:SIZE: byte pairs of "
                          "them; hf:NAME_OR_FOLDER: a tokenizer of Hugging Face")
    normalize: bool = _key(False, "full-width signs to half-width (NFKC) and units in one spelling before a text is "
                           "encoded")
    image_dim: int = _key(2560, "width of a tile embedding", 1)
    val_split: float = _key(0.1, "share of the slides held out for validation; 0 = none", 0, 0.9)
    group_pattern: str | None = _key(None, "regular expression that finds the patient in an id; all of a patient is on "
                                     "one side of the split; null = each id is its own")
    split_file: str | None = _key(None, "JSON {id: train, val or test} or CSV with the columns id,split; null = as the "
                                  "labels say, else by val_split")
    folds: int | None = _key(None, "cross-validation: so many folds, of which one validates; null = by val_split", 2)
    fold: int = _key(0, "with folds: the one that validates, counted from 0", 0)
    h5_key: str | None = _key(None, "dataset inside the H5 file; null = found by its usual names")
    tile_encoder: str = _key("auto", "tile encoder that a file must be of, if it names one; auto: virchow if image_dim "
                             "is 2560, Prism's; any = no check")
    max_tiles: int | None = _key(None, "at most so many tiles of a slide, sampled anew each epoch; null = all", 1)
    on_bad: str = _key("error", "a label or H5 file that cannot be used: stop with the list, or skip it with a warning",
                       choices=("error", "skip"))
    max_bad_fraction: float = _key(0.1, "with on_bad skip: stop if more than this share of the slides is bad", 0, 1)
    sha256_file: str | None = _key(None, "sums of the H5 files, as sha256sum writes them, checked before training; "
                                   "null = no check")
    latents_cache: str | None = _key("auto", "folder for the output of the frozen Prism, computed once per slide; "
                                     "auto: prism_latents beside the run folder; null = encode anew in each epoch")

    @property
    def wanted_encoder(self) -> str | None:
        """The tile encoder to hold the files against, or None."""
        usual = "virchow" if self.image_dim == 2560 else "any"
        name = usual if self.tile_encoder == "auto" else self.tile_encoder
        return None if name == "any" else name


@dataclass(kw_only=True)
class PrismConfig:
    weights: str = _key("paige-ai/Prism", "hub id, local folder or file, or random / random-tiny")
    revision: str | None = _key(None, "hub revision (a commit hash is safest); null = main")
    freeze: bool = _key(True, "true: Prism is a fixed feature extractor; false: it is trained and saved too")
    image_tokens: str = _key("latents", "what CoCa sees of a slide: all latents and the slide embedding, or only it",
                             choices=("latents", "embedding"))


@dataclass(kw_only=True)
class ModelConfig:
    dim: int = _key(512, "width of the captioner", 1, 65536)
    unimodal_depth: int = _key(6, "text layers that do not see the image", 1, 1000)
    multimodal_depth: int = _key(6, "text layers with cross-attention to the image", 1, 1000)
    dim_latents: int = _key(512, "width of the contrastive space", 1, 65536)
    image_dim: int = _key(1280, "width of Prism's output", 1, 65536)
    caption_loss_weight: float = _key(1.0, "weight of the caption loss", 0)
    contrastive_loss_weight: float = _key(1.0, "weight of the contrastive loss", 0)
    contrastive: str = _key("clip", "contrastive loss: clip (softmax over the batch) or siglip (each pair by itself)",
                            choices=("clip", "siglip"))
    num_img_queries: int = _key(256, "queries that pool the image tokens", 1, 65536)
    heads: int = _key(8, "attention heads", 1, 1024)
    dim_head: int = _key(64, "width of an attention head, an even number", 2, 4096)
    ff_mult: int = _key(4, "feed-forward width as a multiple of dim", 1, 64)
    init: str = _key("random", "what a coca decoder starts from: nothing, or what fits of Prism's text side",
                     choices=("random", "prism"))
    decoder: str = _key("coca", "coca: a CoCa of the sizes above; prism: Prism's own text decoder, fine-tuned",
                        choices=("coca", "prism"))
    lora_rank: int = _key(0, "decoder prism: rank of low-rank adapters; 0 = its upper half trains as a whole", 0, 4096)


@dataclass(kw_only=True)
class TrainingConfig:
    batch_size: int | str = _key(4, "slides per process and micro-step; auto = as many as fit into the GPU", 1,
                                 choices=("auto",))
    max_batch_tokens: int | None = _key(None, "fill each batch up to so many padded text tokens, two slides at least, "
                                        "instead of batch_size slides; null = off", 1)
    epochs: int = _key(50, "passes over the training slides", 1)
    learning_rate: float = _key(1e-4, "peak learning rate", 0, open_low=True)
    weight_decay: float = _key(0.01, "AdamW decay of weight matrices", 0)
    save_every: int = _key(5, "epochs between checkpoint_epoch_N.pth files; 0 = none", 0)
    save_every_steps: int = _key(0, "optimizer steps between updates of last_model.pth within an epoch; 0 = only at "
                                 "its end", 0)
    output_dir: str = _key("./checkpoints", "run folder")
    log_dir: str = _key("./logs", "folder of training.log")
    seed: int = _key(42, "seed of split, weights, order and sampling", 0, 2**32 - 1)
    loss: str | None = _key(None, "package.module:function, a loss of your own beside the two; null = none")
    label_smoothing: float = _key(0.0, "share of each word's target that goes to all words alike", 0, 0.9)
    accum_freq: int = _key(1, "micro-steps per optimizer step", 1)
    warmup: float = _key(0.03, "warm-up: below 1 a share of all steps, else a number of steps", 0)
    grad_clip_norm: float | None = _key(1.0, "gradient norm above which gradients are scaled down; null = off", 0,
                                        open_low=True)
    precision: str = _key("auto", "auto: fp16 on CUDA, bf16 on CPUs that have it, else fp32",
                          choices=("auto", "fp16", "bf16", "fp32"))
    device: str = _key("auto", "auto (CUDA if there is one), cpu, cuda or cuda:N")
    eval_captions: int = _key(0, "validation slides that are captioned and scored after each epoch; 0 = none", 0)
    monitor: str = _key("val_loss", "the score in metrics.jsonl that chooses best_model.pth")
    workers: int = _key(2, "processes that read slides; 0 = read in the training process", 0, 256)
    compile: bool = _key(False, "compile the captioner with torch.compile: minutes at the start, then faster steps")
    grad_checkpointing: bool = _key(False, "compute the captioner's layers again in the backward pass instead of "
                                    "keeping them: less memory for long texts, a third more time")
    report_to: tuple[str, ...] = _key((), "where curves go beside report.html: a list of tensorboard, wandb",
                                      choices=("tensorboard", "wandb"))


@dataclass(kw_only=True)
class GenerationOptions:
    """How to write a caption; names and meanings as in Hugging Face's GenerationConfig. Flags of inference.py only."""

    max_length: int = _key(100, "longest caption in tokens, begin and end token included", 2)
    num_beams: int = _key(1, "beams of beam search; 1 = greedy or sampling", 1, 64)
    do_sample: bool = _key(False, "sample instead of taking the most probable token")
    temperature: float = _key(1.0, "sampling: logits are divided by it", 0, open_low=True)
    top_k: int = _key(0, "sampling: among the k most probable tokens; 0 = all", 0)
    top_p: float = _key(1.0, "sampling: among the fewest tokens of this probability; 1 = all", 0, 1, open_low=True)
    repetition_penalty: float = _key(1.0, "above 1: tokens already there become less probable", 0, open_low=True)
    no_repeat_ngram_size: int = _key(0, "no n-gram of this size twice; 0 = off", 0)
    length_penalty: float = _key(1.0, "beams: scores are divided by length to this power", -10, 10)
    seed: int = _key(0, "seed of sampling", 0, 2**32 - 1)

    def set(self, name: str, text: str) -> None:
        """Set an option from the text of its flag. Raises UserError."""
        _set_field(self, name, name, text, f"--{name}")

    def check(self) -> GenerationOptions:
        if self.do_sample and self.num_beams > 1:
            raise UserError("--do_sample", "sampling over beams is not supported", "use --num_beams 1")
        return self


@dataclass(kw_only=True)
class Config:
    """All settings of a run. `data`, `model` and `training` carry the keys users know; see config.yaml."""

    data: DataConfig = field(default_factory=DataConfig)
    prism: PrismConfig = field(default_factory=PrismConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    @property
    def trains_captions(self) -> bool:
        """Whether captions may be learned: by the model's own loss, or by one of the user's that replaces it."""
        return self.model.caption_loss_weight > 0 or self.training.loss is not None

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain types, as YAML and JSON have them."""
        return dataclasses.asdict(self, dict_factory=lambda items: {
            name: list(value) if isinstance(value, tuple) else value for name, value in items})

    def set(self, key: str, text: str | None, where: str) -> None:
        """Set `section.key` from text (None = null). Raises UserError naming `where`, key, value and allowed range."""
        if key == "training.monitor" and text is not None:
            text = canonical_name(text)  # scores were renamed; configs and checkpoints hold the old names
        section_name, _, name = key.partition(".")
        section = getattr(self, _known(section_name, [f.name for f in dataclasses.fields(self)], where, "section"))
        names = [f.name for f in dataclasses.fields(section)]
        if not name:
            raise UserError(where, f"{key} is a section", f"write {key}.KEY=VALUE; keys: {', '.join(names)}")
        _set_field(section, _known(name, names, where, f"key in section {section_name}"), key, text, where)

    def check(self, where: str) -> Config:
        """Checks that need more than one key, just before a run. Returns self; raises UserError."""
        for key in ("embeddings_dir", "labels_file"):
            if not getattr(self.data, key):
                raise UserError(where, f"data.{key} is not set", f"give --{key} or write it under data:")
        if not re.fullmatch(r"vocab|bpe(:([3-9]\d\d|[1-9]\d{3,5}))?|hf:.+", self.data.tokenizer):
            raise UserError(where, f"data.tokenizer is {self.data.tokenizer!r}",
                            "it must be vocab, bpe, bpe:SIZE (300 to 999999) or hf:NAME_OR_FOLDER")
        weights = (self.model.caption_loss_weight, self.model.contrastive_loss_weight)
        if max(weights) == 0:
            raise UserError(where, "both loss weights are 0", "set model.caption_loss_weight above 0")
        if self.training.batch_size == 1 and weights[1] > 0 and \
                self.training.accum_freq * int(os.environ.get("WORLD_SIZE", "1")) == 1:
            raise UserError(where, "training.batch_size is 1, where the contrastive loss is always 0",
                            "use 2 or more, or model.contrastive_loss_weight=0")
        if self.model.decoder == "prism" and self.prism.image_tokens != "latents":
            raise UserError(where, f"prism.image_tokens is {self.prism.image_tokens}, Prism's decoder reads latents",
                            "use prism.image_tokens=latents, or model.decoder=coca")
        if self.model.decoder == "prism" and (self.data.tokenizer, self.data.normalize) != ("vocab", False):
            raise UserError(where, "data.tokenizer or data.normalize is set, but Prism's decoder has its own tokenizer",
                            "leave both at their defaults, or use model.decoder=coca")
        if self.model.lora_rank and self.model.decoder != "prism":
            raise UserError(where, "model.lora_rank is set, but model.decoder is coca, which has no weights to adapt",
                            "use model.decoder=prism, or leave model.lora_rank at 0")
        if self.model.decoder == "prism" and (self.training.compile or self.training.grad_checkpointing):
            raise UserError(where, "training.compile and grad_checkpointing are for model.decoder=coca",
                            "leave them out with model.decoder=prism")
        if self.model.dim_head % 2:
            raise UserError(where, f"model.dim_head is {self.model.dim_head}", "rotary positions need an even number")
        return self


def apply_overrides(config: Config, pairs: Iterable[str]) -> Config:
    """Apply `section.key=value` strings, as given to --set, to `config` and return it."""
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise UserError("--set", f"{pair!r} has no '='", "write --set section.key=value")
        config.set(key.strip(), None if text.strip() in ("null", "~", "") else text.strip(), "--set")
    return config


def from_dict(values: dict[str, dict[str, Any]], where: str) -> Config:
    """The config stored in a checkpoint. Raises UserError for unknown keys and wrong values."""
    config = Config()
    for section, keys in values.items():
        if not isinstance(keys, dict) or not all(_is_flat(v) for v in keys.values()):
            raise UserError(where, f"its config has an unusable section {section!r}", "use another checkpoint")
        for name, value in keys.items():
            config.set(f"{section}.{name}", None if value is None else _as_text(value), where)
    return config


def _is_flat(value: Any) -> bool:
    """A scalar, or a list of texts."""
    return all(type(v) is str for v in value) if isinstance(value, (list, tuple)) else not isinstance(value, dict)


def _as_text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(value)
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)
