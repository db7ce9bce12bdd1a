"""The block driver against the model's own forward: families, what they pass between blocks, and what is refused."""

import threading
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from llmquant.engine import capture as capture_module
from llmquant.engine.capture import capture
from llmquant.errors import QuantizationError
from llmquant.models.skeleton import decoder_blocks
from llmquant.statistics.collect import Collector


def waiting_threads() -> int:
    """Forwards that wait in front of a block; other threads of the process are not ours."""
    return sum(hasattr(thread, "forward") for thread in threading.enumerate())


SMALL: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2},
    "mistral": {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2},
    "qwen3": {
        "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    },
    # Sliding-window and full-attention layers have different masks and rotary tables: the trap for layer-0 arguments.
    "gemma3_text": {
        "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64},
    "opt": {"hidden_size": 32, "ffn_dim": 64, "num_attention_heads": 4, "word_embed_proj_dim": 32},
    "gpt_neox": {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4},
    "phi": {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4},
    "openai-gpt": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64},  # a block returns a list
    # Four streams of hidden states in front of the batch dimension, and an input of its own for each block.
    "gemma3n_text": {
        "hidden_size": 32, "intermediate_size": [64] * 3, "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 16, "num_kv_shared_layers": 0, "sliding_window": 4, "hidden_size_per_layer_input": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "laurel_rank": 8,
        "vocab_size_per_layer_input": 96, "activation_sparsity_pattern": [0.0] * 3,
    },
    # A router passes its state to that of the next block.
    "zaya": {
        "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "num_experts": 4,
        "num_experts_per_tok": 1, "moe_intermediate_size": 32, "num_hidden_layers": 4,
    },
    "qwen3_moe": {
        "hidden_size": 32, "intermediate_size": 64, "moe_intermediate_size": 16, "num_experts": 4,
        "num_experts_per_tok": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    },
}  # fmt: skip


def small_model(model_type: str):
    common = {"vocab_size": 96, "num_hidden_layers": 3, "max_position_embeddings": 64, "pad_token_id": 0}
    config = AutoConfig.for_model(model_type, **(common | SMALL[model_type]))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(requires_grad=False)
    for parameter in model.parameters():  # large enough that a wrong state shows
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, 0, 0.15)
    return model


def states(output) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


@torch.no_grad()
def behind_each_block(base, blocks, batches) -> list[list[Tensor]]:
    """Hidden states behind each block for each batch, in the model's own forward."""
    seen: list[list[Tensor]] = [[] for _ in blocks]
    handles = [
        block.register_forward_hook(lambda *a, to=to: to.append(states(a[2]).clone()))
        for block, to in zip(blocks, seen, strict=True)
    ]
    for batch in batches:
        base(input_ids=batch, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


@torch.no_grad()
def assert_same_as_the_forward(base, blocks, windows, monkeypatch, size=2) -> None:
    monkeypatch.setattr(capture_module, "TOKENS_PER_BATCH", size * windows.shape[1])
    real = behind_each_block(base, blocks, windows.split(size))
    behind = []
    with capture(base, blocks, windows) as inputs:
        for index, block in enumerate(blocks):
            inputs.run(index, block)  # for the statistics; it must leave nothing behind
            before = [hidden.clone() for hidden in inputs.hidden]
            behind.append(list(inputs.advancing(index, block)))
            if index + 1 == len(blocks):
                assert all(torch.equal(a, b) for a, b in zip(inputs.hidden, real[index], strict=True))
                assert not waiting_threads()  # they hold what came from the embeddings
            if index and states_pass_unchanged(base):
                assert all(torch.equal(a, b) for a, b in zip(before, real[index - 1], strict=True))
    assert not waiting_threads()
    # What was given stays as it was, whatever blocks behind it write into their inputs.
    for given, meant in zip(behind, real, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(given, meant, strict=True))


def states_pass_unchanged(base) -> bool:
    """Whether what a block returns is what the next is called with."""
    return not isinstance(base, Between)


@pytest.mark.parametrize("model_type", SMALL)
def test_block_by_block_equals_the_full_forward(model_type, monkeypatch):
    model = small_model(model_type)
    _, blocks = decoder_blocks(model)
    assert_same_as_the_forward(model.base_model, list(blocks), torch.randint(1, 96, (5, 16)), monkeypatch)


class Toy(nn.Module):
    """Three blocks that return their hidden states and a state; subclasses do something odd with them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(96, 8)
        self.late = nn.Embedding(96, 8)
        self.blocks = nn.ModuleList(ToyBlock() for _ in range(3))

    def forward(self, input_ids, use_cache):
        del use_cache
        hidden, state = self.embed(input_ids), None
        for block in self.blocks:
            hidden, state = block(hidden, state=state)
        return hidden


class ToyBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, hidden, *, state=None):
        moved = self.linear(hidden).tanh()
        return hidden + moved, moved if state is None else state + 0.5 * moved.square()


class Between(Toy):
    """Something happens between the blocks, with a module of its own and with the hidden states of long ago."""

    def forward(self, input_ids, use_cache):
        del use_cache
        first = hidden = self.embed(input_ids)
        state, skipped = None, []
        for block in self.blocks:
            skipped.append(hidden)
            hidden, state = block(hidden * 0.9 + 0.1 * first + skipped[0] + self.late(input_ids), state=state)
            hidden = hidden + 0.3 * state
        return hidden


class InPlaceBlock(ToyBlock):
    def forward(self, hidden, *, state=None):
        if state is None:
            state = {"calls": [], "sum": torch.zeros(())}
        state["calls"].append(float(hidden.sum()))
        state["sum"].add_(hidden.mean())
        hidden.add_(self.linear(hidden).tanh() * state["sum"] * len(state["calls"]))
        return hidden, state


class Shared(Toy):
    """One dict for all blocks, and blocks that write into their inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(InPlaceBlock() for _ in range(3))


class ObjectBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, hidden, again, listed, named, module, cache):
        assert again is hidden
        assert listed[0] is hidden
        assert named["x"] is hidden
        assert module is vars(self)["own"]
        cache.calls += 1
        return hidden + module(self.linear(hidden).argmax(-1)) * cache.calls


class Objects(Toy):
    """Blocks that get one tensor in several ways, a module, and an object that they write to."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ObjectBlock() for _ in range(3))
        for block in self.blocks:
            vars(block)["own"] = self.late  # to know it by, not a part

    def forward(self, input_ids, use_cache):
        del use_cache
        hidden, cache = self.embed(input_ids), SimpleNamespace(calls=0)
        for block in self.blocks:
            hidden = block(hidden, hidden, [hidden], {"x": hidden}, self.late, cache)
        return hidden


@pytest.mark.parametrize("kind", [Toy, Between, Shared, Objects])
def test_whatever_a_model_passes_from_block_to_block(kind, monkeypatch):
    model = kind().eval()
    assert_same_as_the_forward(model, list(model.blocks), torch.randint(1, 96, (5, 16)), monkeypatch)


def test_modules_that_are_needed_between_the_blocks_are_named():
    for model, needed in ((Toy().eval(), set()), (Between().eval(), {"late"})):
        with capture(model, list(model.blocks), torch.randint(1, 96, (2, 4))) as inputs:
            assert inputs.between == {model.get_submodule(name) for name in needed}


class Order(Toy):
    """Calls its blocks in the order that the test gives."""

    order: tuple[int, ...] = (0, 1, 2)

    def forward(self, input_ids, use_cache):
        del use_cache
        hidden, state = self.embed(input_ids), None
        for index in self.order:
            hidden, state = self.blocks[index](hidden, state=state)
        return hidden


@pytest.mark.parametrize("order", [(0, 1), (1, 0, 2), (0, 2, 1), (0, 1, 2, 0, 1, 2), (0, 0, 1, 2), ()])
def test_blocks_out_of_order_are_refused_before_any_work(order):
    model = Order().eval()
    model.order = order
    with pytest.raises(QuantizationError, match="not call its 3 decoder blocks once each and in order, but \\["):
        capture(model, list(model.blocks), torch.randint(1, 96, (2, 4)))
    assert not waiting_threads()
    assert "forward" not in vars(model.blocks[0])


def test_errors_of_the_model_reach_the_caller_and_end_all_forwards(monkeypatch):
    class Once(Toy):
        def forward(self, input_ids, use_cache):
            if len(input_ids) > 1:  # so not in the rehearsal, which takes one window
                raise RuntimeError("no way on")
            return super().forward(input_ids, use_cache)

    model = Once().eval()
    with pytest.raises(RuntimeError, match="no way on"):
        capture(model, list(model.blocks), torch.randint(1, 96, (2, 4)))
    assert not waiting_threads()

    class Twice(Toy):
        calls = 0

        def forward(self, input_ids, use_cache):
            self.calls += 1
            if self.calls > 2:  # the rehearsal's, and one that waits then
                raise RuntimeError("no way on")
            return super().forward(input_ids, use_cache)

    model = Twice().eval()
    monkeypatch.setattr(capture_module, "TOKENS_PER_BATCH", 4)
    with pytest.raises(RuntimeError, match="no way on") as caught:
        capture(model, list(model.blocks), torch.randint(1, 96, (2, 4)))
    assert not waiting_threads()  # though the error still holds all that was there
    assert "forward" not in vars(model.blocks[0])
    del caught

    class Unlike(Toy):
        def forward(self, input_ids, use_cache):
            return self.blocks[0](self.embed(input_ids))[0].split(use_cache)

    model = Unlike().eval()
    with pytest.raises(QuantizationError, match=r"Unlike cannot be run block by block: .* TypeError"):
        capture(model, list(model.blocks), torch.randint(1, 96, (2, 4)))
    assert not waiting_threads()


def test_a_long_order_is_cut():
    model = Order().eval()
    model.blocks = nn.ModuleList(ToyBlock() for _ in range(25))
    model.order = (*range(25), 0)
    with pytest.raises(QuantizationError, match=r"18, 19, \.\.\.\]; statistics"):
        capture(model, list(model.blocks), torch.randint(1, 96, (2, 4)))


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2)])
def test_threads_that_start_later_have_the_setting_of_before(order):
    """The forwards set their own to 1."""
    model = Order().eval()
    model.order = order
    found = []
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with suppress(QuantizationError), capture(model, list(model.blocks), torch.randint(1, 96, (2, 4))):
            pass
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()
    finally:
        torch.set_num_threads(before)
    assert found == [3]


def test_leaving_ends_the_forwards_and_takes_everything_back():
    model = Toy().eval()
    with capture(model, list(model.blocks), torch.randint(1, 96, (2, 4))) as inputs:
        assert waiting_threads() == 1
    assert not waiting_threads()
    assert not any(module._forward_pre_hooks or "forward" in vars(module) for module in model.modules())
    assert not inputs.hidden


def test_calibration_that_is_given_up_leaves_no_threads_and_no_stand_ins():
    model = Toy().eval()
    inputs = capture(model, list(model.blocks), torch.randint(1, 96, (2, 4)))
    assert waiting_threads() == 1
    del inputs
    assert not waiting_threads()
    assert "forward" not in vars(model.blocks[0])


def test_hessians_are_those_of_the_real_inputs_and_shared_where_inputs_are():
    model = small_model("llama")
    windows = torch.randint(1, 96, (3, 16))
    _, blocks = decoder_blocks(model)
    block = blocks[0]
    names = [
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    ]
    layers = {name: block.get_submodule(name) for name in names}
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in names}

    def remember(name: str):
        return lambda _, inputs: seen[name].append(inputs[0].double())

    handles = [layer.register_forward_pre_hook(remember(name)) for name, layer in layers.items()]
    with torch.no_grad():
        model.base_model(input_ids=windows, use_cache=False)
        for handle in handles:
            handle.remove()
        inputs = capture(model.base_model, list(blocks), windows)
        collector = Collector(layers, {name: {"hessian"} for name in layers})
        with collector.attached(block):
            inputs.run(0, block)
    taken = {name: collector.take(name) for name in names}
    for name in names:
        x = torch.cat(seen[name]).reshape(-1, seen[name][0].shape[-1])
        assert taken[name].tokens == x.shape[0] == 48
        hessian = taken[name].get("hessian")
        assert hessian is not None
        torch.testing.assert_close(hessian.double(), x.T @ x / 48, rtol=1e-5, atol=1e-6)
    assert taken["self_attn.q_proj"].get("hessian") is taken["self_attn.k_proj"].get("hessian")
    assert taken["mlp.gate_proj"].get("hessian") is taken["mlp.up_proj"].get("hessian")
    assert taken["self_attn.q_proj"].get("hessian") is not taken["mlp.gate_proj"].get("hessian")
