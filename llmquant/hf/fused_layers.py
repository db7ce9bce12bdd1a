"""The fused decoder layer: four calls of the fused kernels around transformers' own cache and attention.

Everything is looked up at each call, since models change under us: adapters replace layers, hooks come and go, and
`.to()` turns prepared weights back into checkpoint tensors. Whatever is not as it was meant runs the original forward.
The look-ups read the modules' dictionaries, as `nn.Module.__getattr__` would cost more than the work it finds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules import module as nn_module

from llmquant.compat.decoder_layers import attend, is_recording
from llmquant.kernels.backend import Kernels
from llmquant.kernels.product import Product
from llmquant.models.families import FAMILIES, Fusing
from llmquant.nn.linear import PackedLinear

# The names that the parts have in all families that can be fused.
INPUT_NORM, ATTENTION, MLP_NORM, MLP = "input_layernorm", "self_attn", "post_attention_layernorm", "mlp"
QKV, OUT, GATE_UP, DOWN = ("q_proj", "k_proj", "v_proj"), "o_proj", ("gate_proj", "up_proj"), "down_proj"
HEAD_NORMS = ("q_norm", "k_norm")
ADAPTED = "PackedLoraLinear"  # of lora.py, which imports peft
ACTIVATION, SILU = "act_fn", frozenset({"SiLU", "SiLUActivation"})

_FEW = 64  # tokens up to which what rope needs is kept for the other layers of the same pass


class Linears(NamedTuple):
    """Layers that share their input, as one call of their kernels takes them."""

    kernels: Kernels
    weights: list[Tensor]
    biases: list[Tensor]
    out_features: list[int]
    exact: bool


class Norm(NamedTuple):
    """An RMS norm."""

    weight: Tensor
    eps: float


class Parts(NamedTuple):
    """What a fused layer consists of at the moment of a call."""

    attention: nn.Module
    input_norm: Norm
    head_norms: tuple[Norm, ...]
    qkv: Linears
    out: Linears
    mlp_norm: Norm
    gate_up: Linears
    down: Linears


def forward(
    self: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    past_key_values: Any = None,
    use_cache: bool | None = False,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    **kwargs: Any,
) -> Tensor:
    """Forward of a decoder layer; the arguments and the result are those of its class.

    The name matters: pickle stores a bound method by its name, so a pickled model gets the original forward back.
    """
    family = FAMILIES[type(self).__name__].fusing
    assert family is not None  # `fuse` looked
    watched = self.training or kwargs.get("output_attentions") or _global_hooks()
    parts = None if watched else find_parts(self, family)
    if parts is None or position_embeddings is None or not _fits(hidden_states, parts):
        return type(self).forward(
            self,
            hidden_states,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            position_embeddings=position_embeddings,
            **kwargs,
        )
    attention: Any = parts.attention
    query, key, value = _project(hidden_states, parts, position_embeddings)
    if past_key_values is not None:
        key, value = past_key_values.update(key, value, attention.layer_idx)
    if family.window is not None:
        kwargs["sliding_window"] = (attention if family.window == "attention" else attention.config).sliding_window
    kwargs |= {"position_ids": position_ids, "use_cache": use_cache}
    attended = attend(attention, query, key, value, attention_mask, **kwargs).reshape(*hidden_states.shape[:-1], -1)
    if attended.dtype != hidden_states.dtype:  # autocast
        attended = attended.to(hidden_states.dtype)
    hidden_states = _linears(attended, parts.out, residual=hidden_states)[0]
    activated = _linears(hidden_states, parts.gate_up, norm=parts.mlp_norm, silu=True)[0]
    return _linears(activated, parts.down, residual=hidden_states)[0]


def find_parts(layer: nn.Module, family: Fusing) -> Parts | None:
    """The parts of a layer if all of them are as the fused forward needs them.

    None if a part is of another class, carries a hook or a forward of its own, or is not prepared.
    """
    modules = layer._modules
    attention, mlp = modules[ATTENTION], modules[MLP]
    if not (_untouched(attention, family.attention) and _untouched(mlp, family.mlp)):
        return None
    assert attention is not None
    assert mlp is not None
    activation = mlp._modules.get(ACTIVATION)
    if type(activation).__name__ not in SILU or not _untouched(activation, type(activation).__name__):
        return None
    input_norm = _norm(modules[INPUT_NORM], family)
    mlp_norm = _norm(modules[MLP_NORM], family)
    head_norms = tuple(_norm(attention._modules[name], family) for name in HEAD_NORMS) if family.head_norms else ()
    qkv, out = _shared(attention, QKV), _shared(attention, (OUT,))
    gate_up, down = _shared(mlp, GATE_UP), _shared(mlp, (DOWN,))
    parts = (attention, input_norm, head_norms, qkv, out, mlp_norm, gate_up, down)
    if None in (input_norm, mlp_norm, qkv, out, gate_up, down, *head_norms):
        return None
    return Parts(*parts)  # pyright: ignore[reportArgumentType]  # no None among them


def _global_hooks() -> bool:
    return bool(nn_module._global_forward_hooks or nn_module._global_forward_pre_hooks)


def _untouched(module: nn.Module | None, kind: str) -> bool:
    """Whether a module is of the class named `kind`, and calling it would run that class's forward and nothing else."""
    if module is None or type(module).__name__ != kind or module._forward_pre_hooks or "forward" in module.__dict__:
        return False
    return not module._forward_hooks or not is_recording(module)


def _norm(module: Any, family: Fusing) -> Norm | None:
    if not _untouched(module, family.norm):
        return None
    return Norm(module._parameters["weight"], module.variance_epsilon)


def _shared(parent: nn.Module, names: Sequence[str]) -> Linears | None:
    weights, biases, out_features, shared = [], [], [], []
    for name in names:
        layer = parent._modules[name]
        if layer and _untouched(layer, ADAPTED) and layer.__dict__["_disable_adapters"]:  # peft's `disable_adapter()`
            layer = layer._modules["base_layer"]
        if not _untouched(layer, PackedLinear.__name__):
            return None
        assert isinstance(layer, PackedLinear)
        if layer.lent is not None:
            layer.settle()
        weight, scheme = layer._buffers.get("weight_prepared"), layer.scheme
        if weight is None or layer.kernels is None or scheme.activations is not None:
            return None
        weights.append(weight)
        out_features.append(layer.out_features)
        shared.append((layer.kernels, layer.exact, scheme.group_size))
        if (bias := layer._parameters["bias"]) is not None:
            biases.append(bias)
    if any(other != shared[0] for other in shared) or len(biases) not in (0, len(names)):
        return None
    kernels, exact, _ = shared[0]
    return Linears(kernels, weights, biases, out_features, exact)


def _fits(x: Tensor, parts: Parts) -> bool:
    """Whether the op can take the input: one dtype, and nobody waiting for a gradient."""
    floats = [parts.input_norm.weight, parts.mlp_norm.weight]
    for linears in (parts.qkv, parts.out, parts.gate_up, parts.down):
        floats += linears.biases
    if any(tensor.dtype != x.dtype for tensor in floats):
        return False
    return not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in (x, *floats))


def _linears(
    x: Tensor, linears: Linears, norm: Norm | None = None, residual: Tensor | None = None, silu: bool = False
) -> list[Tensor]:
    kernels, weights, biases, out_features, exact = linears
    weight, eps = norm or (None, 0.0)
    return kernels.linear_fused(x, Product(weights, biases, out_features, exact, weight, eps, residual, silu))


def _project(x: Tensor, parts: Parts, embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (batch, heads, tokens, head_dim), with rope."""
    query, key, value = _linears(x, parts.qkv, norm=parts.input_norm)
    head_dim: Any = parts.attention.head_dim
    shape = (*x.shape[:-1], -1, head_dim)
    if parts.head_norms:
        for_query, for_key = parts.head_norms
        query = functional.rms_norm(query.view(shape), (head_dim,), *for_query)
        key = functional.rms_norm(key.view(shape), (head_dim,), *for_key)
        both = torch.cat((query, key), -2)
    else:
        both = torch.cat((query, key), -1).view(shape)
    cos, sin = _rope(embeddings)
    # rotate_half(x) is x rolled by half a head with the first half negated; the sign is in the sine.
    rotated = _by_head(torch.addcmul(both * cos, both.roll(head_dim // 2, -1), sin))
    keys = parts.qkv.out_features[1] // head_dim
    query, key = rotated.split_with_sizes((rotated.shape[1] - keys, keys), 1)
    return query, key, _by_head(value.view(shape))


def _by_head(x: Tensor) -> Tensor:
    """(batch, tokens, heads, head_dim) as (batch, heads, tokens, head_dim); of a single token simply another view."""
    batch, tokens, heads, head_dim = x.shape
    return x.view(batch, heads, 1, head_dim) if tokens == 1 else x.transpose(1, 2)


_kept: tuple[Any, tuple[Tensor, Tensor]] | None = None


def _rope(embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Cosine and signed sine (batch, tokens, 1, head_dim); computed once per pass, as all layers get the same tuple."""
    global _kept  # one slot for all models; a thread that loses the race computes it again
    compiling = torch.compiler.is_compiling()
    if not compiling and (kept := _kept) is not None and kept[0] is embeddings:
        return kept[1]
    cos, sin = embeddings
    first, second = sin.chunk(2, -1)
    result = cos.unsqueeze(-2), torch.cat((-first, second), -1).unsqueeze(-2)
    if not compiling and cos.shape[-2] <= _FEW:
        _kept = (embeddings, result)
    return result
