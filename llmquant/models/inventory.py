"""What a model holds, as plain data: every parameter in exactly one entry. `llmquant.models.walk` fills it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

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
class Matrix:
    """One weight (out_features, in_features), however its module holds it: plans, sizes and methods see this alone.

    Attributes:
        key: name of the parameter that holds it.
        index: which of the matrices in a 3-D parameter it is, such as an expert; None where all of it is.
        turned: the parameter holds it as (in_features, out_features), as GPT-2's Conv1D does.
        block: index of its decoder block, None outside.
        tied_to: name of the module that owns the weight, or None.
        table: its rows are looked up, as in an embedding, not multiplied with inputs.
    """

    module: str
    key: str
    index: int | None
    shape: tuple[int, int]
    turned: bool = False
    block: int | None = None
    tied_to: str | None = None
    table: bool = False

    @property
    def name(self) -> str:
        """What plans, journals and results call it: its module, or its place in a stack."""
        return self.module if self.index is None else f"{self.key}.{self.index}"

    @property
    def stored_shape(self) -> tuple[int, int]:
        """The shape in which its parameter holds it."""
        rows, columns = self.shape
        return (columns, rows) if self.turned else self.shape

    def of(self, parameter: Tensor) -> Tensor:
        """The matrix (out_features, in_features) in its parameter (a view)."""
        held = parameter if self.index is None else parameter[self.index]
        return held.T if self.turned else held

    def held(self, weight: Tensor) -> Tensor:
        """A matrix (out_features, in_features) in the orientation of its parameter (a view)."""
        return weight.T if self.turned else weight


@dataclass(frozen=True, slots=True)
class ModuleInfo:
    """One module with parameters of its own, or one parameter of a fused experts module.

    Attributes:
        name: dotted name in the model; for experts the parameter's name ("model.layers.0.mlp.experts.gate_up_proj").
        kind: what it is; "conv1d" is transformers' transposed linear layer of GPT-2. Asked where modules are described
            and chosen; what works on weights asks its `Matrix`.
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
        turned: its matrices lie as (in_features, out_features).
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
    turned: bool = False
    idle: bool = False

    @property
    def layer(self) -> bool:
        """Whether it is a layer with one weight, which readers look for by its name; no stack of experts."""
        return self.kind in ("linear", "conv1d", "embedding", "router") or "lm_head" in self.sets

    @property
    def table(self) -> bool:
        """Whether its rows are looked up."""
        return self.kind == "embedding"

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """Its weights as matrices: one, or one for each expert of a stack; none where it holds none."""
        if self.kind == "experts" and len(self.shape) == 3:
            count, *held = self.shape
            rows, columns = reversed(held) if self.turned else held
            module = self.name.rpartition(".")[0]
            return tuple(
                Matrix(module, self.name, index, (rows, columns), self.turned, self.block) for index in range(count)
            )
        if len(self.shape) != 2 or self.kind in ("norm", "other"):
            return ()
        rows, columns = self.shape
        key = f"{self.name}.weight"
        return (Matrix(self.name, key, None, (rows, columns), self.turned, self.block, self.tied_to, self.table),)

    @property
    def protected(self) -> bool:
        """Whether only its named set or exact name reaches it, never a glob or a regular expression."""
        return "linear" not in self.sets


@dataclass(frozen=True, slots=True)
class Inventory:
    """All modules of a model, in the model's order.

    Attributes:
        dtype: in which the checkpoint stores its weights, and llmquant its scales.
        head_sizes: of attention; several where they differ by layer, none where the config does not say.
        recast: the buffer that model code replaces by one of another dtype while it runs; "" where it does not.
        untried: why it is not known whether model code reads weights that could be packed; "" where it is known.
        path: name of the list of decoder blocks, such as "model.layers".
    """

    architecture: str
    model_type: str
    dtype: torch.dtype
    modules: tuple[ModuleInfo, ...]
    blocks: int
    head_sizes: tuple[int, ...] = ()
    untried: str = ""
    recast: str = ""
    path: str = ""

    @property
    def parameters(self) -> int:
        """Number of unique parameters of the model."""
        return sum(module.parameters for module in self.modules)
