"""What calibration measures on the layers of a block, one file each, found by its name.

Every file here but `base` and `collect` is one: see `base.StatisticModule`.
"""

from __future__ import annotations

from llmquant.by_name import ByName
from llmquant.statistics.base import StatisticModule

_ALL: ByName[StatisticModule] = ByName(__name__, "statistic", needs=("OF", "start"), others=("collect",))
names, find = _ALL.names, _ALL.find
