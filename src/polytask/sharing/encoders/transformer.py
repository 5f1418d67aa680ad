"""A pretrained text encoder from a Hugging Face directory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt, field_validator, model_validator
from torch import Tensor, nn
from torch.nn import functional

from polytask.core.errors import BadValue, CheckpointError, MissingInput
from polytask.core.inputs import InputSchema
from polytask.core.validation import Strict, validated
from polytask.sharing.encoders import split
from polytask.sharing.encoders.contract import Encoder, Tokens, evaluating, require, take
from polytask.sharing.encoders.pretrained import import_transformers, locate
from polytask.sharing.spec import EncoderOptions

DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout", "embedding_dropout")
"""What architectures call their dropout probabilities in config.json."""


class LastLayers(Strict):
    """`trainable: {last: n}`: the last n transformer layers learn; everything below and around them is frozen."""

    last: PositiveInt


class Transformer(Encoder):
    """Token ids -> transformer -> one vector a row.

    Source: Devlin et al. 2019 (arXiv:1810.04805) for the encoder; Reimers and Gurevych 2019 (arXiv:1908.10084), section
    3, for the pooled vector (their MEAN and CLS strategies).
    Departures: the weights and the architecture are the directory's; the pooler that some checkpoints carry is left
    out, because `cls` means the first token's last hidden state here. What is frozen runs in evaluation mode always
    (no dropout), so its outputs may be computed once (`precompute`).
    Cost: about 12 d^2 L + 2 d L^2 multiply-adds a layer for a row of L tokens; with the lower k layers cached their
    share is saved, at 4 d L bytes a row (4 d bytes where all is frozen).
    """

    class Options(EncoderOptions):
        """Attributes:
        pretrained: a Hugging Face directory, `package:NAME/FOLDER` or a hub id in the local cache; weights are loaded.
        config: instead, the content of a config.json (with `model_type`); weights are random until loaded. What a
            model was built from holds this one, so that a checkpoint needs no original directory.
        trainable: which layers learn. pooling: mean over tokens, the first token, or none: a sequence.
        normalize: to L2 length 1. dropout: replaces every dropout probability of the configuration.
        """

        kind: Literal["transformer"] = "transformer"
        pretrained: str | None = None
        config: dict[str, Any] | None = None
        trainable: Literal["all", "none"] | LastLayers = "all"
        pooling: Literal["mean", "cls", "none"] = "mean"
        normalize: bool = False
        dropout: float | None = Field(default=None, ge=0, lt=1)

        @field_validator("trainable", mode="before")
        @classmethod
        def _which_layers(cls, value: Any) -> Any:
            if isinstance(value, Mapping):
                return validated(LastLayers, value, "model.encoder.trainable")
            if value not in ("all", "none") and not isinstance(value, LastLayers):
                raise BadValue("model.encoder.trainable", value, "all, none or {last: n}")
            return value

        @model_validator(mode="after")
        def _one_origin(self) -> "Transformer.Options":
            if (self.pretrained is None) == (self.config is None):
                given = "neither" if self.pretrained is None else "both"
                raise BadValue("encoder 'transformer': pretrained and config", given, "exactly one of them")
            return self

    model: Any  # a transformers.PreTrainedModel

    def __init__(self, options: Options, schema: InputSchema) -> None:
        super().__init__()
        require("transformer", schema, ["text"])
        self.model = _load(options)
        self.pooling = options.pooling
        self.gives = "sequence" if options.pooling == "none" else "vector"
        self.normalize = options.normalize
        self.width: int = self.model.config.hidden_size
        self.layers: int = self.model.config.num_hidden_layers
        self.frozen_layers: int | None = _frozen_layers(options, self.layers)
        self._split_is_exact: bool | None = None
        self._freeze()
        self.train()
        config = {key: value for key, value in self.model.config.to_diff_dict().items() if key not in _UNSTORED}
        stored = {"pretrained": None, "config": {**config, "model_type": self.model.config.model_type}}
        self.options = options.model_copy(update=stored)

    @property
    def precomputes(self) -> bool:
        """True where something is frozen, so that `precompute` saves work."""
        return self.frozen_layers is not None

    def forward(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B width"] | Tokens:
        mask = take(inputs, "attention_mask")
        if "hidden" in inputs:
            hidden = self._after_frozen(inputs["hidden"].to(self.model.dtype), mask)
        else:
            hidden = self.model(input_ids=self._tokens(inputs), attention_mask=mask).last_hidden_state
        if self.pooling == "none":
            hidden = functional.normalize(hidden, dim=-1) if self.normalize else hidden
            return Tokens(hidden, mask.bool())
        pooled = hidden[:, 0] if self.pooling == "cls" else masked_mean(hidden, mask)
        return functional.normalize(pooled, dim=-1) if self.normalize else pooled

    @torch.no_grad()
    def precompute(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inputs with `hidden`, what the frozen layers make of the tokens, in place of `input_ids`.

        `hidden` is [B, L, d]; where all is frozen it is the pooled vector [B, 1, d] with a mask of ones. `forward`
        takes either form. The first call checks that both routes agree on this architecture.
        """
        if self.frozen_layers is None:
            raise MissingInput("encoder 'transformer' with trainable: all has no frozen layers to compute in advance")
        tokens, mask = self._tokens(inputs), inputs["attention_mask"]
        rest = {key: value for key, value in inputs.items() if key not in ("input_ids", "attention_mask")}
        if self.frozen_layers == self.layers:
            hidden = self.model(input_ids=tokens, attention_mask=mask).last_hidden_state
            if self.pooling == "none":
                return {**rest, "hidden": hidden, "attention_mask": mask}
            pooled = hidden[:, :1] if self.pooling == "cls" else masked_mean(hidden, mask).unsqueeze(1)
            return {**rest, "hidden": pooled, "attention_mask": torch.ones_like(mask[:, :1])}
        self._check_split(inputs, self.frozen_layers)
        hidden = split.lower(self.model, self.frozen_layers, tokens, mask)
        return {**rest, "hidden": hidden, "attention_mask": mask}

    def train(self, mode: bool = True) -> "Transformer":
        """Training mode for what learns; the frozen part stays in evaluation mode."""
        super().train(mode)
        if self.frozen_layers is not None:
            self.model.eval()
            for layer in self._learning():
                layer.train(mode)
        return self

    def _learning(self) -> list[nn.Module]:
        if self.frozen_layers == self.layers:
            return []
        return list(split.find_layers(self.model, self.layers)[1])[self.frozen_layers :]

    def _freeze(self) -> None:
        if self.frozen_layers is None:
            return
        self.model.requires_grad_(False)
        for layer in self._learning():
            layer.requires_grad_(True)

    def _after_frozen(self, hidden: Tensor, mask: Tensor) -> Tensor:
        if self.frozen_layers is None:
            raise MissingInput("input 'hidden' is the output of frozen layers, and with trainable: all there are none")
        if hidden.dim() != 3 or hidden.shape[:2] != mask.shape or hidden.shape[2] != self.width:
            expected = f"[rows, tokens, {self.width}], with attention_mask {list(mask.shape)}"
            raise BadValue("input 'hidden'", list(hidden.shape), expected)
        if self.frozen_layers == self.layers:
            return hidden
        return split.upper(self.model, self.frozen_layers, hidden, mask)

    def _tokens(self, inputs: Mapping[str, Tensor]) -> Tensor:
        tokens, mask = take(inputs, "input_ids"), take(inputs, "attention_mask")
        if tokens.dim() != 2 or tokens.shape != mask.shape:
            raise BadValue("input 'input_ids'", list(tokens.shape), f"[rows, tokens], as the mask {list(mask.shape)}")
        most = getattr(self.model.config, "max_position_embeddings", None)
        if most is not None and tokens.shape[1] > most:
            raise BadValue("input 'input_ids'", list(tokens.shape), f"at most {most} tokens a row")
        return tokens

    def _check_split(self, inputs: Mapping[str, Tensor], layers: int) -> None:
        """An architecture whose layers depend on more than hidden states and mask must not be cached silently wrong."""
        if self._split_is_exact:
            return
        few = {key: inputs[key][:2] for key in ("input_ids", "attention_mask")}
        with evaluating(self.model):
            whole = self.model(**few).last_hidden_state
            hidden = split.lower(self.model, layers, few["input_ids"], few["attention_mask"])
            parts = split.upper(self.model, layers, hidden, few["attention_mask"])
        real = few["attention_mask"].bool()
        self._split_is_exact = bool(torch.allclose(whole[real], parts[real], rtol=1e-3, atol=1e-4))
        if not self._split_is_exact:
            kind, worst = type(self.model).__name__, float((whole - parts)[real].abs().max())
            raise BadValue(
                f"cached layers of {kind}", f"off by {worst:.2g}", "an architecture whose layers can be split"
            )


_UNSTORED = ("architectures", "_name_or_path", "transformers_version", "dtype", "torch_dtype")


def masked_mean(hidden: Float[Tensor, "B L d"], mask: Tensor) -> Float[Tensor, "B d"]:
    """The mean over the tokens that the mask marks; zeros for a row without tokens."""
    weights = mask.to(hidden.dtype).unsqueeze(-1)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def _frozen_layers(options: Transformer.Options, layers: int) -> int | None:
    if options.trainable == "all":
        return None
    if options.trainable == "none":
        return layers
    if options.trainable.last > layers:
        raise BadValue("encoder 'transformer': trainable.last", options.trainable.last, f"1 to {layers}, its layers")
    return layers - options.trainable.last


def _load(options: Transformer.Options) -> Any:
    import_transformers()
    from transformers import AutoConfig, AutoModel

    if options.config is not None:
        values = dict(options.config)
        if "model_type" not in values:
            raise BadValue("encoder 'transformer': config", sorted(values), "a config.json's content with 'model_type'")
        config = AutoConfig.for_model(**values)
    else:
        directory = locate(options.pretrained or "")
        config = AutoConfig.from_pretrained(directory)
    if options.dropout is not None:
        _set_dropout(config, options.dropout)
    if options.config is not None:
        model = AutoModel.from_config(config)
    else:
        model = _load_weights(directory, config)
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model.float()


def _load_weights(directory: Path, config: Any) -> Any:
    """The model with the directory's weights; a weight that is missing there is an error, not a random start."""
    from transformers import AutoModel
    from transformers.utils import logging

    shows_bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model, found = AutoModel.from_pretrained(directory, config=config, output_loading_info=True)
    except (OSError, RuntimeError) as error:  # no weights; weights of other shapes
        raise CheckpointError(f"pretrained {directory}: {str(error).strip().splitlines()[0]}") from error
    finally:
        if shows_bar:
            logging.enable_progress_bar()
    missing = sorted(name for name in found["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise CheckpointError(
            f"pretrained {directory}: {len(missing)} weights are missing, the first is {missing[0]!r}"
        )
    return model


def _set_dropout(config: Any, probability: float) -> None:
    known = [name for name in DROPOUT if hasattr(config, name)]
    if not known:
        raise BadValue("encoder 'transformer': dropout", probability, f"null, as {config.model_type} has none to set")
    for name in known:
        setattr(config, name, probability)
