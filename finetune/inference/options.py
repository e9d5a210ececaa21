"""The options of inference.py: a dataclass with its check, and the flags made from it. No torch: --help is quick."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..common.errors import UserError
from ..config.flags import add_debug_flag, help_of
from ..config.values import set_field, setting
from .thresholds import Thresholds

if TYPE_CHECKING:
    from prism import GenerationOptions

_EXACTLY_ONE = (("checkpoint", "prism_only"), ("embeddings_file", "embeddings_dir", "serve"))
_OF_LABELS = ("id_column", "text_column", "slide_column", "split_column", "encoding")
_REG2025 = ("reg2025", "reg_keywords", "reg_embedding")
_NEEDED_BY = {  # flag -> the one that it is of no use without
    **dict.fromkeys(("findings", "reg2025", "wanted_accuracy", *_OF_LABELS), "labels_file"),
    "reg_keywords": "reg2025",
    "reg_embedding": "reg2025",
    "classes_file": "prompts",
    "resume": "output",
}
_CAPTION_ONLY = ("text", "labels_file", *_OF_LABELS, "rerank", *_REG2025, "findings", "prompts", "classes_file",
                 "wanted_accuracy", "abstain_below", "split", "output", "resume", "latents_cache")
_FREE_ONLY = ("rerank", "max_length", "do_sample", "temperature", "top_k", "top_p", "repetition_penalty",
              "no_repeat_ngram_size", "length_penalty", "seed")  # they choose what a template leaves no choice in
_MODES_OF = {  # flag -> the modes that use it; a flag that is not listed is used by all
    "port": ("serve",),
    "explain": ("explain",),
    "thumbnail": ("explain",),
    "thumbnail_scale": ("explain",),
    **dict.fromkeys(("nearest", "template", "choices", "field_temperature"), ("caption", "serve")),
    **dict.fromkeys(_CAPTION_ONLY, ("caption",)),
}


@dataclass(kw_only=True)
class InferenceOptions:
    """Model, slides, additional scores, output and decoding of an inference run.

    The decoding options have the names and meanings of Hugging Face's GenerationConfig.
    """

    checkpoint: str | None = setting(
        None, "best_model.pth or any other .pth of a run, the folder of a run (its best_model.pth), or a folder "
        "written by python -m finetune.export")
    prism_only: bool = setting(False, "without a checkpoint: captions by Prism itself, in English")
    prism: str | None = setting(
        None, "Prism's weights, if moved since training; with --prism_only default paige-ai/Prism")
    language_model: str | None = setting(
        None, "folder or hub name of the language model of a checkpoint with model.decoder=hf, if moved since training")
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")

    embeddings_file: str | None = setting(None, "H5 tile embeddings of one slide")
    embeddings_dir: str | None = setting(None, "folder of H5 files: caption all of them")
    serve: bool = setting(False, "serve a web page on this machine to try the model")
    port: int = setting(7860, "with --serve: port of the page", 1, 65535)
    split: str = setting("all", "val, test: only the slides that were in this split in training",
                         choices=("all", "val", "test"))
    output: str | None = setting(None, "write one record per slide: .jsonl, .json or .csv")

    resume: bool = setting(False, "go on with the --output of the same command that was interrupted: slides that are "
                           "there are kept, failed and changed ones are captioned again")
    latents_cache: str = setting("auto", "folder that keeps the encoder's output for the slides of --embeddings_dir; "
                                 "auto = the one of the training, prism_latents beside the run folder; null = none")

    text: tuple[str, ...] = setting((), "texts to compare with each slide: cosine similarity, and the probability of "
                                    "each of several texts")
    labels_file: str | None = setting(None, "table (.xlsx, .csv, .tsv, .jsonl) or JSON {id: text}: caption only these "
                                      "slides and score the captions")
    id_column: str | None = setting(None, "column of the ids in --labels_file; default: by its name")
    text_column: str | None = setting(None, "column of the texts in --labels_file; default: by its name")
    slide_column: str | None = setting(None, "column of the slides in --labels_file; default: by its name")
    split_column: str | None = setting(None, "column of the splits in --labels_file; default: by its name")
    encoding: str | None = setting(None, "encoding of --labels_file, such as gb18030; default: recognized")
    reg2025: bool = setting(False, "score as the REG2025 challenge does: 0.15 (ROUGE + BLEU) + 0.4 keywords + 0.3 "
                            "embedding, with --reg_keywords and --reg_embedding")
    reg_keywords: str | None = setting(
        None, "with --reg2025: keyword model, a spaCy pipeline on this machine (folder or package, such as "
        "en_core_sci_lg) or package.module:function")
    reg_embedding: str | None = setting(
        None, "with --reg2025: embedding model, an encoder of transformers on this machine (folder, such as "
        "biobert-v1.1) or package.module:function")
    findings: tuple[str, ...] = setting((), "score findings too: shipped dictionaries (breast ...) or YAML files")
    prompts: str | None = setting(None, "zero-shot classification: YAML or JSON {class: [prompt, ...]}")
    classes_file: str | None = setting(None, "JSON {id: class}: score the classification")
    nearest: int = setting(0, "number of nearest training slides whose texts are shown (needs nearest.pt of the run); "
                           "0 = none", 0, 1000)
    rerank: str = setting("auto", "let a training text replace a caption if captioner and linear probe together find "
                          "it more probable (needs nearest.pt of the run); auto = where that was better on the "
                          "validation slides, unless sampling", choices=("auto", "true", "false"))
    wanted_accuracy: float = setting(
        0.95, "with --labels_file: show from which confidence on this share of captions, and of each field, is right",
        0, 1, open_low=True)
    abstain_below: tuple[str, ...] = setting((), "withhold captions and fields whose confidence is below this "
                                             "probability; FIELD=P for one field; 0 = none")

    template: str | None = setting(None, "captions follow this template: YAML file of a text with slots and their "
                                   "allowed values; auto = the one found in the training texts")
    choices: str | None = setting(None, "each caption is one of these texts: one on each line, or a YAML list")
    field_temperature: float | None = setting(
        None, "with --template or --choices: log probabilities of fields are divided by it, as fitted with "
        "--labels_file --split val; default: that of the checkpoint for auto, else 1", 0.01, 100)

    explain: str | None = setting(None, "explain the caption of one slide: write into this folder which tiles each "
                                  "token comes from")
    thumbnail: str | None = setting(None, "with --explain: a PNG or JPEG of the whole slide")
    thumbnail_scale: float | None = setting(
        None, "with --thumbnail: full-resolution slide pixels per thumbnail pixel; default: the thumbnail is assumed "
        "to end where the tiles end", 0, open_low=True)

    max_length: int | None = setting(
        None, "maximum caption length in tokens, begin and end token included; default: data.max_seq_len of the "
        "training, of Prism itself all its positions", 2)
    num_beams: int = setting(1, "beams of beam search; 1 = greedy search or sampling", 1, 64)
    do_sample: bool = setting(False, "sample instead of taking the most probable token")
    temperature: float = setting(1.0, "sampling: logits are divided by it", 0.01, 100)
    top_k: int = setting(0, "sampling: keep the k most probable tokens; 0 = all", 0)
    top_p: float = setting(1.0, "sampling: keep the most probable tokens up to this total probability; 1 = all", 0, 1,
                           open_low=True)
    repetition_penalty: float = setting(1.0, "above 1: makes tokens that already occurred less probable", 0.01, 100)
    no_repeat_ngram_size: int = setting(0, "no n-gram of this size occurs twice; 0 = off", 0)
    length_penalty: float = setting(1.0, "beam search: scores are divided by length ** length_penalty", -10, 10)
    seed: int = setting(0, "random seed of sampling", 0, 2**32 - 1)

    @classmethod
    def from_flags(cls, args: argparse.Namespace) -> InferenceOptions:
        """The checked options of parsed flags. Raises UserError."""
        options = cls()
        for field in dataclasses.fields(cls):
            value: Any = getattr(args, field.name)
            if isinstance(value, list):  # texts with commas of their own: not to be parsed as one text
                setattr(options, field.name, tuple(value))
            elif value is not None:
                set_field(options, field.name, field.name, value, f"--{field.name}")
        return options.check()

    @property
    def thresholds(self) -> Thresholds:
        """What --abstain_below withholds. Raises UserError."""
        return Thresholds.of(self.abstain_below)

    @property
    def mode(self) -> str:
        """serve, explain or caption."""
        if self.serve:
            return "serve"
        return "caption" if self.explain is None else "explain"

    def check(self) -> InferenceOptions:
        """Check what depends on more than one option. Returns self; raises UserError naming the flag."""
        for names in _EXACTLY_ONE:
            self._check_exactly_one(names)
        for name, modes in _MODES_OF.items():
            self._check_used(name, modes)
        if self.explain is not None and self.embeddings_file is None:
            raise UserError("--explain", "is for one slide", "give it with --embeddings_file")
        self._check_needed("language_model", "checkpoint")
        self._check_template()
        self._check_thresholds()
        for name, needed in _NEEDED_BY.items():
            self._check_needed(name, needed)
        if not all(text.strip() for text in self.text):
            raise UserError("--text", "is empty", "give a text, or leave --text out")
        if self.do_sample and self.num_beams > 1:
            raise UserError("--do_sample", "sampling over beams is not supported", "use --num_beams 1")
        return self

    def generation(self, trained_length: int) -> GenerationOptions:
        """The decoding options, as `models.generation.generate` takes them.

        Args:
            trained_length: `max_length` where none is given: `Captioner.trained_length`.
        """
        from prism import GenerationOptions  # torch: not for --help

        names = [field.name for field in dataclasses.fields(GenerationOptions)]
        given = {name: getattr(self, name) for name in names}
        return GenerationOptions(**given | {"max_length": self.max_length or trained_length})

    def _check_template(self) -> None:
        flag = "template" if self._is_given("template") else "choices"
        if not self._is_given(flag):
            if self._is_given("field_temperature"):
                raise UserError("--field_temperature", "needs --template or --choices", "add one, or leave it out")
            return
        if self._is_given("choices") and self._is_given("template"):
            raise UserError("--choices", "is not allowed with --template", "leave one of them out")
        for name in _FREE_ONLY:
            if self._is_given(name) and getattr(self, name) != "false":
                raise UserError(f"--{name}", f"does nothing with --{flag}", "leave it out")

    def _check_thresholds(self) -> None:
        thresholds = self.thresholds
        if not self._is_given("template") and not self._is_given("choices"):
            thresholds.require_known(None)

    def _is_given(self, name: str) -> bool:
        return getattr(self, name) != type(self).__dataclass_fields__[name].default

    def _check_used(self, name: str, modes: tuple[str, ...]) -> None:
        if self._is_given(name) and self.mode not in modes:
            why = f"without --{modes[0]}" if self.mode == "caption" else f"with --{self.mode}"
            raise UserError(f"--{name}", f"does nothing {why}", "leave it out")

    def _check_needed(self, name: str, needed: str) -> None:
        if self._is_given(name) and not self._is_given(needed):
            is_switch = isinstance(getattr(self, needed), bool)
            raise UserError(f"--{name}", f"needs --{needed}", f"add --{needed}{'' if is_switch else ' FILE'}")

    def _check_exactly_one(self, names: tuple[str, ...]) -> None:
        given = [f"--{name}" for name in names if self._is_given(name)]
        if not given:
            raise UserError("inference.py", f"one of {', '.join(f'--{name}' for name in names)} is required",
                            "see python inference.py --help")
        if len(given) > 1:
            raise UserError(given[1], f"is not allowed with {given[0]}", "leave one of them out")


def add_inference_flags(parser: argparse.ArgumentParser) -> None:
    """One flag per field of InferenceOptions, and --debug. A switch is given alone or with true or false."""
    for field in dataclasses.fields(InferenceOptions):
        how: dict[str, Any] = {"metavar": field.name.upper(), "help": help_of(field)}
        if isinstance(field.default, bool):
            how |= {"nargs": "?", "const": "true", "metavar": "true|false"}
        elif isinstance(field.default, tuple):
            how |= {"nargs": "+", "action": "extend"}
        elif field.metadata["choices"]:
            how["metavar"] = "|".join(field.metadata["choices"])
        parser.add_argument(f"--{field.name}", **how)
    add_debug_flag(parser)
