"""A small Llama as an inventory, without building a model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from llmquant.models.inventory import Inventory, Kind, ModuleInfo

_LAYERS = {
    "self_attn.q_proj": ("attention", "attention.qkv"),
    "self_attn.k_proj": ("attention", "attention.qkv"),
    "self_attn.v_proj": ("attention", "attention.qkv"),
    "self_attn.o_proj": ("attention", "attention.o"),
    "mlp.gate_proj": ("mlp", "mlp.gate_up"),
    "mlp.up_proj": ("mlp", "mlp.gate_up"),
    "mlp.down_proj": ("mlp", "mlp.down"),
}


def _block(index: int, blocks: int, hidden: int, width: int) -> list[ModuleInfo]:
    ends = {name for name, at in (("first_block", 0), ("last_block", blocks - 1)) if at == index}
    modules = []
    for leaf, sets in _LAYERS.items():
        shape = {"gate_proj": (width, hidden), "up_proj": (width, hidden), "down_proj": (hidden, width)}
        out_in = shape.get(leaf.partition(".")[2], (hidden, hidden))
        parent = f"model.layers.{index}.{leaf.partition('.')[0]}"
        label = {"attention.qkv": ":qkv", "mlp.gate_up": ":gate_up"}.get(sets[1])
        modules.append(
            ModuleInfo(
                name=f"model.layers.{index}.{leaf}",
                kind="linear",
                shape=out_in,
                parameters=out_in[0] * out_in[1],
                block=index,
                sets=frozenset({"linear", *sets, *ends}),
                fused=parent + label if label else None,
            )
        )
    norm = ModuleInfo(f"model.layers.{index}.input_layernorm", "norm", (hidden,), hidden, index)
    return [*modules, norm]


def _experts(index: int) -> list[ModuleInfo]:
    parent = f"model.layers.{index}.mlp"
    kinds: list[tuple[str, Kind, tuple[int, ...], int]] = [
        (f"{parent}.experts.gate_up_proj", "experts", (4, 64, 256), 65536),
        (f"{parent}.gate", "router", (4, 256), 1024),
    ]
    return [ModuleInfo(name, kind, shape, size, index, frozenset({kind})) for name, kind, shape, size in kinds]


@pytest.fixture
def llama() -> Callable[..., Inventory]:
    """Makes an inventory: llama(blocks=3, hidden=256, width=768, tied=False, experts=False)."""

    def make(
        blocks: int = 3, hidden: int = 256, width: int = 768, tied: bool = False, experts: bool = False
    ) -> Inventory:
        size = 100 * hidden
        modules = [ModuleInfo("model.embed_tokens", "embedding", (100, hidden), size, None, frozenset({"embedding"}))]
        for index in range(blocks):
            modules += _block(index, blocks, hidden, width) + (_experts(index) if experts else [])
        head = ModuleInfo(
            "lm_head",
            "linear",
            (100, hidden),
            0 if tied else size,
            None,
            frozenset({"lm_head"}),
            tied_to="model.embed_tokens" if tied else None,
        )
        return Inventory("LlamaForCausalLM", "llama", torch.bfloat16, (*modules, head), blocks, (32,))

    return make
