"""What tune.py measures with on a GPU: CUDA graphs of one call after the other, each with another copy of the weight.

The copies together are four times as large as the level-2 cache, so that every call reads its weight from memory, as in
a model; a graph leaves out what Python takes. Data is random: zeros would draw less power, and clocks would rise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional

from llmquant.kernels.gpu import counters, launch, launch_a8
from llmquant.kernels.gpu.choose.config import Config
from llmquant.kernels.gpu.choose.tune import CannotRun, Case, Timing
from llmquant.kernels.gpu.weight import prepare
from llmquant.kernels.ops import linear_w8a8
from llmquant.kernels.ops.dequantize import dequantize
from llmquant.kernels.product import PackedWeight
from llmquant.numerics.pack import pack_zeros, packed_words

_REPLAYS, _WARM_UP = 20, 3
_LEAST_BYTES = 256 << 20


Call = Callable[[Tensor, Tensor, Config], Tensor]


@dataclass(frozen=True)
class _Subject:
    """What a case is measured with."""

    weight: Tensor  # prepared; of w8a8 the codes
    call: Call  # x (m, in_features), a weight like this one, and the configuration, to (m, n)
    reference: Callable[[Tensor], Tensor]  # x to the result that is right
    dtype: torch.dtype  # of x


class OnGpu:
    """Measures configurations, and keeps what it needs for the last case."""

    def __init__(self, device: torch.device) -> None:
        """Measure on a GPU; on the CPU, through the interpreter, only `error` makes sense."""
        self._device = device
        self._case: Case | None = None
        self._subject: _Subject | None = None
        self._copies: list[Tensor] = []
        self._x = self._expected = torch.empty(0)

    def __call__(self, case: Case, m: int, config: Config) -> Timing:
        """Compile, check and time a configuration for m rows.

        Raises:
            CannotRun: if the configuration does not compile or does not fit the GPU.
        """
        with torch.inference_mode():
            error = self.error(case, m, config)
            return Timing(self._microseconds(config), error)

    def error(self, case: Case, m: int, config: Config) -> float:
        """Relative error in Frobenius norm, against the reference in float32."""
        from triton.errors import TritonError

        subject = self._set_up(case, m)
        try:
            result = subject.call(self._x, subject.weight, config)
        except (TritonError, torch.OutOfMemoryError) as error:
            # Numbers differ from candidate to candidate; the kind of the problem is what is counted.
            raise CannotRun(type(error).__name__) from error
        return float((result.float() - self._expected).norm() / self._expected.norm())

    def _set_up(self, case: Case, m: int) -> _Subject:
        if self._subject is None or case != self._case:
            self._case, self._copies, self._x = case, [], torch.empty(0)
            self._subject = (_int8 if case.kind == "w8a8" else _packed)(case, self._device)
        if self._x.shape[0] != m:
            self._x = torch.randn(m, case.form.in_features, device=self._device).to(self._subject.dtype)
            self._expected = self._subject.reference(self._x).float()
        return self._subject

    def _microseconds(self, config: Config) -> float:
        subject = self._subject
        assert subject is not None
        if not self._copies:
            cache = torch.cuda.get_device_properties(self._device).L2_cache_size
            count = max(2, -(-max(4 * cache, _LEAST_BYTES) // subject.weight.nbytes))
            self._copies = [subject.weight, *(subject.weight.clone() for _ in range(count - 1))]
        with torch.cuda.device(self._device), counters.borrowed():
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for copy in self._copies:
                    subject.call(self._x, copy, config)
            times = [_milliseconds(graph.replay) for _ in range(_WARM_UP + _REPLAYS)]
            graph.reset()
        return median(times[_WARM_UP:]) * 1e3 / len(self._copies)


def _milliseconds(replay: Callable[[], None]) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def _packed(case: Case, device: torch.device) -> _Subject:
    """A random weight of packed codes; any bits are codes."""
    form = case.form
    words = packed_words(form.in_features, form.bits)
    packed = torch.randint(-(1 << 31), 1 << 31, (case.n, words), dtype=torch.int32, device=device)
    shape = (1,) if form.per_tensor else (case.n, form.groups)
    scale, zero = _scale(shape, form.scale_dtype, device), None
    if form.asymmetric:
        half = 1 << (form.bits - 1)
        zero = torch.randint(-half, half, shape, dtype=torch.int8, device=device)
        zero = zero if form.per_tensor else pack_zeros(zero, form.bits)
    stored = PackedWeight(packed, scale, zero, form.bits, form.in_features)
    dense = dequantize(*stored, torch.float32)
    numbers, exact = form.numbers(), case.kind != "w4a8"

    def call(x: Tensor, weight: Tensor, config: Config) -> Tensor:
        return launch.linear(x, weight, None, case.n, numbers, exact, config=config)

    dtype = torch.bfloat16 if form.scale_dtype == torch.float32 else form.scale_dtype
    return _Subject(prepare(stored), call, lambda x: functional.linear(x.float(), dense), dtype)


def _int8(case: Case, device: torch.device) -> _Subject:
    """A random weight of a W8A8 layer, as it is in the checkpoint."""
    shape, dtype = (case.n, case.form.in_features), case.form.scale_dtype
    weight = torch.randint(-128, 128, shape, dtype=torch.int8, device=device)
    scale = _scale((case.n, 1), dtype, device)

    def call(x: Tensor, weight: Tensor, config: Config) -> Tensor:
        return launch_a8.linear_w8a8(x, weight, scale, config=config)

    return _Subject(weight, call, lambda x: linear_w8a8.linear_reference(x, weight, scale), dtype)


def _scale(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return (torch.rand(shape, device=device) + 0.5).mul_(0.01).to(dtype)
