"""Two models on the same tokens, side by side: what each says of every scored token.

The models run window batch by window batch, and only one batch of logits of each exists at a time; log-probabilities
are taken in float64, a slice of positions at a time, because the KL of an 8-bit model can lie below float32 rounding.
What remains is a few numbers per scored token. A position where either model gives a non-finite number is counted, not
averaged.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmquant.data.calibration import check_vocabulary
from llmquant.data.windows import Windows
from llmquant.errors import DataError, QuantizationError
from llmquant.eval.statistics import Floats
from llmquant.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LOGIT_ELEMENTS = 1 << 26  # logits of one model in a batch, when the caller names no batch size
_MOST_WINDOWS = 16  # at once, so that progress moves
_SLICE_ELEMENTS = 1 << 22  # float64 log-probabilities of one model at once: 32 MiB


@dataclass(frozen=True, slots=True)
class TokenScores:
    """What is kept of each scored token; all arrays (tokens,), in text order."""

    window: NDArray[np.int64]  # number of its window
    position: NDArray[np.int64]  # place of the predicted token in its window
    nll_baseline: Floats  # -ln p(token)
    nll_quantized: Floats
    kl: Floats  # KL(baseline||quantized) of the whole predicted distribution, in nats
    confidence: Floats  # highest probability in the baseline's distribution
    top_baseline: NDArray[np.int64]  # most likely token
    top_quantized: NDArray[np.int64]
    target: NDArray[np.int64]  # the token of the text

    @property
    def finite(self) -> NDArray[np.bool_]:
        """Whether both models gave finite numbers at a position."""
        return np.isfinite(self.nll_baseline) & np.isfinite(self.nll_quantized) & np.isfinite(self.kl)

    def kept(self) -> TokenScores:
        """The finite positions."""
        finite = self.finite
        return TokenScores(*(getattr(self, each.name)[finite] for each in fields(self)))


def score_tokens(
    baseline: PreTrainedModel,
    quantized: PreTrainedModel,
    windows: Windows,
    progress: Progress,
    *,
    batch_size: int | None = None,
) -> TokenScores:
    """Run both models (maybe one object) over all windows, so many at once; None chooses by the vocabulary.

    Raises:
        DataError: if the vocabularies differ or do not hold the tokens.
        QuantizationError: if no position is finite.
    """
    for model in (baseline, quantized):
        check_vocabulary(windows.ids, model)
    parts: list[dict[str, Tensor]] = []
    with evaluating(baseline), evaluating(quantized), torch.inference_mode():
        progress.stage("score", len(windows), unit="windows")
        for begin, ids, scored in batches(baseline, windows, batch_size):
            parts.append(score_batch(logits(baseline, ids), logits(quantized, ids), ids, scored, first_window=begin))
            progress.step(steps=len(ids))
    scores = TokenScores(**{name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]})
    if not scores.finite.any():
        bad = [name for name in ("baseline", "quantized") if not np.isfinite(getattr(scores, f"nll_{name}")).any()]
        raise QuantizationError(
            f"none of the {len(scores.kl)} scored positions is finite: the {' and the '.join(bad) or 'quantized'} "
            "model gives NaN or Inf everywhere; check its weights with `llmquant inspect`, or evaluate in a wider dtype"
        )
    return scores


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Switch dropout off inside the block."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def score_window(model: PreTrainedModel, windows: Windows) -> None:
    """Run one model over the first window, for measurements of memory."""
    with evaluating(model), torch.inference_mode():
        logits(model, windows.ids[:1])


def batches(model: PreTrainedModel, windows: Windows, size: int | None) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Windows in batches: number of the first, token ids and what is scored; sized by the vocabulary if None."""
    vocabulary = model.config.get_text_config().vocab_size
    size = size or min(_MOST_WINDOWS, max(1, _LOGIT_ELEMENTS // (windows.ids.shape[1] * vocabulary)))
    for begin in range(0, len(windows), size):
        yield begin, windows.ids[begin : begin + size], windows.scored[begin : begin + size]


def logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """(windows, length - 1, vocabulary): the last position predicts nothing that is scored."""
    return model(input_ids=ids.to(model.device), use_cache=False).logits[:, :-1]


def score_batch(
    baseline: Tensor, quantized: Tensor, ids: Tensor, scored: Tensor, *, first_window: int
) -> dict[str, Tensor]:
    """Numbers of each scored token (the fields of `TokenScores`) from logits (windows, length - 1, vocabulary)."""
    vocabulary = baseline.shape[-1]
    if quantized.shape[-1] != vocabulary:
        raise DataError(
            f"the baseline predicts {vocabulary} tokens, the quantized model {quantized.shape[-1]}; "
            "they are not versions of one model"
        )
    window, position = scored.nonzero(as_tuple=True)
    target = ids[window, position + 1]
    rows = max(1, _SLICE_ELEMENTS // vocabulary)
    device = torch.device("cpu") if baseline.device.type == "mps" else baseline.device  # mps has no float64
    slices: list[dict[str, Tensor]] = []
    for part in torch.arange(len(window)).split(rows):
        one, two = (
            each[window[part].to(each.device), position[part].to(each.device)].to(device)
            for each in (baseline, quantized)
        )
        slices.append(_score_rows(one, two, target[part].to(device)))
    columns: dict[str, Any] = {name: torch.cat([each[name] for each in slices]) for name in slices[0]} if slices else {}
    return {"window": window + first_window, "position": position + 1, "target": target, **columns}


def _score_rows(baseline: Tensor, quantized: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Numbers of each row; logits (rows, vocabulary), target (rows,)."""
    log_p, log_q = baseline.double().log_softmax(-1), quantized.double().log_softmax(-1)
    p = log_p.exp()
    terms = (p * (log_p - log_q)).masked_fill(p == 0, 0.0)  # 0 ln 0 = 0, also where both models mask a token
    columns = {
        "nll_baseline": -log_p.gather(1, target[:, None])[:, 0],
        "nll_quantized": -log_q.gather(1, target[:, None])[:, 0],
        "kl": terms.sum(-1).clamp_min(0.0),  # clamps float64 rounding only: KL is never negative; NaN stays NaN
        "confidence": p.amax(-1),
        "top_baseline": baseline.argmax(-1),
        "top_quantized": quantized.argmax(-1),
    }
    return {name: column.cpu() for name, column in columns.items()}
