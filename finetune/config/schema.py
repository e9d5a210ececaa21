"""Every setting of a run: one typed schema with the defaults. Precedence: defaults < YAML < flags < --set.

Values are parsed by the type of their field, not by YAML's guess: to PyYAML `1e-4` is a string, `010` is 8 and `on` is
true; here `learning_rate: 1e-4` is 0.0001, and a value that does not fit its type is refused with its line number.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from ..common.errors import UserError
from ..common.log import logger
from ..common.score_table import canonical_name
from .values import check_known, set_field, setting
from .yaml_slips import setting_slip

_LANGUAGE_MODEL = ("hf:", "ms:")  # how a model.decoder begins that is one, of Hugging Face or of ModelScope
_TOKENIZER = re.compile(r"vocab|bpe(:([3-9]\d\d|[1-9]\d{3,5}))?|(hf|ms):.+")


@dataclass(kw_only=True)
class DataConfig:
    embeddings_dir: str = setting(
        "", "folder of H5 tile embeddings, flat or nested; the file name is the slide id")
    labels_file: str = setting(
        "", "reports: a table (.xlsx, .csv, .tsv, .jsonl) or JSON {slide id: text}; a case may have several reference "
        "texts or several slides")
    id_column: str | None = setting(
        None, "with a table: column of the case ids; null = found by its name, as are the next three")
    text_column: str | None = setting(None, "with a table: column of the texts")
    slide_column: str | None = setting(None, "with a table: column of the slides of a case")
    split_column: str | None = setting(None, "with a table: column that says train, val or test")
    encoding: str | None = setting(
        None, "encoding of a labels file that is text, such as gb18030 or cp1252; null = recognize UTF-8, UTF-16 and "
        "GB18030")
    case_pattern: str | None = setting(
        None, "regular expression that extracts the case id from the path of a feature file below embeddings_dir, to "
        "join the slides of a case; null = as the labels say")
    max_seq_len: int = setting(
        128, "maximum text length in tokens, begin and end token included; longer texts are truncated", 4)
    tokenizer: str = setting(
        "vocab", "vocab: characters and words of the training texts; bpe or bpe:SIZE: byte-pair encoding trained on "
        "them; hf:NAME_OR_FOLDER: a Hugging Face tokenizer; ms:NAME: the same of ModelScope")
    normalize: bool = setting(
        False, "normalize texts before tokenization: full-width to half-width (NFKC), one spelling per unit")
    image_dim: int = setting(2560, "dimension of a tile embedding", 1)
    val_split: float = setting(0.1, "fraction of the slides held out for validation; 0 = none", 0, 0.9)
    group_pattern: str | None = setting(
        None, "regular expression that extracts the patient from an id; a patient is never divided between splits; "
        "null = every id is its own patient")
    split_file: str | None = setting(
        None, "JSON {id: train, val or test} or CSV with columns id,split; null = the splits in the labels file, else "
        "val_split")
    folds: int | None = setting(None, "number of cross-validation folds; null = use val_split", 2)
    fold: int = setting(0, "with folds: index of the validation fold, from 0", 0)
    h5_key: str | None = setting(None, "name of the dataset in the H5 file; null = try the usual names")
    tile_encoder: str = setting(
        "auto", "required tile encoder, checked if a file names its own; auto: virchow (the one of Prism) if image_dim "
        "is 2560; any = no check")
    max_tiles: int | None = setting(
        None, "maximum number of tiles per slide, resampled every epoch; null = all", 1)
    on_bad: str = setting(
        "error", "on an unusable label or H5 file: error = stop and list them all, skip = skip it with a warning",
        choices=("error", "skip"))
    max_bad_fraction: float = setting(
        0.1, "with on_bad=skip: stop if more than this fraction of the slides is unusable", 0, 1)
    sha256_file: str | None = setting(
        None, "checksums of the H5 files in sha256sum format, verified before training; null = no check")
    latents_cache: str | None = setting(
        "auto", "cache folder for the output of the frozen Prism, computed once per slide; auto: prism_latents beside "
        "the run folder; null = encode every slide again in every epoch")
    views: int | str = setting(
        "auto", "encodings per training slide in the slide cache, one of all tiles and the others of random 30 to 80 % "
        "of them; each epoch reads one; 1 = all tiles only; auto: 1200 in all, at most 8 per slide", 1, 1000,
        choices=("auto",))

    @property
    def wanted_encoder(self) -> str | None:
        """The tile encoder that H5 files must come from, or None for no check."""
        name = self.tile_encoder
        if name == "auto":
            name = "virchow" if self.image_dim == 2560 else "any"
        return None if name == "any" else name


@dataclass(kw_only=True)
class PrismConfig:
    weights: str = setting("paige-ai/Prism", "hub id, local folder or file, or random / random-tiny")
    revision: str | None = setting(None, "hub revision (a commit hash is safest); null = main")
    freeze: bool = setting(True, "true: Prism is a fixed feature extractor; false: it is trained and saved as well")
    image_tokens: str = setting(
        "latents", "image tokens for the decoder: latents = slide embedding and all latents; embedding = slide "
        "embedding only", choices=("latents", "embedding"))


@dataclass(kw_only=True)
class ModelConfig:
    size: str = setting(
        "auto", "size of a coca decoder, for the size keys that are null: small, base or large; auto: small below 2000 "
        "training slides, else base", choices=("auto", "small", "base", "large"))
    dim: int | None = setting(None, "hidden dimension of the decoder; null = as in model.size", 1, 65536)
    unimodal_depth: int | None = setting(None, "number of text-only layers; null = as in model.size", 1, 1000)
    multimodal_depth: int | None = setting(
        None, "number of text layers with cross-attention to the image; null = as in model.size", 1, 1000)
    dim_latents: int | None = setting(None, "dimension of the contrastive space; null = as in model.size", 1, 65536)
    image_dim: int = setting(1280, "dimension of Prism's output", 1, 65536)
    caption_loss_weight: float = setting(1.0, "weight of the caption loss", 0)
    contrastive_loss_weight: float = setting(1.0, "weight of the contrastive loss", 0)
    contrastive: str = setting(
        "clip", "contrastive loss: clip (softmax over the batch) or siglip (sigmoid per pair)",
        choices=("clip", "siglip"))
    num_img_queries: int | None = setting(
        None, "number of queries that pool the image tokens; null = as in model.size, 32 for hf", 1, 65536)
    heads: int | None = setting(None, "number of attention heads; null = as in model.size", 1, 1024)
    dim_head: int | None = setting(
        None, "dimension of an attention head, an even number; null = as in model.size", 2, 4096)
    ff_mult: int = setting(4, "feed-forward dimension as a multiple of dim", 1, 64)
    init: str = setting(
        "random", "initialization of a coca decoder: random, or prism = the fitting weights of Prism's text decoder",
        choices=("random", "prism"))
    decoder: str = setting(
        "coca", "coca: a CoCa of the sizes above; prism: Prism's own text decoder, fine-tuned; hf:NAME_OR_FOLDER: a "
        "causal language model of Hugging Face behind a soft prefix (docs/language_model.md)",
        choices=("coca", "prism", "hf:NAME_OR_FOLDER", "ms:NAME"))
    probe_tokens: int | str = setting(
        "auto", "tokens that tell the decoder what a linear probe of the frozen features says; auto: 4 where the probe "
        "can predict 20 tokens of the texts, else 0", 0, 64, choices=("auto",))
    lora_rank: int = setting(
        0, "with decoder=prism or hf: rank of the low-rank adapters (LoRA); 0 = none: the upper half of prism trains, "
        "and of hf what freeze_decoder says", 0, 4096)
    freeze_decoder: bool = setting(
        True, "with decoder=hf: keep the language model as it is, so that the prefix and, with lora_rank, the adapters "
        "train; false = train all of it")

    @property
    def language_model(self) -> str | None:
        """Name or folder of the language model, with `ms:` for one of ModelScope; None for the other decoders."""
        return self.decoder.removeprefix("hf:") if self.decoder.startswith(_LANGUAGE_MODEL) else None


def same_decoder(one: str, other: str) -> bool:
    """Whether two values of `model.decoder` are of one kind: a language model may lie elsewhere, its SHA-256 tells."""
    return one == other or (one.startswith(_LANGUAGE_MODEL) and other.startswith(_LANGUAGE_MODEL))


@dataclass(kw_only=True)
class TrainingConfig:
    batch_size: int | str = setting(
        8, "slides per process and micro-batch; auto = as many as fit into GPU memory", 1, choices=("auto",))
    max_batch_tokens: int | None = setting(
        None, "fill each batch up to this number of padded text tokens (at least two slides) instead of batch_size "
        "slides; null = off", 1)
    epochs: int | str = setting(
        "auto", "passes over the training slides; auto: 13000 slides seen in all, at least 10 and at most 50 passes "
        "(20 for hf)", 1, choices=("auto",))
    learning_rate: float | str = setting(
        "auto", "peak learning rate; auto by model.dim: 1e-3 up to 128, 5e-4 up to 256, 1e-4 above", 0, open_low=True,
        choices=("auto",))
    decoder_learning_rate: float | None = setting(
        None, "with decoder=hf: peak learning rate of its adapters or weights, learning_rate being that of the prefix; "
        "null = 2e-4 for adapters, 2e-5 for weights", 0, open_low=True)
    weight_decay: float = setting(0.01, "AdamW weight decay of weight matrices", 0)
    save_every: int = setting(5, "epochs between checkpoint_epoch_N.pth files; 0 = none", 0)
    save_every_steps: int = setting(
        0, "optimizer steps between saves of last_model.pth within an epoch; 0 = only at the end of an epoch", 0)
    output_dir: str = setting("./checkpoints", "run folder")
    log_dir: str = setting("./logs", "folder of training.log")
    seed: int = setting(42, "random seed of split, initialization, order and tile sampling", 0, 2**32 - 1)
    init_from: str | None = setting(
        None, "a trained model whose weights a new run starts from: a .pth, the folder of a run (its best_model.pth) "
        "or a folder of finetune.export; null = new weights")
    loss: str | None = setting(
        None, "package.module:function, a custom loss added to the two losses above; null = none")
    label_smoothing: float = setting(0.0, "label smoothing epsilon: probability spread over all tokens", 0, 0.9)
    accum_freq: int = setting(1, "gradient accumulation: micro-batches per optimizer step", 1)
    warmup: float = setting(0.03, "learning rate warm-up: below 1 a fraction of all steps, else a number of steps", 0)
    grad_clip_norm: float | None = setting(
        1.0, "maximum gradient norm; larger gradients are scaled down; null = off", 0, open_low=True)
    precision: str = setting(
        "auto", "auto: fp16 on CUDA, bf16 on a CPU that has it, else fp32", choices=("auto", "fp16", "bf16", "fp32"))
    device: str = setting("auto", "auto (CUDA if available), cpu, cuda or cuda:N")
    eval_captions: int = setting(
        0, "number of validation slides that are captioned and scored after each epoch; 0 = none", 0)
    monitor: str = setting(
        "last", "which epoch best_model.pth holds: last, or the best one by a score in metrics.jsonl such as val_loss")
    workers: int = setting(2, "data loading processes; 0 = load in the training process", 0, 256)
    compile: bool = setting(
        False, "compile the decoder with torch.compile: minutes at the start, then faster steps")
    grad_checkpointing: bool = setting(
        False, "gradient checkpointing: recompute activations in the backward pass; less memory for long texts, about "
        "a third more time")
    report_to: tuple[str, ...] = setting(
        (), "experiment trackers beside report.html: a list of tensorboard, wandb, swanlab",
        choices=("tensorboard", "wandb", "swanlab"))


_SHORT_NAMES = {"lr": "learning_rate"}  # as train_finetune.py has it


@dataclass(kw_only=True)
class Config:
    """All settings of a run. `data`, `model` and `training` carry the keys users know; see config.yaml."""

    data: DataConfig = field(default_factory=DataConfig)
    prism: PrismConfig = field(default_factory=PrismConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    @property
    def trains_captions(self) -> bool:
        """Whether captioning is trained: by the caption loss, or by a custom loss that replaces it."""
        return self.model.caption_loss_weight > 0 or self.training.loss is not None

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain types, as YAML and JSON have them."""
        return dataclasses.asdict(self, dict_factory=lambda items: {
            name: list(value) if isinstance(value, tuple) else value for name, value in items})

    def set(self, key: str, text: str | None, where: str) -> None:
        """Set `section.key` from text (None = null). Raises UserError naming `where`, key, value and allowed range."""
        if key == "training.monitor" and text is not None:
            text = _current_score(text)  # configs and checkpoints hold the names that scores once had
        section_name, _, name = key.partition(".")
        self.check_section(section_name, where)
        section = getattr(self, section_name)
        names = [f.name for f in dataclasses.fields(section)]
        if not name:
            raise UserError(where, f"{key} is a section", f"write {key}.KEY=VALUE; keys: {', '.join(names)}")
        check_known(name, names, where, f"key in section {section_name}", self._key_named(name))
        set_field(section, name, key, text, where)

    def check_section(self, name: str, where: str) -> None:
        """Raises UserError for a name that is no section, with the section that has a key of this name."""
        check_known(name, [f.name for f in dataclasses.fields(self)], where, "section", self._key_named(name))

    def _key_named(self, name: str) -> str | None:
        """`section.key` of the first key of that name; the short name of a flag is one too."""
        name = _SHORT_NAMES.get(name, name)
        for section in dataclasses.fields(self):
            if name in type(getattr(self, section.name)).__dataclass_fields__:
                return f"{section.name}.{name}"
        return None

    def check(self, where: str) -> Config:
        """Check what depends on more than one key, just before a run. Returns self; raises UserError naming `where`."""
        self._check_data(where)
        self._check_losses(where)
        if self.model.language_model is not None:
            self._check_language_model(where)
        else:
            self._check_no_language_model(where)
        if self.model.decoder == "prism":
            self._check_prism_decoder(where)
        if self.model.dim_head is not None and self.model.dim_head % 2:
            raise UserError(where, f"model.dim_head is {self.model.dim_head}", "rotary positions need an even number")
        return self

    def _check_data(self, where: str) -> None:
        for key in ("embeddings_dir", "labels_file"):
            if not getattr(self.data, key):
                raise UserError(where, f"data.{key} is not set", f"give --{key} or write it under data:")
        if not _TOKENIZER.fullmatch(self.data.tokenizer):
            raise UserError(where, f"data.tokenizer is {self.data.tokenizer!r}",
                            "it must be vocab, bpe, bpe:SIZE (300 to 999999), hf:NAME_OR_FOLDER or ms:NAME")

    def _check_losses(self, where: str) -> None:
        contrastive = self.model.contrastive_loss_weight > 0
        if self.model.caption_loss_weight == 0 and not contrastive:
            raise UserError(where, "both loss weights are 0", "set model.caption_loss_weight above 0")
        batches_per_step = self.training.accum_freq * int(os.environ.get("WORLD_SIZE", "1"))
        if contrastive and self.training.batch_size == 1 and batches_per_step == 1:
            raise UserError(where, "training.batch_size is 1, where the contrastive loss is always 0",
                            "use 2 or more, or model.contrastive_loss_weight=0")

    def _check_language_model(self, where: str) -> None:
        if self.data.tokenizer != "vocab":
            raise UserError(where, "data.tokenizer is set, but a language model has its own tokenizer",
                            "leave data.tokenizer out with model.decoder=hf")
        if self.training.precision == "fp16":
            raise UserError(where, "training.precision is fp16, in which many language models overflow",
                            "use auto (bf16 where the device has it), bf16 or fp32")
        if self.model.lora_rank and not self.model.freeze_decoder:
            raise UserError(where, "model.lora_rank and model.freeze_decoder=false are both set",
                            "train either adapters or the whole language model")

    def _check_no_language_model(self, where: str) -> None:
        if self.model.lora_rank and self.model.decoder == "coca":
            raise UserError(where, "model.lora_rank is set, but model.decoder is coca, which takes no adapters",
                            "use model.decoder=prism or hf:NAME, or leave model.lora_rank at 0")
        for key, is_set in (("model.freeze_decoder", not self.model.freeze_decoder),
                            ("training.decoder_learning_rate", self.training.decoder_learning_rate is not None)):
            if is_set:
                raise UserError(where, f"{key} is set, but model.decoder is {self.model.decoder}",
                                "leave it out, or use model.decoder=hf:NAME_OR_FOLDER")

    def _check_prism_decoder(self, where: str) -> None:
        if self.prism.image_tokens != "latents":
            raise UserError(where, f"prism.image_tokens is {self.prism.image_tokens}, Prism's decoder reads latents",
                            "use prism.image_tokens=latents, or model.decoder=coca")
        if self.data.tokenizer != "vocab" or self.data.normalize:
            raise UserError(where, "data.tokenizer or data.normalize is set, but Prism's decoder has its own tokenizer",
                            "leave both at their defaults, or use model.decoder=coca")
        if self.training.compile or self.training.grad_checkpointing:
            raise UserError(where, "training.compile and grad_checkpointing are for model.decoder=coca",
                            "leave them out with model.decoder=prism")


@cache  # the YAML file and the checkpoint of a run say the same
def _current_score(name: str) -> str:
    """The name that a score has today; says so where it is another one."""
    current = canonical_name(name)
    if current != name:
        logger.info("training.monitor: the score %s is now called %s", name, current)
    return current


def apply_overrides(config: Config, pairs: Iterable[str]) -> Config:
    """Apply `section.key=value` strings, as given to --set, to `config` and return it."""
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UserError("--set", *setting_slip(pair))
        text = value.strip()
        config.set(key.strip(), None if text in ("null", "~", "") else text, "--set")
    return config


# What earlier versions did where their checkpoints lack a key that today has another default.
_BEFORE_KEY_EXISTED = {"data.views": "1", "model.probe_tokens": "0", "model.size": "large",
                       "training.monitor": "val_loss"}


def from_dict(values: dict[str, dict[str, Any]], where: str) -> Config:
    """The config stored in a checkpoint. Raises UserError for unknown keys and wrong values."""
    config = Config()
    for key, text in _BEFORE_KEY_EXISTED.items():
        config.set(key, text, where)
    for section, keys in values.items():
        if not isinstance(keys, dict):
            raise UserError(where, f"its config has an unusable section {section!r}", "use another checkpoint")
        for name, value in keys.items():
            key = f"{section}.{name}"
            config.set(key, _as_text(value, key, where), where)
    return config


def _as_text(value: Any, key: str, where: str) -> str | None:
    """A stored value as the text of its flag, None for null."""
    if value is None:
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return ",".join(value)
    if isinstance(value, (int, float, str)):
        return str(value)
    raise UserError(where, f"its config has an unusable value of {key}", "use another checkpoint")
