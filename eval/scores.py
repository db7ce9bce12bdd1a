"""What an evaluation keeps of each scored token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmquant.eval.statistics import Floats


@dataclass(frozen=True, slots=True)
class TokenScores:
    """What is kept of each scored token; all arrays (tokens,), in text order.

    Attributes:
        window: number of its window.
        position: place of the predicted token in its window.
        nll_baseline: -ln p(token) by the baseline.
        nll_quantized: the same by the quantized model.
        kl: KL(baseline||quantized) of the whole predicted distribution, in nats.
        confidence: highest probability in the baseline's distribution.
        top_baseline: the baseline's most likely token.
        top_quantized: the quantized model's.
        target: the token of the text.
    """

    window: NDArray[np.int64]
    position: NDArray[np.int64]
    nll_baseline: Floats
    nll_quantized: Floats
    kl: Floats
    confidence: Floats
    top_baseline: NDArray[np.int64]
    top_quantized: NDArray[np.int64]
    target: NDArray[np.int64]

    @property
    def finite(self) -> NDArray[np.bool_]:
        """Whether both models gave finite numbers at a position."""
        return np.isfinite(self.nll_baseline) & np.isfinite(self.nll_quantized) & np.isfinite(self.kl)
