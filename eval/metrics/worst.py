"""The tokens where the quantized model left the baseline furthest, in their context."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmquant.data.windows import Windows
from llmquant.errors import DataError
from llmquant.eval.markup import element, join, table
from llmquant.eval.metrics import base
from llmquant.eval.metrics.base import Panel
from llmquant.eval.scoring import TokenScores
from llmquant.words import number, percent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llmquant.eval.pair import Pair
    from llmquant.eval.result import EvalReport

PLACE = 80
_CONTEXT_TOKENS = 32
_VISIBLE = {"\n": "↵", "\t": "⇥", "\r": "␍", " ": "␣"}
_HEAD = ("KL", "context and token of the text", "its probability", "most likely: baseline", "quantized")


@dataclass(frozen=True, kw_only=True)
class Options:
    """How many tokens are kept, one at least."""

    count: int = 20

    def __post_init__(self) -> None:
        if self.count < 1:
            raise DataError(f"metric 'worst' cannot have count {self.count}; at least 1 (`worst=false` leaves it out)")


@dataclass(frozen=True)
class WorstToken:
    """A token with a high KL, in its context."""

    window: int
    position: int
    kl: float
    context: str
    token: str
    probability_baseline: float
    probability_quantized: float
    top_baseline: str
    top_quantized: str


@dataclass(frozen=True)
class Section(base.Section):
    """The tokens of highest KL, worst first."""

    tokens: tuple[WorstToken, ...]


def measure(pair: Pair, options: Options) -> Section:
    """From the scores of the finite positions, decoded."""
    return Section(worst_tokens(pair.scored.tokens, pair.windows, pair.tokenizer, count=options.count))


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


def panels(reports: Sequence[EvalReport]) -> list[Panel]:
    """A table for each report, a row per token."""
    parts = [
        (name, table(_HEAD, [_row(token) for token in section.tokens], "worst"))
        for name, section in Section.of(reports)
        if section.tokens
    ]
    return Panel.folded("Where it hurts most", parts, "Tokens of highest KL; the token of the text is marked.")


def _row(token: WorstToken) -> list[str]:
    context = element("span", " ".join(token.context.split()) + " ", class_="context")
    where = element("small", f"window {token.window}, token {token.position}")
    same = token.top_baseline == token.top_quantized
    return [
        number(token.kl),
        join(context, element("mark", visible(token.token)), where),
        f"{percent(token.probability_baseline)} → {percent(token.probability_quantized)}",
        element("code", visible(token.top_baseline)),
        element("code", visible(token.top_quantized), class_=None if same else "flip"),
    ]


def visible(text: str) -> str:
    """White space made visible where it is all there is, or stands at an end."""
    core = text.strip()
    if not core:
        return "".join(_VISIBLE.get(each, each) for each in text) or "(empty)"
    begin = text.index(core)
    return (
        visible(text[:begin]) * bool(begin)
        + core
        + visible(text[begin + len(core) :]) * bool(text[begin + len(core) :])
    )
