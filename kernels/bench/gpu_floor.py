"""How fast a product could be: what must be moved over the memory's speed, or the operations over the tensor cores'.

Both speeds are measured in the same run, by what the machine does best: a large copy or sum, and the library's product
of two large random matrices. The longer of the two times is the floor; no kernel runs much below it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from llmquant.kernels.bench.contender import Shape
from llmquant.kernels.bench.gpu_timing import Stopwatch

#: Of a kernel in a chain of others, on both sides of a comparison; the limits that the targets name count with it.
FIXED_US = 2.5
_BYTES = 4 << 30
_SIZE = 8192
_REPEATS = 9


@dataclass(frozen=True)
class Ceilings:
    """What was measured.

    Attributes:
        read_tbs: TB/s of a sum over a tensor.
        copy_tbs: TB/s of a copy, bytes read and bytes written.
        bf16_tflops: of a product of two 8192 x 8192 matrices.
        int8_tops: the same for integers; None where the library has no kernel.
        launch_us: time per call of a chain of the smallest kernels.
    """

    read_tbs: float
    copy_tbs: float
    bf16_tflops: float
    int8_tops: float | None
    launch_us: float

    @property
    def memory_tbs(self) -> float:
        """The faster of copy and sum."""
        return max(self.read_tbs, self.copy_tbs)

    def floor_us(self, shape: Shape, m: int, weight_bytes: int, activations: int = 16) -> float:
        """Microseconds that a product needs at least.

        Args:
            shape: of the weight.
            m: rows.
            weight_bytes: of codes, scales and zeros, or of a dense weight.
            activations: 16, or 8 if integers are multiplied.
        """
        moved = weight_bytes + 2 * m * (shape.n + shape.k)
        rate = self.bf16_tflops
        if activations == 8:
            # Twice the rate of bf16 by the data sheet, where the library could not show it.
            rate = self.int8_tops or 2 * self.bf16_tflops
        return max(moved / self.memory_tbs, 2 * m * shape.n * shape.k / rate) / 1e6

    def limit(self, shape: Shape, m: int, weight_bytes: int, activations: int = 16) -> float:
        """How many times faster than a dense bf16 product it can be, with the fixed cost on both sides."""
        dense = self.floor_us(shape, m, 2 * shape.n * shape.k)
        return (dense + FIXED_US) / (self.floor_us(shape, m, weight_bytes, activations) + FIXED_US)


def measured(watch: Stopwatch) -> Ceilings:
    """Measure the current device; takes about a second, and 8 GiB."""
    source = torch.randn(_BYTES // 4, device=watch.device)
    target = torch.empty_like(source)
    copy, read = _best(watch, partial(target.copy_, source)), _best(watch, partial(torch.amax, source))
    del source, target
    left, right = (torch.randn(_SIZE, _SIZE, device=watch.device).bfloat16() for _ in range(2))
    operations = 2 * _SIZE**3
    bf16 = _best(watch, lambda: left @ right)
    codes = [torch.randint(-127, 128, (_SIZE, _SIZE), dtype=torch.int8, device=watch.device) for _ in range(2)]
    try:
        int8 = operations / _best(watch, lambda: torch.ops.aten._int_mm(codes[0], codes[1].t())) / 1e6
    except RuntimeError:
        int8 = None
    one = torch.zeros(1, device=watch.device)
    launch = min(watch.chains([watch.graph([lambda: one.add_(1)], 1.0)])[0])
    return Ceilings(_BYTES / read / 1e6, 2 * _BYTES / copy / 1e6, operations / bf16 / 1e6, int8, launch)


def _best(watch: Stopwatch, call: Callable[[], object]) -> float:
    return min(watch.once(call) for _ in range(_REPEATS))
