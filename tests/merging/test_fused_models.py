"""A fused language model of tiny models with random weights, made on the spot."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from polytask.core.errors import BadValue, Inconsistent, MissingInput
from polytask.merging.fused_models import FusedLanguageModel
from polytask.merging.fusion import fuse

TOKENS = 17
IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
SPECIAL = {"bos_token_id": 0, "eos_token_id": None, "pad_token_id": 16}


def llama(seed: int, width: int = 8, tokens: int = TOKENS) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=tokens,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.5,
        **SPECIAL,
    )
    return seeded(LlamaForCausalLM, config, seed)


def gpt2(seed: int) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=TOKENS, n_embd=8, n_layer=1, n_head=2, n_positions=32, initializer_range=0.5, **SPECIAL
    )
    return seeded(GPT2LMHeadModel, config, seed)


def seeded(kind: Any, config: Any, seed: int) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(config).eval()


def fused(**options: Any) -> FusedLanguageModel:
    """A Llama, and two experts of a small GPT-2."""
    return FusedLanguageModel(llama(0, 16), gpt2(1), {"math": gpt2(2), "code": gpt2(3)}, **options).eval()


def by_hand(model: FusedLanguageModel, ids: Tensor, steps: int) -> Tensor:
    """Greedy, every part anew over all that is there."""
    for _ in range(steps):
        large, base, *experts = (part(ids).logits[:, -1] for part in model.parts)
        following = fuse(large, base, experts, together=model.together).logits.argmax(-1)
        ids = torch.cat([ids, following[:, None]], 1)
    return ids


@pytest.mark.parametrize("together", [False, True])
def test_logits_are_the_parts_fused(together: bool) -> None:
    model = fused(together=together, most=1.5)
    with torch.no_grad():
        found = model(IDS)
        large, base, *experts = (part(IDS).logits for part in model.parts)
    wanted = fuse(large, base, experts, together=together, most=1.5)
    torch.testing.assert_close(found.logits, wanted.logits)
    assert found.weights.shape == (2, 5, 2)
    assert bool((found.weights > 0).any())
    assert float(found.weights.max()) <= 1.5
    assert model(IDS, logits_to_keep=2).logits.shape == (2, 2, TOKENS)


def test_it_generates_greedily_with_and_without_caches() -> None:
    model = fused()
    with torch.no_grad():
        wanted = by_hand(model, IDS, 6)
        large = by_hand_of(model.parts[0], 6)
    options = {"max_new_tokens": 6, "do_sample": False}
    for use_cache in (True, False):
        assert torch.equal(model.generate(IDS, use_cache=use_cache, **options), wanted)
    assert not torch.equal(wanted, large)


def by_hand_of(part: Any, steps: int) -> Tensor:
    ids = IDS
    for _ in range(steps):
        ids = torch.cat([ids, part(ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
    return ids


def test_it_samples_and_searches_with_beams_alike_with_and_without_caches() -> None:
    model = fused()
    for options in ({"do_sample": True, "temperature": 0.8}, {"num_beams": 3, "do_sample": False}):
        found = []
        for use_cache in (True, False):
            with torch.random.fork_rng():
                torch.manual_seed(5)
                found.append(model.generate(IDS, max_new_tokens=6, use_cache=use_cache, **options))
        assert torch.equal(*found)
        assert found[0].shape == (2, 11)


def test_each_step_reads_one_token_with_caches() -> None:
    model, lengths = fused(), []
    for part in model.parts:
        part.register_forward_pre_hook(lambda part, given: lengths.append(given[0].shape[1]))
    model.generate(IDS, max_new_tokens=3, do_sample=False)
    assert lengths == [5] * 4 + [1] * 8


def test_padding_before_a_row_changes_nothing() -> None:
    model = fused()
    padded = torch.cat([torch.full((1, 3), 16), IDS[:1]], 1)
    both = torch.cat([padded, torch.cat([IDS[1:], IDS[1:, :3]], 1)])
    mask = (both != 16).long()
    mask[1] = 1
    options = {"max_new_tokens": 5, "do_sample": False}
    alone = model.generate(IDS[:1], **options)
    found = model.generate(both, attention_mask=mask, **options)
    assert torch.equal(found[0, 3:], alone[0])


def test_experts_that_learned_nothing_leave_the_large_model() -> None:
    model = FusedLanguageModel(llama(0, 16), gpt2(1), {"same": gpt2(1)})
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, model.parts[0](IDS).logits)
        assert torch.equal(model.generate(IDS, max_new_tokens=4, do_sample=False), by_hand_of(model.parts[0], 4))


def test_parts_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(Inconsistent, match="the large model has logits of 17 tokens, expert 'math' of 19"):
        FusedLanguageModel(llama(0), gpt2(1), {"math": llama(2, tokens=19)})
    with pytest.raises(BadValue, match="the number of experts is 0"):
        FusedLanguageModel(llama(0), gpt2(1), {})
    config = T5Config(vocab_size=TOKENS, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    with pytest.raises(BadValue, match="the base is 'an encoder and a decoder'; allowed: a causal language model"):
        FusedLanguageModel(llama(0), seeded(T5ForConditionalGeneration, config, 1), {"math": gpt2(2)})


def test_a_part_without_such_a_cache_generates_without_one() -> None:
    config = MambaConfig(vocab_size=TOKENS, hidden_size=8, state_size=4, num_hidden_layers=1, **SPECIAL)
    model = FusedLanguageModel(llama(0), gpt2(1), {"math": seeded(MambaForCausalLM, config, 2)})
    options = {"max_new_tokens": 2, "do_sample": False}
    with pytest.raises(BadValue, match="the cache of a part is None; allowed: past_key_values; without one, use_cache"):
        model.generate(IDS, **options)
    assert model.generate(IDS, use_cache=False, **options).shape == (2, 7)


def test_what_is_not_computed_is_refused() -> None:
    with pytest.raises(BadValue, match="return_dict is False; allowed: True"):
        fused()(IDS, return_dict=False)
    with pytest.raises(BadValue, match="inputs_embeds is 'a tensor'; allowed: none"):
        fused().generate(IDS, inputs_embeds=torch.zeros(2, 5, 8), max_new_tokens=1)


def test_padded_vocabularies_are_cut_where_that_is_said() -> None:
    model = FusedLanguageModel(llama(0, tokens=19), gpt2(1), {"math": llama(2, tokens=21)}, vocabulary=16).eval()
    with torch.no_grad():
        large, base, expert = (part(IDS).logits[..., :16] for part in model.parts)
        torch.testing.assert_close(model(IDS).logits, fuse(large, base, [expert]).logits)
    found = model.generate(IDS, max_new_tokens=4, num_beams=2, do_sample=False)
    assert found.shape == (2, 9)
    assert int(found.max()) < 16
    for vocabulary in (0, 18):
        with pytest.raises(BadValue, match=rf"vocabulary is {vocabulary}; allowed: 1 to 17, the fewest logits"):
            FusedLanguageModel(llama(0), gpt2(1), {"math": llama(2, tokens=19)}, vocabulary=vocabulary)


def saved(folder: Path, model: Any, words: list[str]) -> str:
    model.save_pretrained(folder)
    Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="a")).save(
        str(folder / "tokenizer.json")
    )
    return str(folder)


def test_directories_must_number_their_tokens_alike(tmp_path: Path) -> None:
    words = [chr(97 + number) for number in range(TOKENS)]
    large, base = saved(tmp_path / "large", llama(0), words), saved(tmp_path / "base", gpt2(1), words)
    math = saved(tmp_path / "math", gpt2(2), words)
    found = FusedLanguageModel.of_directories(large, base, {"math": math}).eval()
    same = FusedLanguageModel(llama(0), gpt2(1), {"math": gpt2(2)}).eval()
    with torch.no_grad():
        torch.testing.assert_close(found(IDS).logits, same(IDS).logits)
    turned = saved(tmp_path / "turned", gpt2(2), words[::-1])
    with pytest.raises(Inconsistent, match="'a' is token 0 in the large model and 16 in expert 'math'"):
        FusedLanguageModel.of_directories(large, base, {"math": turned})
    other = saved(tmp_path / "other", gpt2(2), [*words[:-1], "new"])
    with pytest.raises(
        Inconsistent, match=r"expert 'math' has the token 'new', which the large model lacks \(2 differ"
    ):
        FusedLanguageModel.of_directories(large, base, {"math": other})
    with pytest.raises(BadValue, match="a whole model: merge the adapter into it first"):
        FusedLanguageModel.of_directories(large, base, {"math": f"{math}+{other}"})
    with pytest.raises(MissingInput, match="neither a path nor in the local Hugging Face cache"):
        FusedLanguageModel.of_directories(large, base, {"math": "nobody/nothing"})
