"""Fused decoder layers: the same numbers with fewer calls, and the original forward whenever anything is different."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    StaticCache,
)

from llmquant.algorithms.rounding import rtn
from llmquant.hf import fused_layers
from llmquant.hf.fuse import fuse, is_fused, unfuse
from llmquant.hf.ties import replace
from llmquant.kernels.cpu import native
from llmquant.kernels.cpu import ops as cpu_ops
from llmquant.nn.linear import PackedLinear
from llmquant.spec import Scheme
from llmquant.statistics.base import LayerStatistics

pytestmark = pytest.mark.skipif(native.library() is None, reason="the C++ kernels are not installed")

LAYERS = 2
SHAPE: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
WINDOW: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
FAMILIES: dict[str, Callable[..., PreTrainedModel]] = {
    "llama": lambda **more: LlamaForCausalLM(LlamaConfig(**SHAPE, **more)),
    "llama-bias": lambda **more: LlamaForCausalLM(LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True, **more)),
    "mistral": lambda **more: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=4, **more)),
    "qwen2": lambda **more: Qwen2ForCausalLM(Qwen2Config(**SHAPE, **WINDOW, **more)),
    "qwen3": lambda **more: Qwen3ForCausalLM(Qwen3Config(**SHAPE, **WINDOW, head_dim=32, **more)),
}
TOKENS = torch.arange(24).reshape(2, 12)
PADDED = torch.ones(2, 12, dtype=torch.long)
PADDED[0, :3] = 0


def make(family: str = "llama", scheme: str = "int4-g32", dtype: torch.dtype = torch.float32, **more: Any) -> Any:
    """A random model with prepared layers, not fused."""
    torch.manual_seed(3)
    model: Any = FAMILIES[family](**more)
    model.to(dtype).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms would be one and biases zero
            nn.init.normal_(parameter, mean=0.5, std=0.2)
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and name != "lm_head":
            replace(model, name, packed(module, Scheme.parse(scheme)))
    return model.requires_grad_(False)


def packed(linear: nn.Linear, scheme: Scheme) -> Any:
    weight = linear.weight.detach()
    quantized = rtn.quantize(weight, LayerStatistics(), scheme, rtn.Options(), scale_dtype=weight.dtype).quantized
    layer: Any = PackedLinear.from_quantized(quantized, scheme, linear.bias)
    layer.prepare()
    layer.exact = True
    return layer


class Calls:
    """Counts calls of the fused kernel."""

    def __init__(self) -> None:
        self.count = 0

    def taken(self) -> int:
        count, self.count = self.count, 0
        return count


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    counted, kernel = Calls(), cpu_ops.linear_fused

    def count(*args: Any, **kwargs: Any) -> list[Tensor]:
        counted.count += 1
        return kernel(*args, **kwargs)

    monkeypatch.setattr(cpu_ops, "linear_fused", count)
    return counted


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def difference(found: Tensor, wanted: Tensor) -> float:
    found, wanted = found.double(), wanted.double()
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_same_logits_and_tokens(family: str, attention: str, calls: Calls) -> None:
    model = make(family, attn_implementation=attention)
    real = PADDED.bool()
    runs = [
        lambda: model(TOKENS).logits,
        lambda: model(TOKENS, attention_mask=PADDED).logits[real],
        lambda: decode(model),
    ]
    wanted = [run() for run in runs]
    written = model.generate(TOKENS, max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert calls.taken() == 0
    assert fuse(model) == LAYERS
    for run, want in zip(runs, wanted, strict=True):
        assert difference(run(), want) < 1e-5
        assert calls.taken() in (4 * LAYERS, 4 * LAYERS * 4)
    assert torch.equal(model.generate(TOKENS, max_new_tokens=6, do_sample=False, pad_token_id=0), written)


def decode(model: Any) -> Tensor:
    """Logits of a prefill and three single tokens."""
    output = model(TOKENS[:, :9], use_cache=True)
    logits = [output.logits]
    for token in TOKENS[:, 9:].split(1, 1):
        output = model(token, past_key_values=output.past_key_values, use_cache=True)
        logits.append(output.logits)
    return torch.cat(logits, 1)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_bfloat16_is_at_least_as_close_to_float32(family: str) -> None:
    model = make(family, dtype=torch.bfloat16)
    wide = copy.deepcopy(model).float()
    wanted = wide(TOKENS).logits
    plain = difference(model(TOKENS).logits, wanted)
    fuse(model)
    assert 0 < difference(model(TOKENS).logits, wanted) <= 1.05 * plain


def test_long_prompts_do_not_share_rope(calls: Calls) -> None:
    """What is kept for the layers of one pass is neither kept for long ones nor taken by the next pass."""
    model, other = make(), make("mistral")
    wanted = [m(t).logits for t in (TOKENS, TOKENS[:1, :5]) for m in (model, other)]
    fuse(model)
    fuse(other)
    found = [m(t).logits for t in (TOKENS, TOKENS[:1, :5]) for m in (model, other)]
    assert calls.taken() == 4 * 4 * LAYERS
    assert all(difference(f, w) < 1e-5 for f, w in zip(found, wanted, strict=True))
    long = torch.arange(fused_layers._FEW + 1)[None] % 96
    model(long)
    assert fused_layers._kept is None or fused_layers._kept[1][0].shape[1] <= fused_layers._FEW


def test_nothing_else_changes(tmp_path: Path) -> None:
    model = make()
    names, state = [name for name, _ in model.named_modules()], model.state_dict()
    fuse(model)
    assert [name for name, _ in model.named_modules()] == names
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())
    assert unfuse(model) == LAYERS
    assert unfuse(model) == 0
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_copies_are_fused_and_independent(calls: Calls) -> None:
    model = make()
    fuse(model)
    wanted = model(TOKENS).logits
    twin = copy.deepcopy(model)
    calls.taken()
    unfuse(model)
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.zero_()
    assert torch.equal(twin(TOKENS).logits, wanted)
    assert calls.taken() == 4 * LAYERS


def test_a_pickled_model_runs_and_can_be_fused_again(calls: Calls) -> None:
    model = make()
    fuse(model)
    wanted = model(TOKENS).logits
    calls.taken()
    loaded = pickle.loads(pickle.dumps(model))
    assert difference(loaded(TOKENS).logits, wanted) < 1e-5
    assert calls.taken() == 0
    assert fuse(loaded) == LAYERS
    assert torch.equal(loaded(TOKENS).logits, wanted)


def test_fusing_twice_changes_nothing() -> None:
    model = make()
    assert fuse(model) == fuse(model) == LAYERS
    unfuse(model)
    assert not any(map(is_fused, model.modules()))


class Wrapper(nn.Module):
    """What an adapter puts in place of a layer."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.base(x)


def hook(model: Any) -> None:
    model.model.layers[1].self_attn.q_proj.register_forward_hook(lambda module, args, output: 2 * output)


def pre_hook(model: Any) -> None:
    model.model.layers[1].input_layernorm.register_forward_pre_hook(lambda module, args: (args[0] + 1,))


def own_forward(model: Any) -> None:
    mlp = model.model.layers[1].mlp
    mlp.forward = lambda x: x


def adapter(model: Any) -> None:
    replace(model, "model.layers.1.mlp.up_proj", Wrapper(model.model.layers[1].mlp.up_proj))


def activation(model: Any) -> None:
    model.model.layers[1].mlp.act_fn = nn.GELU()


def mixed_accuracy(model: Any) -> None:
    model.model.layers[1].self_attn.k_proj.exact = False


def mixed_groups(model: Any) -> None:
    attention = model.model.layers[1].self_attn
    attention.k_proj = packed(nn.Linear(64, 32, bias=False), Scheme.parse("int4-g64"))


def layer_training(model: Any) -> None:
    model.model.layers[1].training = True


CHANGES = [hook, pre_hook, own_forward, adapter, activation, mixed_accuracy, mixed_groups, layer_training]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_layer_that_is_different_runs_as_it_is(change: Callable[[Any], None], when: str, calls: Calls) -> None:
    plain, model = make(), make()
    torch.manual_seed(5)
    change(plain)
    torch.manual_seed(5)
    if when == "before":
        change(model)
        assert fuse(model) == (LAYERS if change is layer_training else LAYERS - 1)
    else:
        fuse(model)
        change(model)
    assert difference(model(TOKENS).logits, plain(TOKENS).logits) < 1e-5
    assert calls.taken() == 4 * (LAYERS - 1)


def test_gradients_take_the_original_forward(calls: Calls) -> None:
    model = make()
    fuse(model)
    with torch.enable_grad():
        embedded = model.get_input_embeddings()(TOKENS).requires_grad_()
        model(inputs_embeds=embedded).logits.sum().backward()
        assert embedded.grad is not None
        assert embedded.grad.abs().sum() > 0
        assert calls.taken() == 0
        model.model.layers[0].input_layernorm.weight.requires_grad_()
        model(TOKENS).logits.sum().backward()
        assert model.model.layers[0].input_layernorm.weight.grad is not None
        assert calls.taken() == 0
        model.requires_grad_(False)
        model(TOKENS)
        assert calls.taken() == 4 * LAYERS


def test_attentions_and_hidden_states(calls: Calls) -> None:
    model = make(attn_implementation="eager")
    wanted = model(TOKENS, output_attentions=True, output_hidden_states=True)
    fuse(model)
    found = model(TOKENS, output_attentions=True, output_hidden_states=True)
    assert calls.taken() == 0
    assert len(found.attentions) == LAYERS
    assert all(torch.equal(f, w) for f, w in zip(found.attentions, wanted.attentions, strict=True))
    found = model(TOKENS, output_hidden_states=True)  # the hooks on the attention modules are idle now
    assert calls.taken() == 4 * LAYERS
    assert all(difference(f, w) < 1e-5 for f, w in zip(found.hidden_states, wanted.hidden_states, strict=True))
    model.config.output_attentions = True
    assert model(TOKENS).attentions is not None
    assert calls.taken() == 0


def test_only_prepared_layers_are_fused(calls: Calls) -> None:
    model = make()
    wanted = model(TOKENS).logits
    fuse(model)
    model.model.layers[1].self_attn.v_proj.unprepare()
    assert difference(model(TOKENS).logits, wanted) < 1e-3
    assert calls.taken() == 4 * (LAYERS - 1)
    unfuse(model)
    assert fuse(model) == LAYERS - 1


def test_casts_keep_layers_fused(calls: Calls) -> None:
    model = make()
    fuse(model)
    wanted = model(TOKENS).logits
    calls.taken()
    model.to(torch.bfloat16)
    assert difference(model(TOKENS).logits, wanted) < 3e-2
    assert calls.taken() == 4 * LAYERS


def test_other_classes_of_the_same_name_are_left_alone() -> None:
    class LlamaDecoderLayer(nn.Module):
        pass

    assert fuse(nn.Sequential(LlamaDecoderLayer())) == 0


def test_compiles_in_one_graph_with_a_static_cache() -> None:
    model = make()

    def steps(run: Any) -> Tensor:
        cache = StaticCache(config=model.config, max_cache_len=16)
        model(TOKENS[:, :9], past_key_values=cache, use_cache=True)
        return torch.cat([run(t, past_key_values=cache, use_cache=True).logits for t in TOKENS[:, 9:].split(1, 1)], 1)

    wanted = steps(model)
    fuse(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert difference(steps(compiled), wanted) < 1e-5
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1


def test_edits_in_place_count_in_a_fused_layer(calls: Calls) -> None:
    model = make()
    twin = copy.deepcopy(model)
    assert fuse(model) == LAYERS
    model(TOKENS)
    for changed in (model, twin):
        changed.model.layers[0].mlp.down_proj.weight_scale.mul_(3)
    assert fuse(twin) == LAYERS
    calls.taken()
    fused = model(TOKENS).logits
    assert calls.taken() == 4 * LAYERS
    assert difference(fused, unfuse_and_run(twin)) < 1e-4


def unfuse_and_run(model: Any) -> Tensor:
    unfuse(model)
    return model(TOKENS).logits
