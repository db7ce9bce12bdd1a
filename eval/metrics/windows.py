"""Sums over each window, by which reports of other runs on the same windows are compared pairwise, with intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llmquant.eval.metrics import base
from llmquant.eval.statistics import Floats

if TYPE_CHECKING:
    from llmquant.eval.pair import Pair

PLACE = 90
ALONE = True


@dataclass(frozen=True)
class Section(base.Section):
    """For each window in order, of its finite positions: how many, and sums over them.

    `nll_baseline` and `kl` are empty where there is no baseline.
    """

    tokens: tuple[int, ...]
    nll_quantized: tuple[float, ...]
    nll_baseline: tuple[float, ...] = ()
    kl: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        lengths = {len(self.tokens), len(self.nll_quantized), *(len(x) for x in (self.nll_baseline, self.kl) if x)}
        if len(lengths) > 1:
            raise ValueError(f"lists of one number for each window have different lengths, {sorted(lengths)}")


def measure(pair: Pair, options: base.NoOptions) -> Section:
    """From the scores of the finite positions."""
    scores = pair.scored.tokens.kept()

    def sums(values: Floats | None) -> NDArray[Any]:
        return np.bincount(scores.window, weights=values, minlength=len(pair.windows))

    tokens, after = tuple(sums(None).tolist()), tuple(sums(scores.nll_quantized).tolist())
    if pair.alone:
        return Section(tokens, after)
    return Section(tokens, after, tuple(sums(scores.nll_baseline).tolist()), tuple(sums(scores.kl).tolist()))
