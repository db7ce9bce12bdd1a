"""What runs a prepared weight: the C++ kernels where it lies on the CPU, the Triton kernels where it lies on a GPU.

A `PackedLinear` holds the bytes of its weight, and with them a `Kernels`, which knows their layout and calls what reads
them: the function itself if nobody watches, which saves the dispatcher's ten microseconds, and the op otherwise.

`LLMQUANT_GPU_KERNELS=interpret` lets weights on the CPU run on the Triton kernels, for tests (kernels/gpu/runtime.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.autograd import forward_ad

from llmquant.kernels.cpu import native
from llmquant.kernels.cpu import ops as cpu_ops
from llmquant.kernels.cpu import weight as cpu_weight
from llmquant.kernels.gpu import launch, ops, runtime  # noqa: F401 - ops registers what torch.ops finds
from llmquant.kernels.gpu import weight as gpu_weight
from llmquant.kernels.product import PackedWeight, Product
from llmquant.spec import Scheme

_GROUP = 32  # what groups have to be a multiple of, on both kinds of device


class Kernels(ABC):
    """The kernels of one prepared weight. Weights whose `Kernels` are equal can share one fused call."""

    @abstractmethod
    def restore(self, weight: Tensor, out_features: int) -> PackedWeight:
        """The weight as the checkpoint stores it, bit for bit."""

    @abstractmethod
    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, out_features: int, exact: bool) -> Tensor:
        """`x @ weight.T + bias`, (..., out_features); `cpu.ops.linear` describes it."""

    @abstractmethod
    def linear_fused(self, x: Tensor, product: Product) -> list[Tensor]:
        """Several weights on one input, without a gradient; the form of the product is left to the kernels."""

    @abstractmethod
    def rows(self, ids: Tensor, weight: Tensor, out_features: int, in_features: int, dtype: torch.dtype) -> Tensor:
        """Look up dequantized rows: (*ids.shape, in_features)."""

    @abstractmethod
    def is_exact(self, bits: int, exact: bool) -> bool:
        """Whether a layer with that `exact` keeps 16 bits of its activations."""

    @abstractmethod
    def name(self, weight: Tensor, bits: int, exact: bool) -> str:
        """For reports, such as "linear_int4: avx512vnni, exact"."""


@dataclass(frozen=True)
class CpuKernels(Kernels):
    """The C++ kernels; the bytes say everything about themselves."""

    def restore(self, weight: Tensor, out_features: int) -> PackedWeight:  # noqa: ARG002 - the bytes know
        return cpu_weight.restore(weight)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, out_features: int, exact: bool) -> Tensor:
        run = cpu_ops.linear if is_plain(x, bias) else torch.ops.llmquant.cpu_linear.default
        return run(x, weight, bias, out_features, exact)

    def linear_fused(self, x: Tensor, product: Product) -> list[Tensor]:
        if is_plain(x):
            return cpu_ops.linear_fused(x, product)
        return torch.ops.llmquant.cpu_linear_fused.default(x, *product[:-1])

    def rows(self, ids: Tensor, weight: Tensor, out_features: int, in_features: int, dtype: torch.dtype) -> Tensor:  # noqa: ARG002
        return torch.ops.llmquant.cpu_embedding.default(ids, weight, in_features, dtype)

    def is_exact(self, bits: int, exact: bool) -> bool:  # noqa: ARG002 - all widths have both accuracies
        return exact

    def name(self, weight: Tensor, bits: int, exact: bool) -> str:  # noqa: ARG002
        return _linear_name(bits, native.isa(), exact)


@dataclass(frozen=True)
class GpuKernels(Kernels):
    """The Triton kernels."""

    form: tuple[int, ...]  # how the weight lies in its bytes: `Format.numbers()` of kernels/gpu/weight.py

    def restore(self, weight: Tensor, out_features: int) -> PackedWeight:
        return gpu_weight.restore(weight, gpu_weight.Format.read(self.form), out_features)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, out_features: int, exact: bool) -> Tensor:
        run = launch.linear if is_plain(x, bias) else torch.ops.llmquant.gpu_linear.default
        return run(x, weight, bias, out_features, self.form, exact)

    def linear_fused(self, x: Tensor, product: Product) -> list[Tensor]:
        if is_plain(x):
            return launch.linear_fused(x, product._replace(form=self.form))
        return torch.ops.llmquant.gpu_linear_fused.default(x, *product[:3], self.form, *product[3:-1])

    def rows(self, ids: Tensor, weight: Tensor, out_features: int, in_features: int, dtype: torch.dtype) -> Tensor:  # noqa: ARG002
        return torch.ops.llmquant.gpu_embedding.default(ids, weight, out_features, self.form, dtype)

    def is_exact(self, bits: int, exact: bool) -> bool:
        return exact or bits == 8  # 8-bit activations are for words of 4-bit codes

    def name(self, weight: Tensor, bits: int, exact: bool) -> str:
        return _linear_name(bits, f"{runtime.arch(weight.device)} triton", self.is_exact(bits, exact))


# One object for all equal layouts, which makes comparing them a matter of nanoseconds.
_CPU = CpuKernels()


_gpu = cache(GpuKernels)


def prepare(weight: PackedWeight) -> tuple[Tensor, Kernels] | str:
    """Bring a weight into the layout of the kernels of the device it lies on; its tensors are not changed.

    Returns:
        the prepared weight, (bytes,) uint8, and what runs it; or the reason why nothing can, in words.
    """
    device = weight.packed.device
    if not on_gpu_kernels(device):
        return cpu_weight.why_not(weight) or (cpu_weight.prepare(weight), _CPU)
    if reason := runtime.why_off(device) or gpu_weight.why_not(weight):
        return reason
    return gpu_weight.prepare(weight), _gpu(tuple(gpu_weight.Format.of(weight).numbers()))


def on_gpu_kernels(device: torch.device) -> bool:
    """Whether it is the Triton kernels that weights on a device would run on, if anything stops them or not."""
    return device.type == "cuda" or runtime.interpreting()


def kernel_on(scheme: Scheme, device: torch.device | str) -> str:
    """What would run layers of a scheme on a device, such as "linear_int4: avx2, exact"."""
    device = torch.device(device)
    gpu, bits = on_gpu_kernels(device), scheme.bits
    if scheme.activations:
        return w8a8_name(not gpu and native.wanted(), device)
    reference = reference_name(bits, device)
    if scheme.group_size is not None and scheme.group_size % _GROUP:
        return f"{reference} (groups of {scheme.group_size}, not a multiple of {_GROUP})"
    if gpu:
        reason = runtime.why_off(device)
        return f"{reference} ({reason})" if reason else _linear_name(bits, f"{runtime.arch(device)} triton", True)
    return _linear_name(bits, native.isa(), True) if native.wanted() else reference


def _linear_name(bits: int, kernels: str, exact: bool) -> str:
    return f"linear_int{bits}: {kernels}, {'exact' if exact else 'fast'}"


def reference_name(bits: int, device: torch.device | str) -> str:
    """What runs a weight that is not prepared, such as "linear_int4: reference, avx2 unpack"."""
    return f"linear_int{bits}: reference, {_unpack_name(device)}"


def embedding_name(bits: int, device: torch.device | str) -> str:
    """What looks up rows of a weight that is not prepared, such as "embedding_int8: avx2 unpack"."""
    return f"embedding_int{bits}: {_unpack_name(device)}"


def _unpack_name(device: torch.device | str) -> str:
    return f"{native.isa() if torch.device(device).type == 'cpu' else 'torch'} unpack"


def w8a8_name(prepared: bool, device: torch.device | str = "cpu") -> str:
    """What runs a W8A8 layer, prepared for the CPU kernels or not, such as "linear_w8a8: avx512vnni"."""
    if prepared:
        return f"linear_w8a8: {native.isa()}"
    reason = runtime.why_off(device)
    if reason is None:
        return f"linear_w8a8: {runtime.arch(device)} triton"
    return f"linear_w8a8: reference ({reason})" if torch.device(device).type == "cuda" else "linear_w8a8: reference"


def is_plain(x: Tensor, bias: Tensor | None = None) -> bool:
    """Whether nobody watches: no gradient, no tracing, no subclass. Then the dispatcher's 10 us can be saved."""
    if torch.compiler.is_compiling() or type(x) is not Tensor or torch._C._len_torch_dispatch_stack():
        return False
    if torch._C._get_tracing_state() is not None or torch._C._are_functorch_transforms_active():
        return False
    if not torch.is_grad_enabled():
        return forward_ad._current_level < 0
    return not (x.requires_grad or (bias is not None and bias.requires_grad)) and forward_ad._current_level < 0
