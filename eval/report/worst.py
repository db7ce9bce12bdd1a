"""The tokens that changed most, in their context."""

from __future__ import annotations

from collections.abc import Sequence

from llmquant.eval.lines import number, percent
from llmquant.eval.report.markup import Markup, element
from llmquant.eval.result import WorstToken

_VISIBLE = {"\n": "↵", "\t": "⇥", "\r": "␍", " ": "␣"}
_HEAD = ("KL", "context and token of the text", "its probability", "most likely: baseline", "quantized")


def worst_table(tokens: Sequence[WorstToken]) -> Markup | None:
    """A row per token, worst first; None without tokens."""
    if not tokens:
        return None
    head = element("tr", *(element("th", text, scope="col") for text in _HEAD))
    rows = element("tbody", *(_row(token) for token in tokens))
    return element("table", element("thead", head), rows, class_="plain worst")


def _row(token: WorstToken) -> Markup:
    context = element("span", " ".join(token.context.split()) + " ", class_="context")
    same = token.top_baseline == token.top_quantized
    return element(
        "tr",
        element("td", number(token.kl), class_="num"),
        element(
            "td", context, element("mark", visible(token.token)), title=f"window {token.window}, token {token.position}"
        ),
        element("td", f"{percent(token.probability_baseline)} → {percent(token.probability_quantized)}", class_="num"),
        element("td", element("code", visible(token.top_baseline))),
        element("td", element("code", visible(token.top_quantized), class_=None if same else "flip")),
    )


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
