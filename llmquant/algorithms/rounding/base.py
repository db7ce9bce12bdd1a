"""What a rounding algorithm is: a module with `NEEDS`, `Options` and `quantize`.

Legend: O out_features, I in_features, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from llmquant.numerics.quantized import QuantizedTensor
from llmquant.spec import Scheme
from llmquant.statistics.base import LayerStatistics


@dataclass(frozen=True, slots=True)
class LayerResult:
    """One quantized layer.

    Attributes:
        quantized: codes, scales and zeros.
        loss: share of the output power that the rounding error makes: with D = Q - W and H the Hessian,
            tr(D H D^T) / tr(W H W^T); without a Hessian |D|^2 / |W|^2. 0 is exact.
        counters: how often something unusual was met, such as {"dead_columns": 3}; without zeros.
    """

    quantized: QuantizedTensor
    loss: float
    counters: dict[str, int]

    def to(self, device: torch.device | str) -> LayerResult:
        """The same on a device."""
        return replace(self, quantized=self.quantized.to(device))


class Algorithm(Protocol):
    """A module of this package.

    Attributes:
        NEEDS: names of the statistics that the engine must collect.
        Options: frozen keyword-only dataclass of the recipe keys it takes, all with defaults.
    """

    NEEDS: frozenset[str]
    Options: type[Any]

    def quantize(
        self,
        weight: Float[Tensor, "out in"],
        statistics: LayerStatistics,
        scheme: Scheme,
        options: Any,
        *,
        scale_dtype: torch.dtype,
    ) -> LayerResult:
        """Round one weight; it and the statistics of its inputs are read only.

        Groups run along in_features; scales will be stored in `scale_dtype`.

        Raises:
            QuantizationError: if the weight or a needed statistic is missing or not finite, or the groups do not
                divide in_features.
        """
        ...
