"""Nothing moved: rounding to nearest gives the bytes it gave when rtn.json was written.

Where bytes change on purpose: python tests/golden/hash.py rtn > tests/golden/rtn.json, and CHANGELOG says so under
"Numbers changed". GPTQ's bytes depend on the BLAS and the CPU; compare.py compares two commits on one machine.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.golden.cases import RTN, Case, hashes

STORED = json.loads((Path(__file__).parent / "rtn.json").read_text(encoding="utf-8"))


def test_every_case_is_stored() -> None:
    assert list(STORED) == [case.name for case in RTN]


@pytest.mark.parametrize("case", RTN, ids=lambda case: case.name)
def test_bytes_of_rtn(case: Case, tmp_path: Path) -> None:
    assert dict(hashes(case, tmp_path)) == STORED[case.name]
