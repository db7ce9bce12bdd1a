"""Packed layers on the GPU kernels: one copy of the weight where it lies, and the checkpoint's tensors back.

Without a GPU the kernels run in Triton's interpreter, whose bfloat16 is wrong: float16 and float32 here. There a layer
"moves" between GPU and CPU when LLMQUANT_GPU_KERNELS changes and `.to` is called.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llmquant.kernels.backend import CpuKernels, GpuKernels, kernel_on
from llmquant.kernels.cpu import native
from llmquant.kernels.gpu import runtime
from llmquant.nn.accuracy import accuracy_of, kernels_used, set_accuracy
from llmquant.nn.embedding import PackedEmbedding
from llmquant.nn.int8_linear import Int8Linear
from llmquant.nn.linear import PackedLinear
from llmquant.numerics.quantized import QuantizedTensor
from llmquant.spec import Scheme

Move = Callable[[nn.Module, str], Any]

SCHEMES = ["int4-g32-asym", "int4-g128", "int8", "int8-g64-asym", "int3-g32-asym", "int2-g64", "int4-tensor-asym"]
COUNT = 40
needs_cpp = pytest.mark.skipif(native.library() is None, reason="the C++ kernels are not installed")


def layer(name: str = "int4-g32-asym", bias: bool = True, dtype: torch.dtype = torch.float16) -> PackedLinear:
    scheme = Scheme.parse(name)
    codes = torch.randint(scheme.code_min, scheme.code_max + 1, (COUNT, 128), dtype=torch.int8)
    shape = scheme.scale_shape(COUNT, 128)
    zeros = None if scheme.symmetric else torch.randint(scheme.code_min, scheme.code_max + 1, shape, dtype=torch.int8)
    added = torch.randn(COUNT, dtype=dtype) if bias else None
    return PackedLinear.from_quantized(
        QuantizedTensor(codes, (torch.rand(shape) * 0.1).to(dtype), zeros), scheme, added
    )


def prepared(name: str = "int4-g32-asym", device: str = "cpu", **more: Any) -> PackedLinear:
    made = layer(name, **more).to(device)
    assert made.prepare()
    assert isinstance(made.kernels, GpuKernels)
    return made


def wanted(packed: PackedLinear, x: Tensor) -> Tensor:
    """In float64, of the weight before any rounding."""
    parts = packed.quantized()
    codes = parts.codes.double().unflatten(1, (parts.scales.shape[1], -1))
    if parts.zeros is not None:
        codes = codes - parts.zeros.double()[..., None]
    result = x.detach().double() @ (codes * parts.scales.double()[..., None]).flatten(1).T
    return result if packed.bias is None else result + packed.bias.double()


def difference(found: Tensor, true: Tensor) -> float:
    found, true = found.detach().double(), true.detach().double()
    return float((found - true).norm() / true.norm())


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def assert_state(module: nn.Module, state: dict[str, Tensor]) -> None:
    found = module.state_dict()
    assert found.keys() == state.keys()
    for name, tensor in found.items():
        assert tensor.dtype == state[name].dtype
        assert torch.equal(tensor.cpu(), state[name].cpu())


@pytest.fixture
def move(device: str, monkeypatch: pytest.MonkeyPatch) -> Move:
    """Moves a module to "gpu" or "cpu"."""

    def move(module: nn.Module, where: str) -> Any:
        if device == "cuda":
            return module.to("cuda" if where == "gpu" else "cpu")
        if where == "gpu":
            monkeypatch.setenv(runtime.VARIABLE, "interpret")
        else:
            monkeypatch.delenv(runtime.VARIABLE)
        return module.to("cpu")

    return move


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("name", SCHEMES)
def test_one_copy_and_the_same_result(name: str, dtype: torch.dtype, device: str) -> None:
    packed = layer(name, dtype=dtype).to(device)
    x, state = torch.randn(3, 128, dtype=dtype, device=device), state_of(packed)
    true = wanted(packed, x)
    assert packed.prepare()
    assert packed.prepare()  # twice changes nothing
    assert sorted(name for name, _ in packed.named_parameters()) == ["bias", "weight_shape"]
    assert packed.weight_prepared is not None
    assert packed.weight_prepared.device == x.device
    assert difference(packed(x), true) < (5e-4 if dtype == torch.float16 else 2e-6)
    assert packed.kernel_name() == f"linear_int{packed.scheme.bits}: {runtime.arch(device)} triton, exact"
    assert packed.kernel_name() == kernel_on(packed.scheme, device)
    assert_state(packed, state)
    assert torch.equal(packed.weight_packed, state["weight_packed"])
    assert (packed.weight_zero_point is None) == packed.scheme.symmetric
    assert torch.equal(packed.dequantize(), layer_from(state, packed).dequantize())
    packed.unprepare()
    assert packed.kernels is None
    assert_state(packed, state)


def layer_from(state: dict[str, Tensor], like: PackedLinear) -> PackedLinear:
    """A layer that was never prepared."""
    fresh = PackedLinear(128, COUNT, like.scheme, like.bias is not None, like.weight_scale.dtype)
    fresh.load_state_dict(state)
    return fresh.to(like.weight_scale.device)


def test_the_direct_call_and_the_op_agree(device: str) -> None:
    packed = prepared(device=device)
    x = torch.randn(2, 3, 128, dtype=torch.float16, device=device, requires_grad=True)
    with torch.no_grad():
        direct = packed(x)
    assert direct.shape == (2, 3, COUNT)
    through_op = packed(x)
    assert torch.equal(direct, through_op)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(packed, fullgraph=True, backend="aot_eager")(x), direct)
    assert packed.bias is not None
    packed.bias.requires_grad_()
    (grad_x, grad_bias) = torch.autograd.grad(packed(x).sum(), (x, packed.bias))
    torch.testing.assert_close(grad_x, packed.dequantize().sum(0).expand_as(x), rtol=1e-2, atol=1e-2)
    assert torch.equal(grad_bias, torch.full_like(packed.bias, 6))


def test_layers_of_one_model_compile_in_one_graph(device: str) -> None:
    model = nn.Sequential(
        prepared("int8", device, bias=False), nn.Linear(COUNT, 128).half().to(device), prepared(device=device)
    )
    x = torch.randn(2, 128, dtype=torch.float16, device=device)
    torch._dynamo.reset()
    with torch.no_grad():
        assert torch.equal(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
def test_nobody_who_watches_is_bypassed(device: str) -> None:
    packed = prepared(device=device, bias=False)
    x = torch.randn(2, 128, dtype=torch.float16, device=device)
    with torch.no_grad():
        traced: Any = torch.jit.trace(packed, (x,))
        assert torch.equal(traced(x), packed(x))
    assert "gpu_linear" in str(traced.inlined_graph)


def test_inputs_that_the_kernels_do_not_take(device: str) -> None:
    packed = prepared(device=device, bias=False)
    x = torch.randn(3, 128, dtype=torch.float64, device=device)
    reference = layer_from(state_of(packed), packed)
    assert torch.equal(packed(x), reference(x))
    assert packed(x.half()[:0]).shape == (0, COUNT)
    with pytest.raises(RuntimeError, match="128"):
        packed(x.half()[:, :64])
    with pytest.raises(RuntimeError, match="on meta"):
        packed(torch.empty(3, 128, dtype=torch.float16, device="meta"))


def test_copies_pickles_and_loading_keep_it_prepared(device: str) -> None:
    packed, other = prepared(device=device), prepared(device=device)
    x, state = torch.randn(3, 128, dtype=torch.float16, device=device), state_of(packed)
    for twin in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert isinstance(twin.kernels, GpuKernels)
        assert twin.weight_prepared.data_ptr() != packed.weight_prepared.data_ptr()  # pyright: ignore[reportOptionalMemberAccess]
        assert torch.equal(twin(x), packed(x))
        assert_state(twin, state)
    packed.load_state_dict(other.state_dict())
    assert isinstance(packed.kernels, GpuKernels)
    assert torch.equal(packed(x), other(x))


def test_casts_keep_it_prepared(device: str) -> None:
    packed = prepared("int4-g64", device)
    x = torch.randn(3, 128, device=device)
    before, form = packed(x.half()), packed.kernels
    packed.float()
    assert isinstance(packed.kernels, GpuKernels)
    assert packed.kernels != form
    assert packed.weight_scale.dtype == torch.float32
    assert difference(packed(x), before) < 2e-3
    assert "float64" in packed.double().kernel_name()
    assert packed.half().kernels == form


def test_autocast(device: str) -> None:
    packed = prepared(device=device, dtype=torch.float32)
    with torch.autocast(device, torch.float16):
        for dtype in (torch.float16, torch.float32):  # as of nn.Linear
            assert packed(torch.randn(2, 128, dtype=dtype, device=device)).dtype == torch.float16


@needs_cpp
@pytest.mark.parametrize("name", ["int4-g32-asym", "int8"])
def test_moves_change_the_layout_and_nothing_else(name: str, move: Move) -> None:
    packed = move(layer(name), "gpu")
    state = state_of(packed)
    packed.prepare()
    for where, kernels, words in (("cpu", CpuKernels, native.isa()), ("gpu", GpuKernels, "triton")):
        move(packed, where)
        assert isinstance(packed.kernels, kernels)
        assert words in packed.kernel_name()
        assert_state(packed, state)
        x = torch.randn(3, 128, dtype=torch.float16, device=packed.weight_prepared.device)
        assert difference(packed(x), wanted(packed, x)) < 5e-4


def test_what_stays_on_the_reference_says_why(device: str) -> None:
    packed = layer("int4-g8", bias=False).to(device)
    x = torch.randn(2, 128, dtype=torch.float16, device=device)
    before = packed(x)
    assert not packed.prepare()
    assert packed.kernel_name().endswith("(groups of 8, not a multiple of 32)")
    assert packed.kernel_name() == kernel_on(packed.scheme, device)
    assert torch.equal(packed(x), before)
    gone = prepared(device=device).to("meta")
    assert gone.weight_packed.is_meta
    assert gone.weight_prepared is None
    assert "meta" in gone.unprepared
    assert gone.to_empty(device=device).weight_prepared is not None  # tries again


def test_switched_off(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU, as far as the names can tell."""
    monkeypatch.setenv(runtime.VARIABLE, "reference")
    said = f"linear_int4: reference, torch unpack ({runtime.VARIABLE}=reference)"
    assert kernel_on(Scheme.parse("int4-g128"), "cuda") == said
    assert kernel_on(Scheme.parse("w8a8-dynamic"), "cuda") == f"linear_w8a8: reference ({runtime.VARIABLE}=reference)"
    if device == "cuda":
        packed = layer().to(device)
        assert not packed.prepare()
        assert packed.kernel_name() == said


def test_accuracy(device: str) -> None:
    four, eight = prepared("int4-g32", device), prepared("int8", device)
    model = nn.ModuleList([four, eight])
    assert accuracy_of(model) == "exact"
    x = torch.randn(4, 128, dtype=torch.float16, device=device)
    exact = [packed(x) for packed in (four, eight)]
    set_accuracy(model, "fast")
    assert accuracy_of(model) == "fast"
    assert accuracy_of(eight) == "exact"
    arch = runtime.arch(device)
    assert kernels_used(model) == {f"linear_int4: {arch} triton, fast": 1, f"linear_int8: {arch} triton, exact": 1}
    assert torch.equal(eight(x), exact[1])
    assert 1e-3 < difference(four(x), exact[0]) < 3e-2


def tied() -> tuple[Any, dict[str, Tensor]]:
    """A vocabulary that is embedding and head, as a model holds it after loading."""
    alone = layer("int8-g32-asym", bias=False)
    table = PackedEmbedding(128, COUNT, alone.scheme, dtype=torch.float16)
    for name, parameter in alone.named_parameters():
        setattr(table, name, parameter)
    head = table.make_head(None)
    model = nn.ModuleDict({"table": table, "head": head})
    return model, state_of(model)


def held_bytes(model: nn.Module) -> int:
    sizes = {t.data_ptr(): t.nbytes for t in (*model.parameters(), *model.buffers())}
    return sum(sizes.values())


def test_a_tied_vocabulary_is_held_once(move: Move) -> None:
    model, state = tied()
    ids = torch.tensor([[3, 0, COUNT - 1], [7, 7, 1]])
    rows = nn.functional.embedding(ids, model["head"].dequantize())
    move(model, "gpu")
    for module in model.values():
        module.prepare()
    for step in (lambda: model, lambda: copy.deepcopy(model), lambda: move(model, "cpu"), lambda: move(model, "gpu")):
        changed: Any = step()
        table, head = changed["table"], changed["head"]
        assert table.head is head
        assert head.weight_prepared is not None
        assert held_bytes(changed) == head.weight_prepared.nbytes + 2 * 8  # and a shape
        assert torch.equal(table(ids.to(head.weight_prepared.device)).cpu(), rows)
        assert table.kernel_name() == "embedding_int8: rows of the prepared lm_head"
        assert_state(changed, state)
    assert isinstance(model["head"].kernels, GpuKernels)


def test_a_tied_vocabulary_that_could_not_be_prepared_before(move: Move, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedding must let go of the weight too, though it is moved before the head."""
    model, state = tied()
    move(model, "gpu")
    move(model, "cpu")
    with monkeypatch.context() as without_cpp:
        without_cpp.setattr(native, "wanted", lambda: False)
        for module in model.values():
            assert not module.prepare()
    move(model, "gpu")
    assert held_bytes(model) == model["head"].weight_prepared.nbytes + 2 * 8
    assert_state(model, state)


def int8_linear() -> Int8Linear:
    codes = torch.randint(-128, 128, (COUNT, 128), dtype=torch.int8)
    scales = (torch.rand(COUNT, 1) * 0.02 + 1e-3).half()
    return Int8Linear.from_quantized(
        QuantizedTensor(codes, scales), Scheme.parse("w8a8-dynamic"), torch.randn(COUNT).half()
    )


def test_w8a8_reads_the_weight_as_it_is_stored(move: Move) -> None:
    packed = int8_linear()
    x, state = torch.randn(3, 128, dtype=torch.float16), state_of(packed)
    reference = packed(x)
    move(packed, "gpu")
    assert not packed.prepare()
    assert packed.weight_prepared is None
    assert packed.weight.data_ptr() != 0
    x = x.to(packed.weight.device)
    torch.testing.assert_close(packed(x).cpu(), reference, rtol=2e-3, atol=2e-3)
    assert packed.kernel_name() == kernel_on(packed.scheme, packed.weight.device)
    assert_state(packed, state)
    if native.library() is not None:
        move(packed, "cpu")
        assert packed.kernel_name() == f"linear_w8a8: {native.isa()}"  # prepared, since it was asked to be
        move(packed, "gpu")
        assert packed.weight_prepared is None
        assert_state(packed, state)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_on_a_gpu(dtype: torch.dtype) -> None:
    """What the interpreter cannot show: bfloat16, another device, one graph of CUDA and of torch.compile."""
    packed = layer("int4-g128", dtype=dtype).cuda()
    free = torch.cuda.memory_allocated()
    packed.prepare()
    x = torch.randn(4, 128, dtype=dtype, device="cuda")
    with torch.no_grad():
        plain = packed(x)
        assert difference(plain, wanted(packed, x)) < 4e-3
        assert torch.cuda.memory_allocated() - free < packed.weight_prepared.nbytes  # pyright: ignore[reportOptionalMemberAccess]
        with pytest.raises(RuntimeError, match="move the model or x"):
            packed(x.cpu())
        torch._dynamo.reset()
        compiled: Any = torch.compile(packed, fullgraph=True)
        assert torch.equal(compiled(x), plain)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = packed(x)
        x.copy_(torch.randn_like(x))
        graph.replay()
        assert torch.equal(captured, packed(x))
