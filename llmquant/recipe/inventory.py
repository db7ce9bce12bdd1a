"""What a model holds, as plain data: every parameter in exactly one entry. `llmquant.models.skeleton` fills it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Kind = Literal["linear", "conv1d", "embedding", "experts", "router", "norm", "other"]

NAMED_SETS = {
    "linear": "every linear layer (Conv1D too) inside the decoder blocks, routers and experts aside",
    "attention": "the linear layers of attention",
    "attention.qkv": "query, key and value projections, separate or fused",
    "attention.o": "the output projection of attention",
    "mlp": "the linear layers of the MLP, shared experts included",
    "mlp.gate_up": "gate and up projections (the first layer of a plain MLP)",
    "mlp.down": "the down projection (the last layer of a plain MLP)",
    "first_block": "the linear layers of the first decoder block",
    "last_block": "the linear layers of the last decoder block",
    "lm_head": "the output layer",
    "embedding": "token and position embeddings, where they are plain tables of rows",
    "experts": "the experts of a mixture of experts",
    "router": "what chooses the experts",
}
"""Words that mean the same for every architecture, with their meaning."""


@dataclass(frozen=True, slots=True)
class ModuleInfo:
    """One module with parameters of its own, or one parameter of a fused experts module.

    Attributes:
        name: dotted name in the model; for experts the parameter's name ("model.layers.0.mlp.experts.gate_up_proj").
        kind: what it is; "conv1d" is transformers' transposed linear layer of GPT-2.
        shape: (out_features, in_features) for linear and conv1d (turned already); the largest parameter otherwise, as
            it lies in memory, e.g. (experts, out, in).
        parameters: how many numbers it owns, bias included; tied ones count where they are owned.
        block: index of its decoder block, None outside.
        sets: the named sets it belongs to.
        fused: the set that readers such as vLLM load as one layer ("model.layers.0.self_attn:qkv"), or None.
        tied_to: name of the module that owns its weight, or None.
        bias: whether it has a bias.
        obstacle: why its weight cannot be packed though it looks as if it could; "" where nothing stands in the way.
        plain_obstacle: why plain transformers cannot load it: what may be packed if it is, all else if it stays.
        idle: text alone does not run it, as with attention to an encoder, so nothing can be calibrated on text.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    parameters: int
    block: int | None = None
    sets: frozenset[str] = frozenset()
    fused: str | None = None
    tied_to: str | None = None
    bias: bool = False
    obstacle: str = ""
    plain_obstacle: str = ""
    idle: bool = False

    @property
    def protected(self) -> bool:
        """Whether only its named set or exact name reaches it, never a glob or a regular expression."""
        return "linear" not in self.sets


@dataclass(frozen=True, slots=True)
class Inventory:
    """All modules of a model, in the model's order.

    Attributes:
        architecture: class name, e.g. "LlamaForCausalLM".
        model_type: the config's model type, e.g. "llama".
        dtype: in which the checkpoint stores its weights, and llmquant its scales.
        modules: every parameter of the model belongs to exactly one.
        blocks: number of decoder blocks.
        head_sizes: of attention; several where they differ by layer, none where the config does not say.
        recast: the buffer that model code replaces by one of another dtype while it runs; "" where it does not.
        untried: why it is not known whether model code reads weights that could be packed; "" where it is known.
    """

    architecture: str
    model_type: str
    dtype: torch.dtype
    modules: tuple[ModuleInfo, ...]
    blocks: int
    head_sizes: tuple[int, ...] = ()
    untried: str = ""
    recast: str = ""

    @property
    def parameters(self) -> int:
        """Number of unique parameters of the model."""
        return sum(module.parameters for module in self.modules)
