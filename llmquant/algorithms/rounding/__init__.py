"""Rounding methods, one file each: the recipe word `gptq` means `llmquant.algorithms.rounding.gptq`.

Every file here but `base` is one: see `base.Algorithm`. What they have in common is in the folder `shared`.
"""

from __future__ import annotations

from llmquant.algorithms.rounding.base import Algorithm
from llmquant.by_name import ByName

_ALL: ByName[Algorithm] = ByName(__name__, "rounding method", needs=("NEEDS", "Options", "quantize"))
names, find = _ALL.names, _ALL.find
