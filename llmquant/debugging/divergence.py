"""KL(baseline‖changed) of many changed models on the same batch, as `llmquant.eval` measures it.

What the baseline says is looked at once.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from llmquant.eval.statistics import Estimate, cluster_bootstrap

_SLICE_ELEMENTS = 1 << 22  # float64 numbers at once
_LOWEST = -1e300  # in place of -inf


class Reference:
    """What the baseline predicts at the scored tokens of a batch, in float64."""

    def __init__(self, logits: Tensor, scored: Tensor) -> None:
        """Take logits (windows, length - 1, vocabulary) and what is scored of them (windows, length - 1)."""
        self._places = scored.to(logits.device).nonzero(as_tuple=True)
        log_p = _wide(logits[self._places]).log_softmax(-1)
        self._p = log_p.exp()
        self._entropy = -torch.linalg.vecdot(self._p, log_p.nan_to_num_(neginf=_LOWEST))
        self.windows = self._places[0].cpu().numpy()
        self.count = len(scored)

    @property
    def finite(self) -> bool:
        """Whether the baseline says something everywhere."""
        return bool(self._entropy.isfinite().all())

    def kl(self, logits: Tensor) -> np.ndarray:
        """Nats at each scored token, of logits of the same shape; NaN where they are not finite."""
        rows = max(1, _SLICE_ELEMENTS // logits.shape[-1])
        parts = zip(self._p.split(rows), self._entropy.split(rows), logits[self._places].split(rows), strict=True)
        return np.concatenate([_divergence(*part) for part in parts])


def _wide(logits: Tensor) -> Tensor:
    return logits.to("cpu" if logits.device.type == "mps" else logits.device, torch.float64)


def _divergence(p: Tensor, entropy: Tensor, logits: Tensor) -> np.ndarray:
    """Sum of p (ln p - ln q) for each row, as -H(p) - sum of p times logits + ln sum exp logits."""
    wide = _wide(logits)
    crossed = torch.linalg.vecdot(p, wide)
    if crossed.isnan().any():  # 0 times -inf is 0, where both models mask a token
        crossed = torch.linalg.vecdot(p, wide.nan_to_num(nan=torch.nan, neginf=_LOWEST))
    return (wide.logsumexp(-1) - crossed - entropy).clamp_min_(0.0).cpu().numpy()


class Tally:
    """The mean over all scored tokens of what comes batch by batch."""

    def __init__(self) -> None:
        self._sums: list[float] = []
        self._counts: list[float] = []

    def add(self, reference: Reference, kl: np.ndarray) -> None:
        """Add a batch."""
        for window in np.unique(reference.windows):
            values = kl[reference.windows == window]
            self._sums.append(float(values.sum()))
            self._counts.append(float(len(values)))

    @property
    def mean(self) -> float:
        """Nats per token."""
        return sum(self._sums) / sum(self._counts)

    def estimate(self) -> Estimate:
        """With its 95 % interval, windows as the unit."""
        return cluster_bootstrap(np.array(self._sums), np.array(self._counts), least=0.0)

    def change_to(self, other: Tally) -> Estimate:
        """How much more the other is, on the same windows: paired, so far narrower than either."""
        return cluster_bootstrap(np.array(other._sums) - np.array(self._sums), np.array(self._counts))
