"""Models on the same tokens, side by side: what a baseline and each candidate say of every scored token.

The models run window batch by window batch: the baseline once, then each candidate, so only one batch of logits of the
baseline and of one candidate exists at a time. Divergences are summed in float64, a slice of positions at a time,
because the KL of an 8-bit model can lie below float32 rounding. What remains is a few numbers per scored token. A
position where either model gives a non-finite number is counted, not averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, cast

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

_LOGIT_ELEMENTS = 3 << 24  # logits of one model in a batch, when the caller names no batch size: 200 MB in float32
_MOST_WINDOWS = 16  # at once, so that progress moves
_SLICE_ELEMENTS = 1 << 18  # float64 logits of one model at once: 2 MiB, which a cache holds


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

    @classmethod
    def joined(cls, parts: Sequence[TokenScores]) -> TokenScores:
        """The tokens of all parts, in their order."""
        return cls(*(np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(cls)))

    def check(self, name: str) -> None:
        """Refuse scores of a model `name` of which nothing can be said.

        Raises:
            QuantizationError: if no position is finite.
        """
        if self.finite.any():
            return
        bad = [each for each in ("baseline", "quantized") if not np.isfinite(getattr(self, f"nll_{each}")).any()]
        raise QuantizationError(
            f"{name}: none of the {len(self.kl)} scored positions is finite: the "
            f"{' and the '.join(bad) or 'quantized'} model gives NaN or Inf everywhere; check its weights with "
            "`llmquant inspect`, or evaluate in a wider dtype"
        )


def score_tokens(
    baseline: PreTrainedModel,
    candidates: Sequence[PreTrainedModel],
    windows: Windows,
    progress: Progress,
    *,
    batch_size: int | None = None,
    kept: Callable[[int, str], TokenScores | None] = lambda *_: None,
    keep: Callable[[int, str, TokenScores], None] = lambda *_: None,
) -> list[TokenScores]:
    """Run the baseline once, and each candidate (maybe the same object), over all windows: the scores of each.

    So many windows are taken at once; None chooses by the vocabulary. `kept` gives what an earlier run scored, by the
    number of the candidate and the name of the batch, and `keep` takes what is scored; where all is there, no model
    runs.

    Raises:
        DataError: if the vocabularies differ or do not hold the tokens.
    """
    for model in (baseline, *candidates):
        check_vocabulary(windows.ids, model)
    parts: list[list[TokenScores]] = [[] for _ in candidates]
    with ExitStack() as stack, torch.inference_mode():
        for model in (baseline, *candidates):
            stack.enter_context(evaluating(model))
        progress.stage("score", len(windows), unit="windows")
        for begin, ids, scored in batches(baseline, windows, batch_size):
            name = f"{begin} {len(ids)}"
            before = [kept(place, name) for place in range(len(candidates))]
            if missing := [place for place, scores in enumerate(before) if scores is None]:
                reference = Reference(seen := logits(baseline, ids), ids, scored, first_window=begin)
                for place in missing:
                    model = candidates[place]
                    before[place] = new = reference.score(seen if model is baseline else logits(model, ids))
                    keep(place, name, new)
            for found, scores in zip(parts, before, strict=True):
                found.append(cast("TokenScores", scores))
            progress.step(steps=len(ids), work=len(ids) if missing else 0)
    return [TokenScores.joined(found) for found in parts]


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


class Reference:
    """The scored positions of some windows as the baseline predicts them; `score` puts another model beside it.

    Of the baseline's distributions only the normaliser and what a report needs are kept; the probabilities of a slice
    are taken again for each model, which costs less than the memory to hold them.
    """

    def __init__(self, logits: Tensor, ids: Tensor, scored: Tensor, *, first_window: int = 0) -> None:
        """Logits (windows, length - 1, vocabulary), ids (windows, length), scored (windows, length - 1)."""
        self._logits = logits
        self._window, self._position = scored.nonzero(as_tuple=True)
        self._target = ids[self._window, self._position + 1]
        self._total = torch.empty(len(self._window), dtype=torch.float64)  # ln of the sum of exp(logits)
        confidence, top = torch.empty_like(self._total), torch.empty_like(self._target)
        for part, rows in self._slices(logits):
            self._total[part] = rows.logsumexp(-1).cpu()
            highest, place = rows.max(-1)
            confidence[part], top[part] = (highest.cpu() - self._total[part]).exp(), place.cpu()
        self._columns = {
            "window": self._window + first_window,
            "position": self._position + 1,
            "nll_baseline": self._total - self._of_target(logits),
            "confidence": confidence,
            "top_baseline": top,
            "target": self._target,
        }

    def score(self, logits: Tensor) -> TokenScores:
        """What a model, whose logits these are, and the baseline say of each scored token."""
        vocabulary = self._logits.shape[-1]
        if logits.shape[-1] != vocabulary:
            raise DataError(
                f"the baseline predicts {vocabulary} tokens, the quantized model {logits.shape[-1]}; "
                "they are not versions of one model"
            )
        total, kl, top = (torch.empty_like(each) for each in (self._total, self._total, self._target))
        for (part, ours), (_, theirs) in zip(self._slices(self._logits), self._slices(logits), strict=True):
            normaliser = theirs.logsumexp(-1)
            kl[part] = _divergence(ours, self._total[part].to(ours.device), theirs, normaliser).cpu()
            total[part], top[part] = normaliser.cpu(), theirs.max(-1).indices.cpu()
        nll = total - self._of_target(logits)
        columns = {**self._columns, "nll_quantized": nll, "kl": kl, "top_quantized": top}
        return TokenScores(**{name: column.numpy() for name, column in columns.items()})

    def _slices(self, logits: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Some of the scored positions at a time, and their logits (rows, vocabulary) in float64."""
        rows = max(1, _SLICE_ELEMENTS // logits.shape[-1])
        device = torch.device("cpu") if logits.device.type == "mps" else logits.device  # mps has no float64
        for begin in range(0, len(self._window), rows):
            part = slice(begin, begin + rows)
            window, position = (each[part].to(logits.device) for each in (self._window, self._position))
            yield part, logits[window, position].to(device).double()

    def _of_target(self, logits: Tensor) -> Tensor:
        window, position, target = (each.to(logits.device) for each in (self._window, self._position, self._target))
        return logits[window, position, target].cpu().double()


def _divergence(one: Tensor, one_total: Tensor, other: Tensor, other_total: Tensor) -> Tensor:
    """KL(one||other) of each row of logits (rows, vocabulary), given the logarithms of their sums of exp (rows,)."""
    p, difference = (one - one_total[:, None]).exp_(), one - other
    found = (p * difference).sum(-1)
    if not found.isfinite().all():  # 0 ln 0 = 0, also where both models mask a token
        found = (p * difference).masked_fill(p == 0, 0.0).sum(-1)
    return (found + (other_total - one_total)).clamp_min(0.0)  # float64 rounding only: no KL is negative; NaN stays
