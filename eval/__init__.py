"""What was lost and what was gained, with intervals: the quantized model against its 16-bit baseline.

`make_windows` turns documents into token windows, `evaluate` measures a `Pair` of loaded models on them and gives an
`EvalReport`, which `llmquant.eval.report` renders as a page and `llmquant.eval.table` as a table. Each thing that is
measured is a file of `llmquant.eval.metrics`. Nothing here loads a model.
"""

from __future__ import annotations

from llmquant.data.windows import Windows, make_windows
from llmquant.eval.evaluate import evaluate
from llmquant.eval.options import EvalOptions
from llmquant.eval.pair import Pair, Subject
from llmquant.eval.result import EvalReport

__all__ = ["EvalOptions", "EvalReport", "Pair", "Subject", "Windows", "evaluate", "make_windows"]
