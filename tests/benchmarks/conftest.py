"""Scripts of benchmarks/ as modules."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def part(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Import one of the scripts, which import each other from beside themselves."""
    monkeypatch.syspath_prepend(repository / "benchmarks")
    return import_module
