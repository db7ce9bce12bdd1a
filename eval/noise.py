"""The noise floor: how far the baseline is from itself in the next wider dtype.

A KL below this says nothing about quantization: rounding of the baseline's own activations causes as much.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from llmquant.errors import DataError
from llmquant.eval.divergence import Progress, score_tokens
from llmquant.eval.windows import Windows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WIDER = {torch.bfloat16: torch.float32, torch.float16: torch.float32, torch.float32: torch.float64}


def measure_noise_floor(
    baseline: PreTrainedModel, windows: Windows, *, max_windows: int = 16, progress: Progress | None = None
) -> float:
    """Mean KL(wide baseline||baseline) per token over the first windows.

    Holds a second, wider copy of the baseline in memory.

    Raises:
        DataError: if no position is finite, or the dtype has no wider one.
    """
    if baseline.dtype not in _WIDER:
        raise DataError(f"no wider dtype than {baseline.dtype} to measure the noise floor with; leave it out")
    wide = copy.deepcopy(baseline)
    torch.nn.Module.to(wide, _WIDER[baseline.dtype])
    few = Windows(windows.ids[:max_windows], windows.scored[:max_windows], windows.protocol)
    scores = score_tokens(wide, baseline, few, batch_size=1, progress=progress)
    if not scores.finite.any():
        raise DataError("the baseline gives NaN or Inf at every position; evaluate it in a wider dtype")
    return float(scores.kl[scores.finite].mean())
