"""Our quantization_config as compressed-tensors itself reads it: which module gets which arguments."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from llmquant.formats.compressed_tensors.codec import encode, suffixes
from llmquant.formats.compressed_tensors.config import quantization_config
from llmquant.numerics.quantized import QuantizedTensor
from llmquant.spec import Scheme

quantization = pytest.importorskip("compressed_tensors.quantization")


def tiny() -> nn.Module:
    with torch.device("meta"):
        attention = {name: nn.Linear(64, 64, bias=False) for name in ("q_proj", "k_proj", "v_proj", "o_proj")}
        mlp = {"gate_up_proj": nn.Linear(64, 128), "down_proj": nn.Linear(128, 64)}
        layers = [nn.ModuleDict({"self_attn": nn.ModuleDict(attention), "mlp": nn.ModuleDict(mlp)}) for _ in range(2)]
        model = nn.ModuleDict({"layers": nn.ModuleList(layers), "embed": nn.Embedding(10, 64)})
        return nn.ModuleDict({"model": model, "lm_head": nn.Linear(64, 10)})


LINEARS = [name for name, module in tiny().named_modules() if type(module) is nn.Linear and name != "lm_head"]


def plan_of(kind: str) -> dict[str, Scheme]:
    if kind == "mixed":
        small, down, wide = map(Scheme.parse, ("int4-g32", "int8", "w8a8-dynamic"))
        return {name: down if "down" in name else wide if ".o_proj" in name else small for name in LINEARS[3:]}
    return dict.fromkeys(LINEARS, Scheme.parse(kind))


@pytest.mark.parametrize(
    "kind", ["int4-g32", "int8", "int3-g32", "int4-tensor", "int4-g32-asym", "w8a8-dynamic", "mixed"]
)
def test_every_module_gets_its_scheme(kind: str) -> None:
    schemes = plan_of(kind)
    kept = [name for name in [*LINEARS, "lm_head"] if name not in schemes]
    config = quantization_config(schemes, kept)
    config.pop("dequantize", None)  # transformers' own key
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parsed = quantization.QuantizationConfig.model_validate(config)
    assert not parsed.model_extra
    model = tiny()
    quantization.apply_quantization_config(model, parsed, show_progress=False)
    for name, module in model.named_modules():
        found = getattr(module, "quantization_scheme", None)
        scheme = schemes.get(name)
        assert (found is None) == (scheme is None), name
        if found is None or scheme is None:
            continue
        weights = found.weights
        group = scheme.group_size
        assert (weights.num_bits, weights.strategy, weights.group_size) == (scheme.bits, scheme.granularity, group)
        assert weights.symmetric == scheme.symmetric
        assert (found.input_activations is not None) == (scheme.activations is not None)
        # The parameters that it makes room for are those that we write.
        compressors = pytest.importorskip("compressed_tensors.compressors")
        compressors.BaseCompressor.get_value_from_registry(found.format).compress_module(module)
        made = dict(module.named_parameters(recurse=False))
        assert set(made) - {"bias"} == set(suffixes(scheme)), name
        ours = encode(name, zeros(scheme, module), scheme)
        for suffix in suffixes(scheme):
            # On meta, compressed-tensors 0.20 forgets to pack zero points: why the config asks to dequantize.
            if suffix != "weight_zero_point":
                assert made[suffix].shape == ours[f"{name}.{suffix}"].shape
                assert made[suffix].dtype == ours[f"{name}.{suffix}"].dtype


def zeros(scheme: Scheme, module: nn.Module) -> QuantizedTensor:
    assert isinstance(module, nn.Linear)
    size = (module.out_features, module.in_features)
    shape = scheme.scale_shape(*size)
    zero = None if scheme.symmetric else torch.zeros(shape, dtype=torch.int8)
    return QuantizedTensor(torch.zeros(size, dtype=torch.int8), torch.ones(shape), zero)
