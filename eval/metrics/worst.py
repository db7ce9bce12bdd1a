"""The tokens where the quantized model left the baseline furthest, in their context."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from llmquant.data.windows import Windows
from llmquant.eval.result import WorstToken
from llmquant.eval.scores import TokenScores

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CONTEXT_TOKENS = 32


def worst_tokens(
    scores: TokenScores, windows: Windows, tokenizer: PreTrainedTokenizerBase, *, count: int = 20
) -> tuple[WorstToken, ...]:
    """The `count` finite positions of highest KL, worst first, decoded."""
    kl = np.where(scores.finite, scores.kl, -1.0)
    order = np.argsort(-kl, kind="stable")[:count]
    return tuple(_decoded(scores, windows, tokenizer, int(at)) for at in order if kl[at] >= 0)


def _decoded(scores: TokenScores, windows: Windows, tokenizer: PreTrainedTokenizerBase, at: int) -> WorstToken:
    window, position = int(scores.window[at]), int(scores.position[at])
    begin = max(windows.protocol.prefix_tokens, position - _CONTEXT_TOKENS)
    context = windows.ids[window, begin:position].tolist()
    return WorstToken(
        window=window,
        position=position,
        kl=float(scores.kl[at]),
        context=_text(tokenizer, context),
        token=_continuation(tokenizer, context, int(scores.target[at])),
        probability_baseline=math.exp(-scores.nll_baseline[at]),
        probability_quantized=math.exp(-scores.nll_quantized[at]),
        top_baseline=_continuation(tokenizer, context, int(scores.top_baseline[at])),
        top_quantized=_continuation(tokenizer, context, int(scores.top_quantized[at])),
    )


def _continuation(tokenizer: PreTrainedTokenizerBase, context: list[int], token: int) -> str:
    """What a token adds to its context; alone, many tokenizers would drop its leading space."""
    before, after = _text(tokenizer, context), _text(tokenizer, [*context, token])
    return after[len(before) :] if context and after.startswith(before) else _text(tokenizer, [token])


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
