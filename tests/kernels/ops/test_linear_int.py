"""The ops `llmquant::linear_int*`: against float64 and the dense layer, registration, compilation, gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from llmquant.kernels.ops.linear_int import OPS
from llmquant.numerics.quantized import QuantizedTensor
from llmquant.spec import BITS

# Of the sum of absolute products of an output: some roundings of the dtype.
TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
# Names of schemes with the sizes of odd layers: (name after "intN", out_features, in_features).
SCHEMES = [
    ("", 1, 33),
    ("-asym", 7, 33),
    ("-g8", 3, 40),
    ("-g11-asym", 9, 33),
    ("-tensor", 5, 1),
    ("-tensor-asym", 5, 9),
]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("scheme", "out_features", "in_features"), SCHEMES)
@pytest.mark.parametrize("rows", [(), (0,), (1,), (2, 3)])
def test_against_float64(make_packed: Callable, bits, scheme, out_features, in_features, rows) -> None:
    for dtype, tolerance in TOLERANCE.items():
        p = make_packed(f"int{bits}{scheme}", out_features, in_features, torch.float32)
        x = torch.randn(*rows, in_features, dtype=dtype)
        bias = torch.randn(out_features, dtype=dtype) if len(rows) == 1 else None
        got = OPS[bits](x, p.packed, p.scale, p.zero, bias)
        weight = p.weight64()
        wanted, size = torch.zeros(2, *rows, out_features, dtype=torch.float64)
        for o in range(out_features):
            for i in range(in_features):
                product = x[..., i].double() * weight[o, i].to(dtype).double()
                wanted[..., o] += product
                size[..., o] += product.abs()
            if bias is not None:
                wanted[..., o] += bias[o].double()
                size[..., o] += bias[o].double().abs()
        assert got.dtype == dtype
        assert got.shape == wanted.shape
        assert got.is_contiguous()
        smallest = torch.finfo(dtype).tiny * torch.finfo(dtype).eps
        assert ((got.double() - wanted).abs() <= tolerance * size + smallest).all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_bits_of_the_dense_layer(make_packed: Callable, bits, dtype) -> None:
    p = make_packed(f"int{bits}-g16-asym", 24, 64, dtype)
    x, bias = torch.randn(2, 7, 64, dtype=dtype), torch.randn(24, dtype=dtype)
    dense = QuantizedTensor(p.codes, p.scales, p.zeros).dequantize()
    assert torch.equal(OPS[bits](x, p.packed, p.scale, p.zero, bias), functional.linear(x, dense, bias))


def test_wrong_inputs_are_refused(make_packed: Callable) -> None:
    p = make_packed("int4-g8", 5, 24)
    x = torch.randn(2, 24)
    with pytest.raises(RuntimeError, match="x is a float"):
        OPS[4](x.int(), p.packed, p.scale)
    with pytest.raises(RuntimeError, match="a weight with 16 inputs"):
        OPS[4](x[:, :16], p.packed, p.scale)
    for bias in (torch.zeros(4), torch.zeros(5, dtype=torch.float16)):
        with pytest.raises(RuntimeError, match="the bias is"):
            OPS[4](x, p.packed, p.scale, None, bias)
    with pytest.raises(RuntimeError, match="a weight with 24 inputs at 8 bits"):
        OPS[8](x.to("meta"), p.packed.to("meta"), p.scale.to("meta"))


@pytest.mark.parametrize("bits", BITS)
def test_opcheck(make_packed: Callable, bits) -> None:
    p = make_packed(f"int{bits}-g8-asym", 5, 24, torch.bfloat16)
    bias = torch.randn(5, dtype=torch.bfloat16, requires_grad=True)
    x = torch.randn(2, 3, 24, dtype=torch.bfloat16, requires_grad=True)
    torch.library.opcheck(OPS[bits], (x, p.packed, p.scale, p.zero, bias))
    torch.library.opcheck(OPS[bits], (x.detach()[0], p.packed, p.scale, p.zero))


def test_gradients(make_packed: Callable) -> None:
    for name in ("int4-g8-asym", "int3", "int8-tensor"):
        p = make_packed(name, 5, 24, torch.float64)
        op = OPS[p.scheme.bits]
        bias = torch.randn(5, dtype=torch.float64, requires_grad=True)
        for rows in ((), (3,), (2, 3)):
            x = torch.randn(*rows, 24, dtype=torch.float64, requires_grad=True)
            assert torch.autograd.gradcheck(lambda x, b, p=p, op=op: op(x, p.packed, p.scale, p.zero, b), (x, bias))


def test_gradient_is_that_of_the_dense_layer(make_packed: Callable) -> None:
    p = make_packed("int4-g8", 5, 24, torch.bfloat16)
    dense = QuantizedTensor(p.codes, p.scales).dequantize()
    x = torch.randn(3, 24, dtype=torch.bfloat16)
    grads = []
    for function in (lambda x: OPS[4](x, p.packed, p.scale), lambda x: functional.linear(x, dense)):
        leaf = x.clone().requires_grad_()
        function(leaf).square().sum().backward()
        grads.append(leaf.grad)
    assert torch.equal(grads[0], grads[1])


def test_scale_is_frozen(make_packed: Callable) -> None:
    p = make_packed("int4-g8", 5, 24)
    with pytest.raises(RuntimeError, match="packed weights are frozen"):
        OPS[4](torch.randn(1, 24), p.packed, p.scale.requires_grad_())


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_without_a_break(make_packed: Callable, backend) -> None:
    p, q = make_packed("int4-g8-asym", 24, 24), make_packed("int8", 5, 24)

    def network(x: torch.Tensor) -> torch.Tensor:
        hidden = functional.silu(OPS[4](x, p.packed, p.scale, p.zero))
        return OPS[8](hidden, q.packed, q.scale)

    compiled = torch.compile(network, fullgraph=True, backend=backend)
    for rows in (1, 3, 4):
        x = torch.randn(rows, 24, requires_grad=True)
        y = torch.randn(rows, 24).copy_(x.detach()).requires_grad_()
        one, other = compiled(x), network(y)
        assert torch.equal(one, other)
        one.sum().backward()
        other.sum().backward()
        assert x.grad is not None
        assert y.grad is not None
        assert torch.equal(x.grad, y.grad)


@pytest.mark.gpu
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gpu_weight_has_the_bits_of_the_cpu(make_packed: Callable, bits, dtype) -> None:
    for scheme in ("-g16-asym", "", "-tensor-asym"):
        p = make_packed(f"int{bits}{scheme}", 24, 64, dtype)
        zero = p.zero if p.zero is None else p.zero.cuda()
        op = torch.ops.llmquant.dequantize_int.default
        on_gpu = op(p.packed.cuda(), p.scale.cuda(), zero, bits, 64, dtype)
        assert torch.equal(on_gpu.cpu(), op(p.packed, p.scale, p.zero, bits, 64, dtype))
        x, bias = torch.randn(3, 64, dtype=dtype).cuda(), torch.randn(24, dtype=dtype).cuda()
        got = OPS[bits](x, p.packed.cuda(), p.scale.cuda(), zero, bias)
        assert torch.equal(got, functional.linear(x, on_gpu, bias))
