"""The rows of a plan: what becomes of one module or one matrix."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch

from llmquant.models.inventory import Matrix, ModuleInfo
from llmquant.recipe.schema import Rounding
from llmquant.spec import Scheme


@dataclass(frozen=True, slots=True)
class PlanRow:
    """The fate of one module; of one that is quantized, a `MatrixRow`.

    Attributes:
        scheme: what its weight becomes; `KEEP` for modules that stay as they are. A tied weight has its owner's.
        bytes_before: in the model's dtype; 0 for tied weights, which their owner counts.
        bytes_after: of all tensors written for it, bias included.
        note: what deserves a look, such as a fallback to another group size; "" mostly.
    """

    module: ModuleInfo
    scheme: Scheme
    rule: str
    rounding: Rounding | None
    bytes_before: int
    bytes_after: int
    note: str = ""

    @property
    def name(self) -> str:
        """Of the module, or of the matrix in a stack."""
        return self.module.name

    @property
    def bits_per_weight(self) -> float:
        """Bits of one of its numbers; 0 if another module owns them."""
        return 8 * self.bytes_after / self.module.parameters if self.module.parameters else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The row as plain data for JSON."""
        return {
            "module": self.name,
            "kind": self.module.kind,
            "sets": sorted(self.module.sets),
            "shape": list(self.module.shape),
            "parameters": self.module.parameters,
            "scheme": self.scheme.name,
            "rule": self.rule,
            "rounding": self.rounding.model_dump(mode="json") if self.rounding else None,
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "bits_per_weight": self.bits_per_weight,
            "tied_to": self.module.tied_to,
            "note": self.note,
        }


@dataclass(frozen=True, slots=True)
class MatrixRow(PlanRow):
    """The fate of a weight that is quantized; of a stack of experts there is one for each.

    Attributes:
        payload: bytes of codes, scales and zero points.
        scale_dtype: in which scales are stored.
        dense_dtype: in which readers multiply scales and codes.
    """

    rounding: Rounding
    matrix: Matrix = field(kw_only=True)
    payload: int = field(kw_only=True)
    scale_dtype: torch.dtype = field(kw_only=True)
    dense_dtype: torch.dtype = field(kw_only=True)

    @property
    def name(self) -> str:
        """Of the module, or of the matrix in a stack."""
        return self.matrix.name

    @property
    def bits_per_weight(self) -> float:
        """Bits that store one weight, scales and zero points included, bias and recorded shape aside."""
        return 8 * self.payload / prod(self.matrix.shape)

    @property
    def needs(self) -> frozenset[str]:
        """The statistics of its inputs that the rounding looks at."""
        return self.rounding.algorithm.NEEDS
