"""What was lost and what was gained, with intervals: the quantized model against its 16-bit baseline.

`make_windows` turns documents into token windows, `evaluate` measures two loaded models on them and gives an
`EvalReport`, which `llmquant.eval.report` renders as a page and `llmquant.eval.table` as a table. Nothing here loads a
model.
"""

from __future__ import annotations

from llmquant.data.windows import Windows, make_windows
from llmquant.eval.evaluate import evaluate
from llmquant.eval.result import EvalReport
from llmquant.eval.scoring import Comparison, compare

__all__ = ["Comparison", "EvalReport", "Windows", "compare", "evaluate", "make_windows"]
