"""Which configurations are worth a try, and in what order: a roofline of the multiprocessor that gets most work.

Nothing in here was measured by us. The first of `candidates` is what runs where no table knows better (dispatch.py);
all of them are what `llmquant bench --tune` measures. The estimate is the longest of what memory, level-2 cache and
arithmetic need, plus what nothing overlaps with:

    memory   weights, x and the result once; slower where too few bytes are in flight to hide the latency
    cache    every program reads its codes and its rows of x, so small blocks read them again and again
    product  of whole blocks, padding included, and the instructions that turn codes into operands
    ramp     filling the pipeline, for each wave of programs
    sums     split-K: a float32 block per program is written, and the last program of each block reads them all

Rates are those of data sheets and published measurements, at the share that good kernels reach.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import ceil, inf
from operator import itemgetter

from llmquant.kernels.gpu.choose.config import DENSE, Config
from llmquant.kernels.gpu.weight import TILE_K, TILE_N

#: Bits of weights and of activations; a32 is float32.
KINDS = ("w4a16", "w8a16", "w4a32", "w8a32", "w4a8", "w8a8")
MOST = 24
_SPLITS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
_LEAST_TILES = 2  # K tiles of a split: with one, nothing of the pipeline overlaps
_REGISTERS = 65536  # of a multiprocessor
_LATENCY = 750.0  # ns of a read from memory under load
_ALIKE = 2  # candidates that differ only in the depth of their pipeline


@dataclass(frozen=True, slots=True)
class Card:
    """What an architecture can do; rates are per multiprocessor, and B/ns is GB/s."""

    shared: int  # bytes of shared memory of a multiprocessor; one program may have all but 1 KB
    memory: float  # B/ns of device memory
    cache: float  # B/ns of the level-2 cache
    tensor: float  # bf16 operations per ns of the tensor cores
    convert: float  # ns to turn 128 x 128 4-bit codes into operands
    asynchronous: bool = False  # products run beside the program (wgmma, tcgen05), so that x needs one more buffer
    registers: int = 205  # of a thread, by the estimate of `residents`; more would spill
    stages: tuple[int, ...] = (4, 3, 5, 6)  # of the software pipeline, the best guess first
    # Not on AMD as long as nobody has seen its compiler order the sums of a program before its count.
    splits: bool = True


_CARDS = {
    "sm80": Card(164 << 10, 16, 40, 2300, 210),  # A100
    "sm86": Card(100 << 10, 10, 20, 750, 180),  # RTX 3090
    "sm89": Card(100 << 10, 7, 36, 1000, 120),  # RTX 4090
    "sm90": Card(228 << 10, 32, 42, 5900, 175, asynchronous=True, registers=220),  # H200
    "sm100": Card(228 << 10, 48, 60, 12000, 165, asynchronous=True),  # B200
    "sm120": Card(100 << 10, 10, 36, 1000, 120),  # RTX 5090
    "gfx942": Card(64 << 10, 14, 39, 2500, 350, stages=(2,), splits=False),  # MI300X
}
_RELATED = (("sm10", "sm100"), ("sm12", "sm120"), ("gfx", "gfx942"))
# Of the library's rate for dense products, what a kernel that converts its weights reaches with many rows: Marlin
# 0.66 to 0.74 on A100 (vllm-project/vllm#2497). Ours has not been measured.
_SHARE = 0.7


@dataclass(frozen=True)
class Product:
    """What is to be computed, and where; as in `candidates`."""

    card: Card
    kind: str
    m: int
    n: int
    k: int
    unit: int
    processors: int

    @cached_property
    def weight_bytes(self) -> float:
        return int(self.kind[1]) / 8

    @cached_property
    def x_bytes(self) -> float:
        return int(self.kind[3:]) / 8

    @cached_property
    def tiles_k(self) -> int:
        return ceil(self.k / TILE_K)

    @cached_property
    def adds_in_place(self) -> bool:
        """Whether the tensor cores add to the sums themselves: where nothing is scaled in between."""
        return self.kind == "w8a8"

    @cached_property
    def rate(self) -> float:
        """Operations per ns of a multiprocessor: int8 has twice the rate of bf16, float32 perhaps a sixteenth."""
        return self.card.tensor * {"8": 2.0, "16": 1.0, "32": 1 / 16}[self.kind[3:]]

    @cached_property
    def convert(self) -> float:
        """ns to turn 128 x 128 codes into operands, in proportion to the instructions of the loop."""
        return self.card.convert * {"w8a8": 0.4, "w4a8": 0.7, "w8a16": 1.7, "w8a32": 1.7}.get(self.kind, 1.0)

    @cached_property
    def dense_from(self) -> float:
        """Rows from which a dense weight is better.

        To read the codes and write the weight takes as long as some rows of the product: 229 on H200. The kernel is
        slower than the library by a share of all rows, so it is better up to that number / (1 / share - 1): 534.
        8-bit activations have no dense product.
        """
        if self.kind.endswith("a8"):
            return inf
        rows = (self.weight_bytes + self.x_bytes) / self.card.memory * self.rate / 2
        return rows / (1 / _SHARE - 1)


def card_of(arch: str) -> Card:
    """What is known of an architecture, or of the nearest relative; RTX 3090, the one with least, for the unknown."""
    related = next((name for prefix, name in _RELATED if arch.startswith(prefix)), "sm86")
    return _CARDS.get(arch, _CARDS[related])


def candidates(arch: str, kind: str, m: int, n: int, k: int, unit: int, processors: int) -> list[Config]:
    """Configurations worth a try, the most promising first; never empty, and at most 24.

    Args:
        arch: such as "sm90".
        kind: one of `KINDS`.
        m: rows of activations.
        n: outputs, of all weights of a launch together.
        k: inputs.
        unit: inputs per scale, 0 for all.
        processors: multiprocessors.

    `DENSE` is the first where a dense weight should win, and the last where it could.
    """
    product = Product(card_of(arch), kind, m, n, k, unit, processors)
    timed = [(nanoseconds(config, product, resident), config) for config, resident in _configs(product)]
    found: list[Config] = []
    alike: dict[tuple[int, ...], int] = {}
    for _, config in sorted(timed, key=itemgetter(0)):
        key = (config.block_m, config.block_n, config.split_k, config.warps)
        alike[key] = alike.get(key, 0) + 1
        if alike[key] <= _ALIKE and len(found) < MOST - 1:
            found.append(config)
    if m >= product.dense_from:
        return [DENSE, *found]
    return [*found, DENSE] if 2 * m >= product.dense_from else found


def _configs(product: Product) -> Iterator[tuple[Config, int]]:
    """Everything that fits, with the programs that fit at a time; the usual before the unusual."""
    rows = [block for block in (128, 64, 256, 32, 16) if block < 2 * max(product.m, 9)]
    outputs = [block for block in (128, 64, 256) if block < 2 * max(product.n, TILE_N // 2 + 1)]
    splits = [split for split in _SPLITS if split == 1 or product.tiles_k >= split * _LEAST_TILES]
    splits = splits if product.card.splits else [1]
    for block_m in rows:
        for block_n in outputs:
            for warps in (4, 8):
                if (warps == 8 and block_n == 64 and block_m < 64) or (warps == 4 and block_n == 256):
                    continue
                fitting = [
                    (stages, resident)
                    for stages in product.card.stages
                    if (resident := residents(Config(block_m, block_n, 1, warps, stages), product))
                ]
                for split in splits:
                    for stages, resident in fitting:
                        yield Config(block_m, block_n, split, warps, stages), resident


def residents(config: Config, product: Product) -> int:
    """Programs that a multiprocessor can hold at a time; 0 if the program does not fit at all."""
    threads, area = 32 * config.warps, config.block_m * config.block_n
    # A thread keeps its part of the operand, of the sums, of the product that is scaled before it is added, and of x.
    # The constants follow what the compiler reports for sm_80 and sm_90; the compile gates see that nothing spills.
    operand = config.block_n * TILE_K * min(product.x_bytes, 2) / 4 / threads
    if product.kind == "w8a8":
        operand = 40  # none, but the int32 sums become floats
    sums = (1 if product.adds_in_place else 2) * area / threads
    parts = 16 if 0 < product.unit < TILE_K else 0  # of a tile are multiplied one after the other
    if product.kind == "w4a8" and parts and area > 8192:
        return 0  # spills on sm_90, and more tensor memory than there is on sm_100
    wide = 8 if product.kind == "w8a16" else 0  # words of 8-bit codes are twice as many
    registers = 24 + operand + sums + parts + wide + 2 * config.block_m / config.warps
    shared = shared_bytes(config, product)
    if registers > product.card.registers or shared > product.card.shared - 2048:
        return 0
    return min(product.card.shared // (shared + 1024), int(_REGISTERS / (registers * threads)), 2048 // threads)


def shared_bytes(config: Config, product: Product) -> int:
    """Shared memory of a program, at most: tiles of codes and of x in flight, and then the sums on their way out."""
    x_depth = config.stages - (not product.card.asynchronous)
    # What the tensor cores read from shared memory themselves stays there one stage longer.
    depth = x_depth if product.kind == "w8a8" else config.stages - 1
    codes, x = config.block_n * TILE_K * product.weight_bytes, config.block_m * TILE_K * product.x_bytes
    through = config.block_n * TILE_K * 4 if product.x_bytes == 4 else 0  # operands of float32
    return max(int(depth * codes + x_depth * x + through), config.block_m * config.block_n * 4) + 2048


def nanoseconds(config: Config, product: Product, resident: int) -> float:
    """The estimate that the module docstring describes; `resident` is that of `residents`."""
    card, m, n, k = product.card, product.m, product.n, product.k
    blocks = ceil(m / config.block_m) * ceil(n / config.block_n)
    most = ceil(blocks * config.split_k / product.processors)  # programs of the multiprocessor with most of them
    resident = min(most, resident)
    tiles = ceil(product.tiles_k / config.split_k)

    codes = config.block_n * TILE_K * product.weight_bytes
    needed = n * k * product.weight_bytes + m * k * product.x_bytes + m * n * 2
    in_flight = resident * min(config.stages - 1, tiles) * codes
    memory = needed / product.processors / card.memory * max(1.0, card.memory * _LATENCY / in_flight)

    sums = config.block_m * config.block_n * 4 if config.split_k > 1 else 0
    cache = most * (tiles * (codes + config.block_m * TILE_K * product.x_bytes) + sums) / card.cache

    multiply = most * tiles * 2 * config.block_m * config.block_n * TILE_K / product.rate
    convert = most * tiles * config.block_n / TILE_K * product.convert
    # Two groups of four warps overlap the two; one group does them in turn.
    arithmetic = max(multiply, convert) if resident * config.warps >= 8 else multiply + convert

    ramp = _LATENCY * ceil(most / resident)
    last = _LATENCY + ceil(blocks / product.processors) * config.split_k * sums / card.cache if sums else 0.0
    return max(memory, cache, arithmetic) + ramp + last
