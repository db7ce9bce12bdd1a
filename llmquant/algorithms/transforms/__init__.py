"""Transforms, one file each: the recipe word `smoothquant` means `llmquant.algorithms.transforms.smoothquant`.

Every file here but `base` is one: see `base.Transform`.
"""

from __future__ import annotations

from llmquant.algorithms.transforms.base import Transform
from llmquant.by_name import ByName

_ALL: ByName[Transform] = ByName(__name__, "transform", needs=("NEEDS", "Options", "reads", "why_not", "fit"))
names, find = _ALL.names, _ALL.find
