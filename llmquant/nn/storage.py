"""`PackedStorage`: what all layers with an integer weight have; linear.py, int8_linear.py and embedding.py are thin.

The parameters of a layer have the names, shapes and dtypes of a compressed-tensors file, so a state dict is a piece of
a checkpoint and the other way round. Those of packed weights:

    weight_packed      (out_features, ceil(in_features * bits / 32)) int32
    weight_scale       (out_features, groups) float, or (1,) per tensor
    weight_zero_point  (ceil(out_features * bits / 32), groups) int32, or (1,) int8 per tensor; asymmetric schemes only
    weight_shape       (2,) int64: out_features, in_features
    bias               (out_features,) float, if the layer has one

`prepare` brings the weight into the layout of the fast kernels of the device it lies on (kernels/backend.py). The
tensors of the weight then give way to one buffer, `weight_prepared`, and are made again, bit for bit, for whoever asks:
state dicts, casts, moves to another device. So there is never a second copy of the weights.
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from llmquant.kernels.backend import Kernels, prepare
from llmquant.kernels.ops.dequantize import dequantize
from llmquant.kernels.product import PackedWeight
from llmquant.nn.lent import Lent, same_bytes
from llmquant.numerics.pack import pack, pack_zeros, packed_words, unpack, unpack_zeros
from llmquant.numerics.quantized import QuantizedTensor
from llmquant.spec import Scheme

if TYPE_CHECKING:
    from typing_extensions import Self

#: The checkpoint's tensors of a layer: packed, scale, zero point.
Stored: TypeAlias = tuple[Tensor, Tensor, Tensor | None]
STORED = ("weight_packed", "weight_scale", "weight_zero_point")


class PackedStorage(nn.Module):
    """An integer weight (out_features, in_features), as stored or prepared; abstract: a layer says what it computes.

    It is a base class, not a part of its layers: a part that is a module puts its name into the parameters' names, and
    one that is none leaves each layer to overload what torch calls on modules.
    """

    names: ClassVar[tuple[str, str, str]] = STORED  # of the checkpoint's tensors: codes, scales, zero points
    exact: bool = True  # accuracy of a prepared layer; accuracy.py says what it means
    unprepared: str = ""  # why `prepare` did nothing, in words; empty if it did or was not called
    kernels: Kernels | None = None  # what runs `weight_prepared`; None if it is not prepared
    lent: dict[str, Lent] | None = None  # tensors of a prepared layer that others may change; None if there are none
    weight_prepared: Tensor | None  # (bytes,) in kernel layout; None if it is not prepared
    weight_packed: nn.Parameter
    weight_scale: nn.Parameter
    weight_zero_point: nn.Parameter | None
    weight_shape: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        scheme: Scheme,
        bias: bool = False,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str | None = None,
    ) -> None:
        """Make a layer of zeros, to be filled from a checkpoint; on the meta device it takes no memory.

        Scales and bias are of `dtype`.

        Raises:
            ValueError: if the layer is not for such a scheme, or its group does not divide in_features.
        """
        super().__init__()
        self.in_features, self.out_features, self.scheme = in_features, out_features, scheme
        self.register_buffer("weight_prepared", None, persistent=False)

        def zeros(*shape: int, dtype: torch.dtype = dtype) -> nn.Parameter:
            return frozen(torch.zeros(*shape, dtype=dtype, device=device))

        self._register(zeros)
        self.register_parameter("bias", zeros(out_features) if bias else None)

    @classmethod
    def from_quantized(cls, quantized: QuantizedTensor, scheme: Scheme, bias: Tensor | None = None) -> Self:
        """A layer of a quantized weight, as `take` has it; the bias (out_features,) is shared, not copied."""
        out_features, in_features = quantized.codes.shape
        layer = cls(in_features, out_features, scheme, dtype=quantized.scales.dtype, device="meta")
        layer.take(quantized)
        layer.bias = None if bias is None else frozen(bias.detach())
        return layer

    def _register(self, zeros: Callable[..., nn.Parameter]) -> None:
        """Register the parameters but for the bias; `zeros` makes one of a shape, and of the dtype of scales."""
        scheme, out_features, in_features = self.scheme, self.out_features, self.in_features
        if scheme.is_keep or scheme.activations:
            raise ValueError(f"{type(self).__name__} holds packed integer weights such as int4-g128, not {scheme}")
        groups = scheme.scale_shape(out_features, in_features)
        per_tensor = scheme.granularity == "tensor"
        self.weight_packed = zeros(out_features, packed_words(in_features, scheme.bits), dtype=torch.int32)
        self.weight_scale = zeros(*((1,) if per_tensor else groups))
        if scheme.symmetric:
            self.register_parameter("weight_zero_point", None)
        elif per_tensor:
            self.weight_zero_point = zeros(1, dtype=torch.int8)
        else:
            self.weight_zero_point = zeros(packed_words(out_features, scheme.bits), groups[1], dtype=torch.int32)
        self._set_shape(self.weight_packed.device)

    def _set_shape(self, device: torch.device) -> None:
        shape = [self.out_features, self.in_features]
        self.weight_shape = frozen(torch.tensor(shape, dtype=torch.int64, device=device))

    def take(self, quantized: QuantizedTensor) -> None:
        """Pack a quantized weight into the parameters, on the device of its codes; the scales keep their dtype.

        Raises:
            ValueError: if `quantized` does not fit the scheme.
        """
        codes, scales, zeros = quantized.codes, quantized.scales, quantized.zeros
        scheme = self.scheme
        wanted = scheme.scale_shape(*codes.shape)
        if tuple(scales.shape) != wanted or (zeros is None) != scheme.symmetric:
            raise ValueError(
                f"{scheme} wants scales {list(wanted)} {'without' if scheme.symmetric else 'with'} zeros, got scales "
                f"{list(scales.shape)} {'without' if zeros is None else 'with'} zeros"
            )
        self.weight_packed = frozen(pack(codes, scheme.bits))
        self.weight_scale = frozen(scales.reshape(self.weight_scale.shape).contiguous())
        if zeros is not None:
            per_tensor = scheme.granularity == "tensor"
            self.weight_zero_point = frozen(zeros.reshape(1) if per_tensor else pack_zeros(zeros, scheme.bits))
        self._set_shape(codes.device)

    @abstractmethod
    def kernel_name(self) -> str:
        """What runs this layer where it lies now."""

    def prepare(self) -> bool:
        """Bring the weight into the layout of its device's kernels, if they can run it; else `unprepared` says why.

        Parameters that somebody holds from before are watched like those that are handed out later. Returns whether the
        layer is prepared now.
        """
        if self.weight_prepared is not None:
            return True
        prepared = self._why_stay() or prepare(self.packed())
        if isinstance(prepared, str):
            self.unprepared = prepared
            return False
        self.unprepared = ""
        held = {}
        for name in self.names:
            if name in self._parameters:
                if (parameter := self._parameters[name]) is not None:
                    held[name] = Lent(parameter)
                delattr(self, name)
        parameter = None
        self.weight_prepared, self.kernels = prepared
        self.lent = held
        self._settle()  # which keeps what somebody still holds
        return True

    def unprepare(self) -> None:
        """Go back to the checkpoint's tensors."""
        self._keep(self.stored())

    def _keep(self, stored: Stored) -> None:
        self.weight_prepared, self.kernels, self.lent = None, None, None
        for name, tensor in zip(self.names, stored, strict=True):
            self.register_parameter(name, None if tensor is None else frozen(tensor))

    def stored(self) -> Stored:
        """The checkpoint's tensors: packed, scale, zero point. Made anew if the layer is prepared."""
        if self.weight_prepared is None:
            return self._parameters[self.names[0]], self._parameters[self.names[1]], self._parameters[self.names[2]]  # pyright: ignore[reportReturnType]
        found = self._lend(self.names, by_name=False)
        return found[self.names[0]], found[self.names[1]], found.get(self.names[2])

    def packed(self) -> PackedWeight:
        """The weight as the integer ops take it, whatever the checkpoint's tensors are."""
        return self._as_packed(self.stored())

    def _as_packed(self, stored: Stored) -> PackedWeight:
        """As `packed`, of given tensors."""
        return PackedWeight(*stored, self.scheme.bits, self.in_features)

    def _why_stay(self) -> str | None:
        """Why the kernels shall read the checkpoint's tensors as they are, in words; None if it is theirs to say."""
        return None

    def _restored(self) -> dict[str, Tensor]:
        """The checkpoint's tensors of a prepared layer by name, without what others have done to them."""
        assert self.weight_prepared is not None
        assert self.kernels is not None
        with torch.inference_mode(False):  # tensors of inference mode do not tell that they were changed
            restored = self.kernels.restore(self.weight_prepared, self.out_features)
        return {name: tensor for name, tensor in zip(self.names, restored[:3], strict=True) if tensor is not None}

    def _lend(self, names: Sequence[str], *, by_name: bool) -> dict[str, Tensor]:
        """Hand out tensors of a prepared layer, and watch them from now on; those that it has."""
        self._settle()
        if self.weight_prepared is None:  # what was done to them cannot be prepared
            return {name: tensor for name in names if (tensor := self._parameters[name]) is not None}
        lent, restored = self.lent or {}, {}
        if any(name not in lent for name in names):
            restored = self._restored()  # held until it is handed out
            lent = {name: Lent(restored[name]) for name in names if name in restored} | lent
        self.lent = lent
        return {name: lent[name].hand_out(by_name=by_name) for name in names if name in lent}

    def settle(self) -> None:
        """Take in what others did to the tensors that they were handed."""
        if "torch._dynamo" in sys.modules:  # a decorator would import all of it
            torch.compiler.disable(self._settle)()  # pyright: ignore[reportCallIssue]
        else:
            self._settle()

    # A compiled model has to ask at each call, so that nothing of this may be traced.
    settle._torchdynamo_disable = True  # pyright: ignore[reportFunctionMemberAccess]

    def _settle(self) -> None:
        lent = self.lent
        if lent is None:
            return
        suspects = {name: tensor.now() for name, tensor in lent.items() if tensor.is_suspect()}
        if suspects:
            restored = self._restored()
            if not all(same_bytes(tensor, restored[name]) for name, tensor in suspects.items()):
                packed, scale, zero = ((restored | suspects).get(name) for name in self.names)
                self._prepare_again((packed, scale, zero))  # pyright: ignore[reportArgumentType]  # only zero can be None
        suspects.clear()
        still = {name: tensor for name, tensor in lent.items() if tensor.rest()}
        if self.lent is not None:
            self.lent = still or None

    def _prepare_again(self, stored: Stored) -> None:
        prepared = prepare(self._as_packed(stored))
        if isinstance(prepared, str):
            self._keep(stored)
            self.unprepared = prepared
        else:
            self.weight_prepared, self.kernels = prepared

    def __getattr__(self, name: str) -> Any:
        # Reached only for what is not there: the tensors of a prepared layer.
        if name in self.names and self._buffers.get("weight_prepared") is not None:
            if name == "weight_zero_point" and self.scheme.symmetric:
                return None
            return self._lend([name], by_name=True)[name]
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.names and self.__dict__.get("_buffers", {}).get("weight_prepared") is not None:
            self._as_stored(lambda: super(PackedStorage, self).__setattr__(name, value))
        else:
            super().__setattr__(name, value)

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        if self.weight_prepared is not None:
            for name, tensor in zip(self.names, self.stored(), strict=True):
                if tensor is not None:
                    destination[prefix + name] = tensor
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._as_stored(lambda: super(PackedStorage, self)._load_from_state_dict(*args, **kwargs))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedStorage:
        self._as_stored(lambda: super(PackedStorage, self)._apply(fn, recurse))
        return self

    def _as_stored(self, change: Callable[[], object]) -> None:
        """Change the checkpoint's tensors, and prepare again what was prepared, or could not be as it was."""
        again = self.weight_prepared is not None or bool(self.unprepared)
        if self.weight_prepared is not None:
            self.unprepare()
        change()
        if again:
            self.prepare()

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: the checkpoint's tensors, since prepared weights lie together in large memory."""
        state = self.__dict__.copy()
        if self.weight_prepared is not None:
            state["_buffers"] = state["_buffers"] | {"weight_prepared": None}
            stored = zip(self.names, self.stored(), strict=True)
            tensors = {name: None if tensor is None else frozen(tensor) for name, tensor in stored}
            state["_parameters"] = state["_parameters"] | tensors
            state["kernels"], state["was_prepared"] = None, True
        state["lent"] = None
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        again = state.pop("was_prepared", False)
        super().__setstate__(state)
        if again:
            self.prepare()

    def quantized(self) -> QuantizedTensor:
        """The weight unpacked: codes (out_features, in_features) with scales and zeros as in `numerics`."""
        packed, scale, zero, bits, in_features = self.packed()
        codes = unpack(packed.detach(), bits, in_features)
        shape = self.scheme.scale_shape(self.out_features, self.in_features)
        scales, zeros = scale.detach().reshape(shape), None
        if zero is not None:
            per_tensor = self.scheme.granularity == "tensor"
            zeros = zero.reshape(shape) if per_tensor else unpack_zeros(zero, bits, self.out_features)
        return QuantizedTensor(codes, scales, zeros)

    def dequantize(self) -> Tensor:
        """The dense weight (out_features, in_features) in the dtype of the scales."""
        weight = self.packed()
        return dequantize(*weight._replace(scale=weight.scale.detach()), weight.scale.dtype)

    def extra_repr(self) -> str:
        """What `print(model)` shows of the layer."""
        bias = self.bias is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, scheme={self.scheme}, bias={bias}"


def frozen(tensor: Tensor) -> nn.Parameter:
    """A parameter without a gradient."""
    return nn.Parameter(tensor, requires_grad=False)
