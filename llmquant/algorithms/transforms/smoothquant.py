"""SmoothQuant: move large inputs into the weights that read them, where they do less harm.

Xiao et al. 2023 (arXiv:2211.10438), equation 4. Where linear layers read a norm, its output j is divided by

    s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)

and column j of all weights W that read it is multiplied by s_j. The division costs nothing: it goes into the weight
(and bias) of the norm. By default s_j is rounded to a power of two. That moves no less in effect, and makes the
transform free of rounding: a 16-bit model computes the same bits with it as without.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from llmquant.algorithms.transforms.base import Block
from llmquant.errors import QuantizationError, RecipeError
from llmquant.models.edits import Edit
from llmquant.models.families import NormReaders, find_family, norm_readers
from llmquant.numerics.checks import require_finite
from llmquant.statistics.base import LayerStatistics

NEEDS: frozenset[str] = frozenset({"absmax"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options of SmoothQuant.

    Attributes:
        alpha: how much of the inputs' range moves into the weights: 0 nothing, 1 all of it.
        powers_of_two: whether scales are rounded to powers of two, so that storing the result in 16 bits costs nothing.
    """

    alpha: float = 0.5
    powers_of_two: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise RecipeError(f"smoothquant: alpha is a share in 0 to 1, not {self.alpha}")


def reads(block: Block) -> tuple[str, ...]:
    """The first of the layers that read each norm: all of them see the same inputs."""
    return tuple(block.full(pair.readers[0]) for pair in norm_readers(block.module))


def why_not(block: Block) -> str | None:
    """Where no norm is known whose output linear layers alone read."""
    if norm_readers(block.module):
        return None
    kind = type(block.module).__name__
    if find_family(block.module) is None:
        return f"smoothquant leaves {block.name} as it is: which layers read which norm is not known of {kind}"
    return f"smoothquant leaves {block.name} as it is: in {kind} no norm has a weight that linear layers alone read"


@torch.no_grad()
def fit(block: Block, statistics: Mapping[str, LayerStatistics], options: Options) -> list[Edit]:
    """For each norm the edits of it and of all that read it; see `base.Transform.fit`."""
    edits = []
    for pair in norm_readers(block.module):
        largest = _largest_inputs(statistics, block.full(pair.readers[0]))
        scales = _scales(largest, _largest_weights(block, pair), options)
        if pair.offset:
            # The stored weight is small beside the offset. It stays as exact where the sum of both only grows.
            scales = scales / scales.max()
        norm = block.module.get_submodule(pair.norm)
        for leaf, offset in (("weight", pair.offset), ("bias", 0.0)):
            if getattr(norm, leaf, None) is not None:
                edits.append(Edit("scale_out", f"{block.full(pair.norm)}.{leaf}", 1 / scales, offset=offset))
        edits += [
            Edit("scale_in", f"{block.full(reader)}.weight", scales, turned=_is_turned(block, reader))
            for reader in pair.readers
        ]
    return edits


def _largest_inputs(statistics: Mapping[str, LayerStatistics], name: str) -> Float64[Tensor, " in"]:
    largest = statistics[name].get("absmax") if name in statistics else None
    if largest is None:
        raise QuantizationError(f"smoothquant needs the largest inputs of {name} from calibration, but there are none")
    require_finite(largest, f"the largest inputs of {name}")
    return largest.double().cpu()


def _largest_weights(block: Block, pair: NormReaders) -> Float64[Tensor, " in"]:
    """Over the outputs of all layers that read the norm."""
    largest = []
    for reader in pair.readers:
        weight = block.module.get_parameter(f"{reader}.weight")
        require_finite(weight, f"{block.full(reader)}.weight")
        largest.append(weight.abs().amax(-1 if _is_turned(block, reader) else 0))
    return torch.stack(largest).amax(0).double().cpu()


def _scales(
    inputs: Float64[Tensor, " in"], weights: Float64[Tensor, " in"], options: Options
) -> Float64[Tensor, " in"]:
    """1 where an input or a weight is 0 throughout, as nothing is known of it then."""
    scales = inputs**options.alpha / weights ** (1 - options.alpha)
    scales = torch.where((inputs > 0) & (weights > 0), scales, 1.0)
    return torch.exp2(scales.log2().round()) if options.powers_of_two else scales


def _is_turned(block: Block, reader: str) -> bool:
    return type(block.module.get_submodule(reader)).__name__ == "Conv1D"
