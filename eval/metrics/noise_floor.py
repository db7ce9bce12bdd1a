"""The noise floor: what rounding of activations in 16 bits adds to a KL, on both sides of it.

It matters only where the loss is measured in a 16-bit dtype. The roundings of the two models are independent of each
other and of the change of the weights, so for small divergences they add up: the floor is the mean of
KL(float32 baseline||baseline) + KL(float32 quantized||quantized), on the same windows as the loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from llmquant.compat.foreign_layers import foreign_method
from llmquant.data.windows import Windows
from llmquant.errors import DataError
from llmquant.eval.metrics import base
from llmquant.eval.precision import fits_float32, in_float32, is_narrow
from llmquant.eval.scoring import Reference, batches, evaluating, logits
from llmquant.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from llmquant.eval.pair import Pair


PLACE = 20
BY_DEFAULT = False


@dataclass(frozen=True)
class Section(base.Section):
    """What rounding adds to the KL, in nats per token."""

    kl: float


def measure(pair: Pair, options: base.NoOptions) -> Section | None:
    """The floor; None where the loss is measured in float32, or layers of another library cannot be."""
    if pair.loss.wide or not is_narrow(pair.baseline) or any(map(foreign_method, pair.models)):
        return None
    check_noise_floor(*pair.models)
    with pair.as_stored():
        before = pair.once("noise_floor", lambda: rounding_kl(pair.baseline, pair.windows, pair.progress))
        return Section(before + rounding_kl(pair.quantized, pair.windows, pair.progress))


def check_noise_floor(baseline: PreTrainedModel, quantized: PreTrainedModel) -> None:
    """Refuse what `rounding_kl` could not hold in memory.

    Raises:
        DataError: if one of the models does not fit in float32.
    """
    for model in (baseline, quantized):
        if not fits_float32([model], model.device):
            raise DataError(
                "the noise floor needs one model at a time in float32, and memory is too small; leave it out"
            )


def rounding_kl(model: PreTrainedModel, windows: Windows, progress: Progress) -> float:
    """Mean KL per token that a model in float32 has against itself as it is, which it is again afterwards.

    What computes in float32 adds nothing.

    Raises:
        DataError: if no position is finite.
    """
    if not is_narrow(model):
        return 0.0
    sums = tokens = 0
    progress.stage("noise floor", len(windows), unit="windows")
    for _, ids, scored in batches(model, windows, None):
        with evaluating(model), torch.inference_mode():
            narrow = logits(model, ids)
            with in_float32(model):
                kl = Reference(logits(model, ids), ids, scored).score(narrow).kl
        finite = kl[np.isfinite(kl)]
        sums, tokens = sums + float(finite.sum()), tokens + len(finite)
        progress.step(steps=len(ids))
    if not tokens:
        raise DataError("a model gives NaN or Inf at every position in 16 bits; evaluate in float32")
    return sums / tokens
