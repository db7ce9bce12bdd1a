"""What an evaluation allows one to say of the loss, in a word with a size.

The words go by the size of the perplexity's change and by its paired interval, never by the sign alone: a quantized
model that is ahead by 0.1 % is not better, it shows no loss that this text can measure.
"""

from __future__ import annotations

import math
from typing import Literal

from llmquant.eval.statistics import Estimate

Verdict = Literal[
    "identical",
    "within the noise floor",
    "no measurable loss",
    "unclear",
    "negligible loss",
    "small loss",
    "loss",
    "large loss",
    "too little text",
]

NEGLIGIBLE, SMALL, LARGE = 0.001, 0.01, 0.1  # of perplexity: less is negligible, less is small, this much is large


def verdict(difference: Estimate, kl: float, noise_floor: float | None) -> Verdict:
    """The word for a loss.

    Args:
        difference: log-perplexity of the quantized model less the baseline's, paired.
        kl: mean KL(baseline||quantized).
        noise_floor: what rounding of the activations of both models adds to the KL, if it was measured.
    """
    if kl == 0:
        return "identical"
    if difference.low is None or difference.high is None:
        return "too little text"
    if noise_floor is not None and kl <= noise_floor:
        return "within the noise floor"
    if difference.low <= 0:  # also where all of the interval lies below zero
        return "no measurable loss" if math.expm1(difference.high) <= SMALL else "unclear"
    size = math.expm1(difference.value)
    if size < NEGLIGIBLE:
        return "negligible loss"
    if size < SMALL:
        return "small loss"
    return "loss" if size < LARGE else "large loss"
