"""Tuning, one file each: the recipe word `scale_refit` means `llmquant.algorithms.tuning.scale_refit`.

Every file here but `base` is one: see `base.Tuning`.
"""

from __future__ import annotations

from llmquant.algorithms.tuning.base import Tuning
from llmquant.by_name import ByName

_ALL: ByName[Tuning] = ByName(__name__, "tuning method", needs=("Options", "tune"))
names, find = _ALL.names, _ALL.find
