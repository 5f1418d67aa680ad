"""A large language model, a small one and its experts as one model whose logits are fused at every step.

What `fusion.fuse` finds for every row and position is this model's output. It generates as any model of transformers
does, greedily, by sampling or with beams, and each of its parts keeps a cache of its own. Needs the extra `text`.
"""

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from polytask.core.errors import BadValue, Inconsistent, MissingExtra
from polytask.merging.fusion import MOST, fuse
from polytask.merging.references import locate, parse
from polytask.merging.tokenizers import require_same_tokens

try:
    from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
    from transformers.utils import ModelOutput
except ImportError as error:
    raise MissingExtra("transformers", "text", "fusing the logits of language models") from error


@dataclass
class FusedOutput(ModelOutput):
    """Attributes:
    logits: [B, L, V], fused.
    weights: [B, L, T], of each expert.
    past_key_values: the caches, where they were asked for.
    """

    logits: Tensor | None = None
    weights: Tensor | None = None
    past_key_values: "Caches | None" = None


class Caches:
    """One of each part, which grow together, and how many tokens they have seen."""

    is_compileable = False

    def __init__(self, each: Sequence[Any], length: int) -> None:
        self.each, self.length = list(each), length

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        for cache in self.each:
            cache.reorder_cache(beam_idx)


class FusedLanguageModel(PreTrainedModel, GenerationMixin):
    """Called as its large model is: `forward(input_ids, attention_mask)`, `generate(...)`.

    Args:
        large: a causal language model.
        base: a small one with the same tokens.
        experts: name -> a fine-tune of the base.
        most, together: of `fusion.fuse`.
        vocabulary: how many tokens count, the first of every part's; for parts whose logits are padded to different
            sizes. Without it, sizes must be equal.

    Raises: Inconsistent where vocabularies differ in size; BadValue for a model that is no decoder alone.

    Cost: a pass of every part, one after the other, and the search (`fusion`).
    """

    main_input_name = "input_ids"

    def __init__(
        self,
        large: PreTrainedModel,
        base: PreTrainedModel,
        experts: Mapping[str, PreTrainedModel],
        *,
        most: float = MOST,
        together: bool = False,
        vocabulary: int | None = None,
    ) -> None:
        parts = _named(large, base, experts)
        tokens = _tokens(parts, vocabulary)
        config = copy.deepcopy(large.config)
        config.get_text_config().vocab_size = tokens
        config._attn_implementation = "eager"  # of this class, which has no attention of its own
        super().__init__(config)
        self.generation_config = copy.deepcopy(large.generation_config)
        self.names, self.most, self.together, self.vocabulary = list(experts), most, together, tokens
        self.parts = nn.ModuleList(parts.values())

    @classmethod
    def of_directories(cls, large: str, base: str, experts: Mapping[str, str], **options: Any) -> "FusedLanguageModel":
        """From Hugging Face directories, or hub ids in the local cache; nothing is downloaded.

        Args:    options: as above.

        Raises: Inconsistent where the directories' tokenizers differ.
        """
        paths = {name: _directory(name, text) for name, text in _named(large, base, experts).items()}
        require_same_tokens(paths)
        first, second, *rest = (
            AutoModelForCausalLM.from_pretrained(path, local_files_only=True) for path in paths.values()
        )
        return cls(first, second, dict(zip(experts, rest, strict=True)), **options)

    def forward(
        self,
        input_ids: Int[Tensor, "B L"],
        attention_mask: Int[Tensor, "B S"] | None = None,
        past_key_values: Caches | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool = True,
    ) -> FusedOutput:
        """Fused logits of the last `logits_to_keep` positions, of all if 0; with caches the ids are those that follow.

        Args:
            attention_mask: of the caches' positions too; padding is on the left.
            return_dict: what is given is never a tuple.
        """
        if not return_dict:
            raise BadValue("return_dict", return_dict, "True", "logit fusion")
        caches = [None] * len(self.parts) if past_key_values is None else past_key_values.each
        outputs = [
            _passed(part, input_ids, attention_mask, cache, bool(use_cache), logits_to_keep)
            for part, cache in zip(self.parts, caches, strict=True)
        ]
        device = outputs[0].logits.device
        large, base, *experts = (output.logits[:, -logits_to_keep:, : self.vocabulary].to(device) for output in outputs)
        logits, weights = fuse(large, base, experts, most=self.most, together=self.together)
        kept = [getattr(output, "past_key_values", None) for output in outputs] if use_cache else []
        if any(cache is None for cache in kept):
            raise BadValue("the cache of a part", None, "past_key_values; without one, use_cache=False", "logit fusion")
        seen = input_ids.shape[1] + (0 if past_key_values is None else past_key_values.length)
        return FusedOutput(logits, weights, Caches(kept, seen) if kept else None)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """What `generate` passes on: the ids that the caches have not seen."""
        if inputs_embeds is not None:
            raise BadValue("inputs_embeds", "a tensor", "none: the parts embed tokens differently", "logit fusion")
        seen = 0 if past_key_values is None else past_key_values.length
        kwargs.pop("cache_position", None)  # of transformers 4: each part counts its own
        return {
            "input_ids": input_ids[:, seen:],
            "past_key_values": past_key_values,
            "attention_mask": attention_mask,
            **kwargs,
        }

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """Each part makes its own."""
        return False


def _passed(part: Any, ids: Tensor, mask: Tensor | None, cache: Any, use_cache: bool, logits_to_keep: int) -> Any:
    """One part's outputs; positions count from a row's first token, whatever stands before it."""
    known = inspect.signature(part.forward).parameters
    options: dict[str, Any] = {"use_cache": use_cache, "past_key_values": cache}
    if mask is not None:
        options["attention_mask"] = mask.to(part.device)
        if "position_ids" in known:
            options["position_ids"] = (options["attention_mask"].cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    if "logits_to_keep" in known:
        options["logits_to_keep"] = logits_to_keep
    return part(ids.to(part.device), **options)


def _named(large: Any, base: Any, experts: Mapping[str, Any]) -> dict[str, Any]:
    """The parts as messages call them."""
    return {"the large model": large, "the base": base, **{f"expert {name!r}": own for name, own in experts.items()}}


def _directory(name: str, text: str) -> Path:
    reference = parse(text)
    if reference.adapter is not None:
        raise BadValue(name, text, "a whole model: merge the adapter into it first", "logit fusion")
    return locate(reference, offline=True)


def _tokens(parts: Mapping[str, Any], vocabulary: int | None) -> int:
    """How many tokens count; raises where parts do not go together."""
    if len(parts) < 3:
        raise BadValue("the number of experts", 0, "at least 1", "logit fusion")
    for name, part in parts.items():
        if part.config.is_encoder_decoder:
            raise BadValue(name, "an encoder and a decoder", "a causal language model", "logit fusion")
    sizes = {name: part.config.get_text_config().vocab_size for name, part in parts.items()}
    if vocabulary is not None:
        if not 1 <= vocabulary <= min(sizes.values()):
            raise BadValue("vocabulary", vocabulary, f"1 to {min(sizes.values())}, the fewest logits", "logit fusion")
        return vocabulary
    first = next(iter(sizes))
    for name, size in sizes.items():
        if size != sizes[first]:
            raise Inconsistent(
                f"logit fusion: {first} has logits of {sizes[first]} tokens, {name} of {size}; where the last ones "
                "only pad, say how many count, vocabulary="
            )
    return sizes[first]
