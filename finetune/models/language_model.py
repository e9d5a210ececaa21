"""The decoder `model.decoder: hf:NAME_OR_FOLDER`: a pretrained causal language model behind a soft prefix.

The language model reads [begin token, prefix, text] and stays as it is; what trains is the prefix, the contrastive
heads, one end token and, as configured, nothing of the model, low-rank adapters, or all of it. The end token has two
vectors of its own, as input and as row of the head, at first those of the model: a report must end, even where the
model's own end of text is hardly trained. Texts are compared with slides by the state at that token after the text
alone.

Shapes: b slides, t text tokens, n image tokens of a slide, q vectors of the prefix, m real text positions, v size of
the vocabulary, w width of the language model.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from coca_pytorch import CoCaOutputs, ContrastiveCaptioner, EmbedToLatents, PackedLinears, equal_text_groups

from ..common.errors import UserError
from ..config.schema import Config, ModelConfig
from ..data.tokenizer import FastTokenizer, Tokenizer
from .adapters import inject_adapters
from .language_model_folder import (
    LanguageModelFolder,
    cache_argument,
    check_model,
    embedding_size,
    empty_model,
    find_language_model,
    load_model,
    new_cache,
)
from .soft_prefix import SoftPrefix

_CHUNK = 1 << 25  # logits of the caption loss in memory at a time: 128 MB


@dataclass(frozen=True)
class LanguageModel:
    """A language model with its weights, or without them to compare shapes, and where it is from.

    Attributes:
        sha256: Fingerprint of the weights in the files, None without weights.
    """

    model: nn.Module
    folder: LanguageModelFolder
    sha256: str | None

    @classmethod
    def load(cls, source: str) -> LanguageModel:
        """With weights, tried out. source: as in `model.decoder`, without `hf:`. Raises UserError."""
        folder = find_language_model(source)
        model = load_model(folder).eval()
        check_model(model, folder)
        return cls(model, folder, folder.sha256())

    @classmethod
    def empty(cls, source: str) -> LanguageModel:
        """Without weights. Raises UserError."""
        folder = find_language_model(source)
        return cls(empty_model(folder), folder, None)


def language_model_tokenizer(source: str, normalize: bool) -> FastTokenizer:
    """The tokenizer of a language model. Raises UserError."""
    folder = find_language_model(source)
    return FastTokenizer.of_language_model(folder.path, normalize, folder.end_ids())


class LanguageModelCache:
    """What decoding keeps between two tokens: at first the prefix (b, q, w), then keys and values of all layers.

    Attributes:
        packed: Context in which tokens are computed, a hook for faster products (`PackedLinears`).
    """

    def __init__(self, prefix: Tensor, past: Any) -> None:
        self.prefix: Tensor | None = prefix
        self.past = past
        self.packed: AbstractContextManager = nullcontext()

    def repeat(self, n: int) -> None:
        """Expand each sequence to n neighbours: a b -> a a b b for n = 2."""
        if self.prefix is not None:
            self.prefix = self.prefix.repeat_interleave(n, 0)
        else:
            self.past.batch_repeat_interleave(n)

    def reorder(self, rows: Tensor) -> None:
        """Sequence i continues the current sequence rows[i], as beam search selects."""
        if self.prefix is not None:
            self.prefix = self.prefix[rows]
        else:
            self.past.reorder_cache(rows)

    def select(self, rows: Tensor) -> LanguageModelCache:
        """A new cache whose sequence i continues sequence rows[i]; this one stays as it is."""
        selected = copy(self)
        selected.past = copy(self.past)
        selected.past.layers = [copy(layer) for layer in self.past.layers]
        selected.reorder(rows)
        return selected


class LanguageModelDecoder(ContrastiveCaptioner):
    """A language model with a soft prefix, as `CaptionDecoder`. See the module for what it does.

    Attributes:
        lm: The language model as transformers has it.
        end_input, end_output: (w,), the end token as an input and as a row of the head.
        never_generated: Ids that captions must not contain: chat markers and rows without a token.
        img_context: None, or what makes further tokens of the pooled ones, as in `coca_pytorch.CoCa`.
    """

    supports = frozenset({"grad_checkpointing", "probe_tokens", "template"})

    def __init__(self, language_model: LanguageModel, tokenizer: Tokenizer, config: Config) -> None:
        model = config.model
        super().__init__(model.caption_loss_weight, model.contrastive_loss_weight, config.training.label_smoothing)
        self.lm, self._folder, self._sha256 = language_model.model, language_model.folder, language_model.sha256
        self.img_context: nn.Module | None = None
        self._grad_checkpointing = False
        self.end_id = tokenizer.eos_id
        table, head = self.lm.get_input_embeddings(), self.lm.get_output_embeddings()
        rows, width = table.weight.shape
        special = getattr(tokenizer, "special_ids", frozenset())
        self.never_generated = tuple(sorted({*special, *range(len(tokenizer), rows)} - {self.end_id}))
        self.prefix = SoftPrefix(
            dim=model.dim, image_dim=model.image_dim, num_queries=model.num_img_queries, heads=model.heads,
            dim_head=model.dim_head, width=width, size=embedding_size(self.lm))
        with torch.no_grad():
            end_input = table(torch.tensor(self.end_id, device=table.weight.device))
            self.end_input = nn.Parameter(end_input.float().clone())
            self.end_output = nn.Parameter(head.weight[self.end_id].float().clone())
        self.img_to_latents = EmbedToLatents(model.dim, model.dim_latents)
        self.text_to_latents = EmbedToLatents(width, model.dim_latents)
        self.init_temperature(model.contrastive)
        self._choose_trained(model)

    def _choose_trained(self, model: ModelConfig) -> None:
        """Freeze the language model, put adapters beside its matrices, or train all of it. What trains is float32."""
        self.lm.requires_grad_(not model.freeze_decoder)
        if model.lora_rank:
            add_adapters(self.lm, model.lora_rank)
        for parameter in self.lm.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()

    @property
    def max_positions(self) -> int | None:
        """Longest text in tokens: what the prefix leaves of the model's positions."""
        positions = getattr(self.lm.config.get_text_config(), "max_position_embeddings", None)
        if positions is None:
            return None
        further = self.img_context.count if self.img_context else 0
        return positions - (len(self.prefix.queries) - 1) - further

    @property
    def grad_checkpointing(self) -> bool:
        """Whether the layers of the language model are computed again in the backward pass instead of kept."""
        return self._grad_checkpointing

    @grad_checkpointing.setter
    def grad_checkpointing(self, wanted: bool) -> None:
        self._grad_checkpointing = wanted
        name = "activation_checkpointing"  # until transformers 5.20 gradient_checkpointing
        if not hasattr(self.lm, f"{name}_enable"):
            name = "gradient_checkpointing"
        if wanted:
            getattr(self.lm, f"{name}_enable")({"use_reentrant": False})
        else:
            getattr(self.lm, f"{name}_disable")()

    def cast_frozen(self, dtype: torch.dtype) -> None:
        """Keep the frozen weights in `dtype`; what trains stays float32."""
        for parameter in self.lm.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)

    def describe(self) -> dict[str, Any]:
        """Where the language model is from, its fingerprint and its licence."""
        return {"text_source": self._folder.source, "text_revision": self._folder.revision,
                "text_sha256": self._sha256, "text_licence": self._folder.licence()}

    # --- the two passes

    def embed_image(self, *, image_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """image tokens (b, n, D) -> image embeddings (b, d) and the prefix (b, q, w)."""
        embeds, pooled = self.prefix.pool_image(image_tokens)
        if self.img_context is not None:
            pooled = self.img_context(image_tokens, pooled)
        return embeds, self.prefix(pooled)

    def embed_text(self, text: Tensor, text_mask: Tensor) -> tuple[Tensor, Tensor]:
        """text, text_mask (b, t) -> text embeddings (b, w) and text tokens (b, t, w): the text without a prefix, and
        the end token right after its last token."""
        ends = torch.arange(text.shape[1] + 1, device=text.device) == text_mask.sum(1, keepdim=True)  # (b, t + 1)
        embeds = self._embed(F.pad(text, (0, 1), value=self.end_id))
        hidden = self._run(torch.where(ends.unsqueeze(-1), self.end_input.to(embeds.dtype), embeds))
        return hidden[ends].float(), hidden[:, :-1]

    def outputs(self, text: Tensor, labels: Tensor, *, image_tokens: Tensor, text_mask: Tensor,
                caption: bool = True, logits: bool = False) -> CoCaOutputs:
        """The parts of the losses of a batch, as `CoCa.outputs`. text, labels, text_mask: (b, t)."""
        captions = caption and (self.caption_loss_weight or logits)
        # first of all: here the host waits for the device, which then has nothing else to do
        real = text_mask.flatten().nonzero().squeeze(1) if captions else None  # (m,)
        image_embeds, prefix = self.embed_image(image_tokens=image_tokens)
        text_latents = image_latents = None
        if self.contrastive_loss_weight or logits:
            text_latents = self.text_to_latents(self.embed_text(text, text_mask)[0])
            image_latents = self.img_to_latents(image_embeds)
        loss, all_logits = torch.zeros((), device=text.device), None
        num_tokens = 0
        if captions:
            hidden = self._after_prefix(text, prefix)
            hidden_of_labels, num_tokens = hidden.flatten(0, 1).index_select(0, real), len(real)
            loss = self._caption_loss(hidden_of_labels, labels.flatten()[real])
            if logits:
                all_logits = self._logits(hidden)
        groups = equal_text_groups(text, text_mask)
        return CoCaOutputs(text_latents, image_latents, groups, loss, num_tokens, all_logits)

    def forward(self, text: Tensor, *, image_tokens: Tensor, text_mask: Tensor) -> Tensor:
        """Next-token logits (b, t, v), float32, after each token of text (b, t)."""
        return self._logits(self._after_prefix(text, self.embed_image(image_tokens=image_tokens)[1]))

    @torch.no_grad()
    def label_log_probabilities(self, text: Tensor, labels: Tensor, *, image_tokens: Tensor, text_mask: Tensor,
                                temperature: float = 1.0) -> Tensor:
        """As of `ContrastiveCaptioner`, in pieces: logits of a batch can be gigabytes. Without graph."""
        hidden = self._after_prefix(text, self.embed_image(image_tokens=image_tokens)[1])
        found = [(self._logits(piece) / temperature).log_softmax(-1).gather(1, ids.unsqueeze(1)).squeeze(1)
                 for piece, ids in self._pieces(hidden[text_mask], labels[text_mask])]
        return torch.zeros(text.shape, device=text.device).masked_scatter(text_mask, torch.cat(found))

    # --- decoding

    @torch.no_grad()
    def start_decoding(self, prefix: Tensor) -> LanguageModelCache:
        """prefix: (b, q, w), the second result of `embed_image`. Returns the cache for `decode_step`."""
        cache = LanguageModelCache(prefix, new_cache(self.lm))
        if PackedLinears.suit(prefix.device):
            cache.packed = PackedLinears([self.lm], len(prefix))
        return cache

    @torch.no_grad()
    def decode_step(self, token_ids: Tensor, cache: LanguageModelCache) -> Tensor:
        """token_ids (b, t), the tokens after those in the cache -> next-token logits (b, v)."""
        with cache.packed:
            return self._logits(self._decode(token_ids, cache)[:, -1])

    @torch.no_grad()
    def decode_text(self, token_ids: Tensor, cache: LanguageModelCache) -> Tensor:
        """As `decode_step`, with the logits after each token, (b, t, v)."""
        with cache.packed:
            return self._logits(self._decode(token_ids, cache))

    # --- parts of a pass

    def _decode(self, token_ids: Tensor, cache: LanguageModelCache) -> Tensor:
        """token_ids (b, t) -> hidden states (b, t, w), for the begin token that of the prefix; fills the cache."""
        prefix, cache.prefix = cache.prefix, None
        embeds = self._embed(token_ids) if prefix is None else self._join(token_ids, prefix)
        out = self.lm.base_model(inputs_embeds=embeds, use_cache=True, **{cache_argument(self.lm): cache.past})
        return out.last_hidden_state[:, -token_ids.shape[1]:]

    def _embed(self, ids: Tensor) -> Tensor:
        """Token embeddings (b, t, w)."""
        return self.lm.get_input_embeddings()(ids)

    def _join(self, text: Tensor, prefix: Tensor) -> Tensor:
        """[begin token, prefix, text], (b, q + t, w). Begin first: it is where these models rest their attention, and
        where it doubles as the end of a document, what precedes it would count as another one."""
        embeds = self._embed(text)
        return torch.cat([embeds[:, :1], prefix.to(embeds.dtype), embeds[:, 1:]], dim=1)

    def _run(self, embeds: Tensor) -> Tensor:
        """(b, t, w) -> last hidden states (b, t, w). No mask: texts are padded on the right, where no token looks."""
        return self.lm.base_model(inputs_embeds=embeds, use_cache=False).last_hidden_state

    def _after_prefix(self, text: Tensor, prefix: Tensor) -> Tensor:
        """Hidden states (b, t, w) that the next tokens are predicted from; for the begin token that of the prefix."""
        return self._run(self._join(text, prefix))[:, prefix.shape[1]:]

    def _logits(self, hidden: Tensor) -> Tensor:
        """(..., w) -> (..., v) in float32, with the own end token."""
        head = self.lm.get_output_embeddings()
        logits = head(hidden).float()
        end = (hidden.float() * self.end_output).sum(-1)
        logits[..., self.end_id] = end if head.bias is None else end + head.bias[self.end_id].float()
        return logits

    def _caption_loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Summed cross-entropy of labels (m,) after hidden states (m, w).

        In pieces whose logits are computed again in the backward pass: at 152 000 words those of 1000 tokens, with
        their softmax and gradient, are 2 GB.
        """
        pieces = self._pieces(hidden, labels)
        total = torch.zeros((), device=hidden.device)
        for piece in pieces:
            if torch.is_grad_enabled() and len(pieces) > 1:
                total = total + checkpoint(self._loss_of_piece, *piece, use_reentrant=False)
            else:
                total = total + self._loss_of_piece(*piece)
        return total

    def _pieces(self, hidden: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Hidden states (m, w) and labels (m,) in pieces whose logits fit into memory."""
        rows = max(1, _CHUNK // self.lm.get_output_embeddings().weight.shape[0])
        return list(zip(hidden.split(rows), labels.split(rows), strict=True))

    def _loss_of_piece(self, hidden: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self._logits(hidden), labels, reduction="sum", label_smoothing=self.smoothing)


def build_language_model(config: Config, tokenizer: Tokenizer, language_model: LanguageModel) -> LanguageModelDecoder:
    """The decoder with what trains of it, as `model` says. Raises UserError."""
    rows = language_model.model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:  # never resized: a new row would be random, in a model that is not to change
        raise UserError("tokenizer", f"has {len(tokenizer)} tokens, {language_model.folder.source} has {rows}",
                        "use the tokenizer that came with the model")
    return LanguageModelDecoder(language_model, tokenizer, config)


def add_adapters(model: nn.Module, rank: int) -> None:
    """Low-rank adapters beside all matrices of a language model but its head; they alone train. Raises UserError."""
    modules = {name: module for name, module in model.named_modules() if module is not model.get_output_embeddings()}
    turned = [name for name, module in modules.items() if type(module).__name__ == "Conv1D"]  # of GPT-2
    plain = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
    inject_adapters(model, rank, turned or plain, is_transposed=bool(turned))
