"""Factorise a damped Hessian as L D L^T in a given order of its rows.

The Cholesky factor C of H + damping gives L = C / diag(C). Small matrices are factorised in float64, where GPTQ is
measurably more reproducible; large ones in float32, in the same memory that holds the permuted copy of H.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

from llmquant.errors import QuantizationError

FLOAT64_UP_TO = 4096
FIRST_RAISE = 0.01
GIVE_UP_ABOVE = 100.0
LEAST_SHARE = 0.01  # below which the difference of two sums in float32 may be wrong by more than 1e-4


@dataclass(frozen=True, slots=True)
class Factor:
    """`H_d[order][:, order] = L D L^T`, where H_d is H with its diagonal raised; all in that order.

    Attributes:
        lower: L, of which only the part below its diagonal is meaningful.
        diagonal: of D.
        added: what was added to the diagonal of H.
        raised: how often the damping was raised.
    """

    lower: Float32[Tensor, "in in"]
    diagonal: Float64[Tensor, " in"]
    added: Float64[Tensor, " in"]
    raised: int

    def loss(self, products: Float64[Tensor, " in"], errors: Float64[Tensor, " in"]) -> float | None:
        """`tr(E H E^T)`, without the product of E and H, where `E L` is known.

        Args:
            products: the sums of the squares of the columns of `E L`.
            errors: of those of E.

        Returns:
            the loss; None where it is so small a share of what H_d makes of E that a difference of the two says little.
        """
        damped = self.diagonal @ products
        loss = damped - self.added @ errors
        return loss.item() if loss > LEAST_SHARE * damped else None


def factorise(
    hessian: Float32[Tensor, "in in"], order: Int64[Tensor, " in"], dead: Bool[Tensor, " in"], damp: float
) -> Factor:
    """Factorise a Hessian with its diagonal raised.

    Args:
        hessian: symmetric, positive semidefinite up to rounding; read only.
        order: a permutation.
        dead: inputs whose diagonal entry is 0; theirs is taken as 1.
        damp: what is added to the diagonal first, as a share of the mean of its live entries. Doubled (from at least
            0.01) until the factorisation succeeds.

    Raises:
        QuantizationError: if even a damping of 100 times the mean is not enough.
    """
    size = hessian.shape[0]
    diagonal = hessian.diagonal()
    mean = diagonal[~dead].mean().item()
    dead_in_order = dead[order]
    dtype = torch.float64 if size <= FLOAT64_UP_TO else torch.float32
    # Pivots below the rounding noise of a float32 Hessian say nothing, whatever the precision of the factorisation.
    floor = mean * size * torch.finfo(torch.float32).eps
    raised = 0
    while damp <= GIVE_UP_ABOVE:
        # Symmetric, so the transpose is the same matrix in the column-major layout that LAPACK factorises in place.
        factor = hessian[order.unsqueeze(1), order].to(dtype).t()
        added = dead_in_order.double() + damp * mean
        factor.diagonal().add_(added)
        info = torch.empty((), dtype=torch.int32, device=hessian.device)
        torch.linalg.cholesky_ex(factor, out=(factor, info))
        pivots = factor.diagonal().clone()
        squares = pivots.double().square()
        if info.item() == 0 and bool((squares > floor)[~dead_in_order].all()):
            return Factor(factor.div_(pivots).float(), squares, added, raised)
        del factor
        damp = max(FIRST_RAISE, 2 * damp)
        raised += 1
    raise QuantizationError(
        f"the Hessian ({size} x {size}, mean of the diagonal {mean:.4g}) has no Cholesky factor even with "
        f"{GIVE_UP_ABOVE:g} times its mean added to the diagonal: it is not X^T X of any inputs; calibrate again"
    )
