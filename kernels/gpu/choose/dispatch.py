"""Which configuration runs: the user's table, then the one that ships for the architecture, then an estimate.

Tables (table.py) hold what was measured. Where none has an entry, the first of estimate.py's candidates runs. Nothing
is measured while a model runs, and nothing at import: `llmquant bench --tune` measures and writes the user's table.

Every call of a layer asks, so the answer is one look into a dict. Rows are rounded up to a power of two, so that there
are few answers, and few kernels to compile.
"""

from __future__ import annotations

import logging
import os
from functools import cache
from pathlib import Path

from llmquant.errors import LlmquantError
from llmquant.kernels.gpu.choose import estimate, table
from llmquant.kernels.gpu.choose.config import Config

_log = logging.getLogger(__name__)
_chosen: dict[tuple[str, str, int, int, int, int, int], Config] = {}


def choose(arch: str, kind: str, m: int, n: int, k: int, unit: int, *, processors: int) -> Config:
    """The configuration for a product on a GPU, or `DENSE`; arguments as of `estimate.candidates`.

    Raises:
        LlmquantError: if a table is damaged, or the one that `LLMQUANT_GPU_TABLE` names is missing.
    """
    key = (arch, kind, (m - 1).bit_length(), n, k, unit, processors)
    found = _chosen.get(key)
    if found is None:
        found = _chosen[key] = _decide(arch, kind, bucket(m), n, k, unit, processors)
    return found


def give_up(arch: str, kind: str, m: int, n: int, k: int, unit: int, *, processors: int, instead: Config) -> None:
    """Choose something else from now on, because what was chosen does not compile or fit."""
    _chosen[arch, kind, (m - 1).bit_length(), n, k, unit, processors] = instead


def bucket(m: int) -> int:
    """Rows rounded up to a power of two: what tables and estimates see."""
    return 1 << (m - 1).bit_length()


def forget() -> None:
    """Read tables anew at the next call: after one was written, or in tests."""
    _chosen.clear()
    _tables.cache_clear()


def _decide(arch: str, kind: str, m: int, n: int, k: int, unit: int, processors: int) -> Config:
    for one in _tables(arch, processors):
        if found := one.find(kind, m, n, k, unit):
            return found
    return estimate.candidates(arch, kind, m, n, k, unit, processors)[0]


@cache
def _tables(arch: str, processors: int) -> tuple[table.Table, ...]:
    found = []
    mine = table.user_file(arch, processors)
    if mine.exists():
        found.append(table.read(mine))
    elif named := os.environ.get(table.VARIABLE):
        raise LlmquantError(f"{table.VARIABLE} is {named}, where there is no file; llmquant bench --tune writes one")
    shipped = table.shipped_file(arch)
    if shipped.is_file():
        found.append(table.read(shipped))
    return tuple(one for one in found if _is_for(one, arch, processors, mine))


def _is_for(one: table.Table, arch: str, processors: int, mine: Path) -> bool:
    fits = one.arch == arch and one.processors in (None, processors)
    if not fits:  # only the user's can be another's
        _log.warning(
            "%s is for %s with %s multiprocessors (%s); this GPU is %s with %d, so it is not used",
            mine, one.arch, one.processors, one.gpu, arch, processors,
        )  # fmt: skip
    return fits
