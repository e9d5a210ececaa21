"""`training.init_from`: a new run that starts from the weights of a trained model, with its vocabulary, extended by
what the new texts need. Optimizer, epochs and calibration start anew.

Shapes: V tokens of the vocabulary that the model was trained with, W of the new one, D width.
"""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.format import Checkpoint
from ..checkpoints.hf_folder import WEIGHTS, model_path, read_model
from ..common.distributed import World
from ..common.errors import UserError
from ..common.files import expand
from ..common.log import logger, notice
from ..config.auto import SIZE_SETTINGS, fill_open, value_of
from ..config.schema import Config, from_dict, same_decoder
from ..data.tokenizer import Tokenizer, tokenizer_from_dict
from ..models.build import describe_prism
from ..models.captioner import SAVED_AS, SlideCaptioner

_KEY = "training.init_from"
_PROBE = f"{SAVED_AS['decoder']}.img_context."
# What a decoder's weights depend on besides the vocabulary
_MUST_MATCH = ("model.decoder", *SIZE_SETTINGS, "model.image_dim", "model.ff_mult", "model.contrastive",
               "model.lora_rank", "model.freeze_decoder", "prism.image_tokens", "data.image_dim", "data.normalize")


@dataclass(frozen=True)
class StartingPoint:
    """A trained model whose weights a new run starts from.

    Attributes:
        checkpoint: Without the state of its training.
        config: Its settings.
        sha256: Of the file of its weights.
    """

    checkpoint: Checkpoint
    config: Config
    sha256: str

    @classmethod
    def load(cls, setting: str) -> StartingPoint:
        """Read a .pth, the best model in the folder of a run, or an exported folder. Raises UserError."""
        path = model_path(expand(setting))
        checkpoint = read_model(path)
        config = from_dict(checkpoint.config, str(path))
        return cls(checkpoint.weights_only(), config, _sha256(path))

    @property
    def where(self) -> str:
        """Its path, for messages."""
        return str(self.checkpoint.path)

    def describe(self) -> dict[str, Any]:
        """What checkpoints of the new run and the model card say of it: file, SHA-256, epoch. No local path."""
        path = self.checkpoint.path
        return {"source": f"{path.parent.name}/{path.name}", "sha256": self.sha256,
                "epoch": self.checkpoint.progress.get("epoch")}

    def tokenizer(self, kind: str) -> Tokenizer:
        """The tokenizer of the model.

        Args:
            kind: Value of `data.tokenizer` of the new run.

        Raises:
            UserError: The new run wants one of another kind.
        """
        tokenizer = tokenizer_from_dict(self.checkpoint.tokenizer, self.where)
        own_kind = self.config.data.tokenizer.partition(":")[0]
        if kind.partition(":")[0] != own_kind:
            raise UserError(_KEY, f"its model has data.tokenizer={self.config.data.tokenizer}, this run has {kind}",
                            f"set data.tokenizer={self.config.data.tokenizer}: a vocabulary of texts is extended")
        return tokenizer

    def adopt_sizes(self, config: Config) -> Config:
        """A copy of `config` in which the sizes that are still `auto` or null are those of the model.

        Raises:
            UserError: A size that is given, or another setting that the weights depend on, is not that of the model.
        """
        config = copy.deepcopy(config)
        fill_open(config, {key: value_of(self.config, key) for key in SIZE_SETTINGS})
        for key in _MUST_MATCH:
            self._check_matches(key, config)
        if not self.config.prism.freeze and config.prism.freeze:
            raise UserError(_KEY, "its model was trained together with Prism (prism.freeze=false)",
                            "set prism.freeze=false")
        return config

    def _check_matches(self, key: str, config: Config) -> None:
        """Raise UserError if the new run has another setting than the model."""
        own, wanted = value_of(self.config, key), value_of(config, key)
        is_same = same_decoder(own, wanted) if key == "model.decoder" else own == wanted
        if not is_same:
            raise UserError(_KEY, f"its model has {key}={own}, this run has {wanted}", f"set {key}={own}")


def open_starting_point(config: Config, resumed: Checkpoint | None, world: World) -> StartingPoint | None:
    """The model of `training.init_from`, None without it and in a run that is resumed, which has started already.

    Raises:
        UserError: It cannot be read, or the resumed run has not started from any model.
    """
    setting = config.training.init_from
    if setting is None:
        return None
    if resumed is None:
        return _load_on_all_ranks(setting, world)
    if resumed.init_from is None:
        raise UserError(_KEY, f"is set, but the run of {resumed.path.name} did not start from other weights",
                        f"leave it out to resume, or choose another --output_dir for a run from {setting}")
    logger.info("%s: not read again, as the run that is resumed has started from %s", _KEY,
                resumed.init_from.get("source"))
    return None


def init_from_of(resumed: Checkpoint | None, start: StartingPoint | None) -> dict[str, Any] | None:
    """What the checkpoints of a run say of the model it started from; a resumed run says what it has said before."""
    if resumed:
        return resumed.init_from
    return start.describe() if start else None


def _load_on_all_ranks(setting: str, world: World) -> StartingPoint:
    """Each rank reads the file itself, as broadcasting it would take twice its size; errors are those of rank 0."""
    point = None

    def load() -> None:
        nonlocal point
        point = StartingPoint.load(setting)

    world.broadcast_object(load)
    return point or StartingPoint.load(setting)


def take_weights(model: SlideCaptioner, start: StartingPoint, old: int, new: int) -> None:
    """Load the weights of a trained model into a new one, and log what was taken.

    Of a matrix with a row for each token, (V, D) there and (W, D) here, the rows of the known tokens are taken. Tokens
    are only ever added at the end of a vocabulary, so these are the first rows.

    Args:
        old: V.
        new: W.

    Raises:
        UserError: Other weights than this model's, or its Prism was another one.
    """
    _check_same_prism(model, start)
    own, saved = model.saved_state(), start.checkpoint.model
    state = _extended(saved, own, old, new)
    if start.config.prism.freeze:  # a Prism that is trained from here on starts from the published weights
        state |= _named(own, f"{SAVED_AS['prism']}.")
    for name in _named(state, _PROBE):
        del state[name]
    state |= _probe_tokens(own, saved)
    model.load_saved_state(state, start.where)
    tokens = f"the vocabulary of {old} tokens"
    if new > old:
        tokens = f"the embeddings of {old} tokens, {new - old} more are new"
    notice("%s: started from %s, epoch %s (sha256 %s): %d weights taken, %s; optimizer, epochs and calibration start "
           "anew", _KEY, start.describe()["source"], start.checkpoint.progress.get("epoch"), start.sha256[:12],
           len(saved), tokens, indent=2)


def _probe_tokens(own: dict[str, torch.Tensor], saved: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of the new model's probe tokens, if it has any.

    Its probe is fitted to its own slides and may predict other text tokens: what the old model has learned of a token
    that both predict is taken, provided that it had as many probe tokens.
    """
    weights = _named(own, _PROBE)
    project, norm, ids = (_PROBE + name for name in ("project.weight", "norm.weight", "token_ids"))
    if project not in weights or project not in saved or len(weights[project]) != len(saved[project]):
        return weights
    column_of = {token: column for column, token in enumerate(saved[ids].tolist())}
    columns = weights[project].clone()
    for column, token in enumerate(weights[ids].tolist()):
        if token in column_of:
            columns[:, column] = saved[project][:, column_of[token]]
    return weights | {project: columns, norm: saved[norm]}


def _named(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The weights whose names begin with `prefix`."""
    return {name: weight for name, weight in state.items() if name.startswith(prefix)}


def _extended(saved: dict[str, torch.Tensor], own: dict[str, torch.Tensor], old: int,
              new: int) -> dict[str, torch.Tensor]:
    """The saved weights, those of a row for each token with the model's own rows for the new tokens behind."""
    state = dict(saved)
    for name, weight in saved.items():
        if name not in own or weight.shape == own[name].shape:
            continue
        if _is_extended(weight, own[name], old, new):
            new_rows = own[name][len(weight):]
            state[name] = torch.cat([weight, new_rows.to(weight.dtype)])
    return state


def _is_extended(weight: torch.Tensor, own: torch.Tensor, old: int, new: int) -> bool:
    """Whether a weight has a row for each token of the old vocabulary, and the model's one for each of the new."""
    return len(weight) == old and len(own) == new and weight.shape[1:] == own.shape[1:]


def _check_same_prism(model: SlideCaptioner, start: StartingPoint) -> None:
    """Raises UserError if the decoder has learned to read the output of another Prism, or to stand on other frozen
    weights of a text side, which no checkpoint holds."""
    about = start.checkpoint.prism
    if about.get("sha256") != model.prism.sha256 and start.config.prism.freeze:
        raise UserError(_KEY, f"its model was trained on other Prism weights ({about.get('source')})",
                        "give the same weights with prism.weights")
    if about.get("text_sha256") != describe_prism(model).get("text_sha256"):
        source = about.get("text_source", about.get("source"))
        raise UserError(_KEY, f"its model was trained on another text decoder ({source})",
                        "give the same one with prism.weights or model.decoder")


def _sha256(path: Path) -> str:
    with open(path / WEIGHTS if path.is_dir() else path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
