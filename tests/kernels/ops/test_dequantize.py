"""`dequantize`: a loop over bits and elements gives the same numbers; wrong tensors are refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from llmquant.kernels.ops.dequantize import dequantize, dequantize_reference
from llmquant.numerics.quantized import QuantizedTensor


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shape", ["", "-g8", "-g12", "-tensor"])
@pytest.mark.parametrize("suffix", ["", "-asym"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equals_a_loop(make_packed: Callable, bits, shape, suffix, dtype) -> None:
    p = make_packed(f"int{bits}{shape}{suffix}", 5, 24, dtype)
    wanted = p.weight64().to(dtype)
    for function in (dequantize, dequantize_reference):
        assert torch.equal(function(p.packed, p.scale, p.zero, bits, 24, dtype), wanted)
    # The numbers of `numerics`, and of a cast to the activations' dtype afterwards.
    dense = QuantizedTensor(p.codes, p.scales, p.zeros).dequantize()
    assert torch.equal(dense, wanted)
    assert torch.equal(dequantize(p.packed, p.scale, p.zero, bits, 24, torch.float16), dense.to(torch.float16))


def test_other_dtypes_go_through_torch(make_packed: Callable) -> None:
    p = make_packed("int4-g8-asym", 5, 24, torch.float64)
    wanted = QuantizedTensor(p.codes, p.scales, p.zeros).dequantize()
    assert torch.equal(dequantize(p.packed, p.scale, p.zero, 4, 24, torch.float64), wanted)


def test_wrong_tensors_are_refused(make_packed: Callable) -> None:
    p = make_packed("int4-g8-asym", 5, 24)
    t = make_packed("int4-tensor-asym", 5, 24)
    for packed, scale, zero, in_features in [
        (p.packed, p.scale, p.zero, 32),
        (p.packed[:, :2], p.scale, p.zero, 24),
        (p.packed.long(), p.scale, p.zero, 24),
        (p.packed.flatten(), p.scale, p.zero, 24),
        (p.packed, p.scale[:4], p.zero, 24),
        (p.packed, p.scale[:, :0], p.zero, 24),
        (p.packed, torch.ones(5, 5), None, 24),
        (p.packed, p.scale.int(), p.zero, 24),
        (p.packed, p.scale, p.zeros, 24),
        (p.packed, p.scale, p.zero[:, :2], 24),
        (t.packed, t.scale, t.zero.int(), 24),
    ]:
        with pytest.raises(RuntimeError, match=r"a weight with \d+ inputs at 4 bits .* got packed"):
            dequantize(packed, scale, zero, 4, in_features, torch.float32)
    with pytest.raises(RuntimeError, match=r"at 5 bits \(of 2, 3, 4, 8\)"):
        dequantize(p.packed, p.scale, p.zero, 5, 24, torch.float32)


def test_opcheck(make_packed: Callable) -> None:
    for name in ("int3-g8-asym", "int8", "int4-tensor-asym"):
        p = make_packed(name, 5, 24, torch.bfloat16)
        arguments = (p.packed, p.scale, p.zero, p.scheme.bits, 24, torch.float32)
        torch.library.opcheck(torch.ops.llmquant.dequantize_int.default, arguments)
