"""The chart of the card: what was lost against size, of all results that were measured on the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmquant.eval.report.tradeoff import loss_against_size
from llmquant.eval.result import EvalReport

NAME = "loss-against-size.png"


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG file, with what is read aloud in its place."""

    alt: str
    data: bytes


def picture(own: Sequence[EvalReport], reports: Sequence[EvalReport]) -> Picture | None:
    """The published result among the others of `reports`, on the first text on which there are others."""
    for report in own:
        alike = [
            each
            for each in reports
            if each.against == report.against and each.protocol.data_hash == report.protocol.data_hash
        ]
        if chart := loss_against_size(alike):
            return Picture(chart.alt, chart.png())
    return None
