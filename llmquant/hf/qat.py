"""`convert_qat`, and putting trainable layers in the place of dense ones: the two ends of quantization-aware training.

Between them a model is an ordinary one of transformers, for any trainer: no quantizer, no entry in its config.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from llmquant.algorithms.rounding.base import LayerResult
from llmquant.compat.parameter_names import not_saved, set_not_saved, set_tied, tied
from llmquant.compat.quantizers import CompressedTensorsConfig, mark_as_packed
from llmquant.errors import CheckpointError, QuantizationError
from llmquant.formats.compressed_tensors.config import model_quantization_config
from llmquant.hf.packed import PackedQuantizer
from llmquant.hf.place import finish
from llmquant.hf.ties import replace, share_with_heads
from llmquant.nn.embedding import PackedEmbedding
from llmquant.nn.fake_embedding import FakeEmbedding
from llmquant.nn.fake_linear import FakeLinear
from llmquant.nn.fake_weight import FakeWeight
from llmquant.nn.int8_linear import Int8Linear
from llmquant.nn.linear import PackedLinear
from llmquant.nn.storage import PackedStorage, frozen
from llmquant.recipe.plan import MatrixRow, Plan
from llmquant.recipe.qat import Qat

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_STATE = "llmquant_qat"


@dataclass
class QatState:
    """What a model in training knows of where it comes from.

    Attributes:
        plan: of its recipe.
        made: what llmquant.json will say of how it was rounded.
        ties: names of parameters of the dense model that are others', and those others.
        trained: what llmquant.json will say of the training; whoever trains writes it.
        hooks: on the model while it is trained.
    """

    plan: Plan
    made: dict[str, Any]
    ties: dict[str, str]
    trained: dict[str, Any] = field(default_factory=dict)
    hooks: list[RemovableHandle] = field(default_factory=list)

    @property
    def qat(self) -> Qat:
        """The section of the recipe."""
        assert self.plan.recipe.qat is not None
        return self.plan.recipe.qat


def qat_state(model: nn.Module) -> QatState:
    """What `prepare_qat` left on a model.

    Raises:
        CheckpointError: if the model was not prepared.
    """
    state = getattr(model, _STATE, None)
    if not isinstance(state, QatState):
        raise CheckpointError(
            f"this {type(model).__name__} was not prepared for training; call llmquant.prepare_qat(model, recipe), or "
            "load it with a RecipeConfig whose recipe has a section qat"
        )
    return state


def fake_layers(model: nn.Module) -> dict[str, FakeWeight]:
    """The layers that are trained as they will be read, by name; each once, heads that share their weight too."""
    return {name: module for name, module in model.named_modules() if isinstance(module, FakeWeight)}


def place_fake(model: PreTrainedModel, plan: Plan, made: dict[str, Any], results: Mapping[str, LayerResult]) -> None:
    """Replace the layers of a plan by trainable ones that start from `results`; what is not trained gets no gradient.

    `model` is dense, with the edits of transforms applied.
    """
    qat, ties = plan.recipe.qat, tied(model)
    assert qat is not None
    generator = torch.Generator().manual_seed(qat.seed)
    for row in plan.quantized:
        module = model.get_submodule(row.module.name)
        replace(model, row.module.name, _fake(row, module, results[row.name], qat, generator))
    share_with_heads(model)
    setattr(model, _STATE, QatState(plan, made, ties))
    select_trained(model, qat)


def _fake(
    row: MatrixRow, module: nn.Module, result: LayerResult, qat: Qat, generator: torch.Generator
) -> FakeLinear | FakeEmbedding:
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    if isinstance(module, nn.Embedding):
        fake = FakeEmbedding(module)
    else:
        bias = module.bias
        assert bias is None or isinstance(bias, nn.Parameter)
        out_features, in_features = result.quantized.codes.shape
        fake = FakeLinear(in_features, out_features, bias, turned=row.matrix.turned)
    fake.hold(result.quantized.to(weight.device), row.scheme, qat.ranges, weight)
    if qat.lora:
        fake.adapt(qat.lora.rank, qat.lora.alpha, generator)
    if row.scheme.activations == "static" and isinstance(fake, FakeLinear):
        fake.observe_inputs()
    return fake


def select_trained(model: PreTrainedModel, qat: Qat) -> None:
    """Let the parameters ask for a gradient that `qat.train` names; low-rank changes in place of their weights."""
    layers = fake_layers(model).values()
    own = {id(tensor) for layer in layers for tensor in layer.parameters(recurse=False)}
    changes = {id(tensor) for layer in layers for term in layer.terms() for tensor in term[:2]}
    still = {id(layer.weight) for layer in layers if layer.terms()}
    for name, parameter in model.named_parameters():
        if id(parameter) in own | changes and not name.endswith(".bias"):
            parameter.requires_grad_(id(parameter) not in still)
            continue
        wanted = qat.train == "all" or (qat.train == "norms" and parameter.ndim < 2)
        parameter.requires_grad_(wanted and parameter.dtype == torch.float32)


def convert_qat(model: PreTrainedModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Turn a trained model into a packed one, in place; on the reference kernels its logits stay, bit for bit.

    The result is as `from_pretrained` with a `RecipeConfig` gives it: `save_pretrained` writes the checkpoint that
    transformers, vLLM and SGLang load, and `push_to_hub` publishes it with a card.

    Args:
        model: as `prepare_qat` made it, trained; also in a model of peft, whose adapters are merged.
        dtype: of what is not quantized; by default that of the model. Scales were trained as `prepare_qat` was told to
            store them.

    Raises:
        CheckpointError: if the model was not prepared, or has adapters without being a model of peft.
        QuantizationError: if weights are not finite, naming the layer, or inputs of a static scheme were never seen.
    """
    state, adapted = qat_state(model), model
    model = model.get_base_model() if hasattr(model, "get_base_model") else model  # pyright: ignore[reportCallIssue]
    layers = fake_layers(model)
    if model is adapted and (
        inside := [name for name, module in model.named_modules() if hasattr(module, "base_layer")]
    ):
        raise CheckpointError(
            f"{inside[0]} has an adapter that transformers has put there, whose names it would save; put adapters "
            "around with peft.get_peft_model(model, config), or PeftModel.from_pretrained(model, folder)"
        )
    if waiting := [name for name, layer in layers.items() if not layer.fake_quant]:
        raise CheckpointError(
            f"{waiting[0]} and {len(waiting) - 1} more have not been trained with rounding yet: training ended before "
            "fake_quant_after_n_steps; train longer, or lower it"
        )
    heads = {target.rpartition(".")[0] for target in tied(model)}
    packed = {layer: _packed(name, layer) for name, layer in layers.items() if name not in heads}
    ends = {name for name in layers if name in heads}
    model = model if model is adapted else adapted.merge_and_unload()  # pyright: ignore[reportCallIssue]
    set_not_saved(model, {key for key in not_saved(model) if key.rpartition(".")[0] not in ends})
    set_tied(model, state.ties)
    for name, layer in fake_layers(model).items():
        if layer in packed:
            replace(model, name, packed[layer])
    share_with_heads(model)
    delattr(model, _STATE)
    for hook in state.hooks:
        hook.remove()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if dtype is not None:
        _cast(model, dtype)
    model.eval()
    finish(model)
    quantizer = PackedQuantizer(CompressedTensorsConfig(model_quantization_config(state.plan)))
    quantizer.made = {**state.made, "training": state.trained}
    mark_as_packed(model, quantizer)
    return model


def _cast(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Cast what a checkpoint holds; frequencies of positions are no part of it, and stay as a loaded model has them."""
    saved = model.state_dict().keys()
    kept = [(name, buffer) for name, buffer in model.named_buffers() if name not in saved]
    model.to(dtype)  # pyright: ignore[reportArgumentType]
    for name, buffer in kept:
        owner, _, own = name.rpartition(".")
        setattr(model.get_submodule(owner), own, buffer)


def _packed(name: str, layer: FakeWeight) -> PackedStorage:
    try:
        quantized = layer.quantized()
    except QuantizationError as error:
        raise QuantizationError(f"{name}: {error}") from error
    if isinstance(layer, FakeEmbedding):
        table = PackedEmbedding.from_quantized(quantized, layer.scheme)
        table.embed_scale, table.dense_class, table.padding_idx = (
            layer.embed_scale, layer.dense_class, layer.padding_idx,
        )  # fmt: skip
        return table
    assert isinstance(layer, FakeLinear)
    if not layer.scheme.activations:
        return PackedLinear.from_quantized(quantized, layer.scheme, layer.bias)
    packed = Int8Linear(
        layer.in_features, layer.out_features, layer.scheme, layer.bias is not None, layer.scale_dtype, "meta"
    )
    packed.weight, packed.weight_scale = frozen(quantized.codes), frozen(quantized.scales)
    packed.bias = None if layer.bias is None else frozen(layer.bias.detach())
    if layer.input_scale is not None:
        if not bool(layer.input_scale):
            raise QuantizationError(f"{name}: the scale of inputs is not known; train on some text first")
        packed.input_scale = frozen(layer.input_scale.to(layer.scale_dtype))
    return packed
