"""The check of check.py as tests: pytest -m clients."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECK = Path(__file__).with_name("check.py")


@pytest.mark.clients
@pytest.mark.parametrize(
    ("reader", "variable"), [("transformers", "LLMQUANT_PLAIN_PYTHON"), ("vllm", "LLMQUANT_VLLM_PYTHON")]
)
def test_readers_do_what_the_plan_says(reader: str, variable: str, shared_data: Path, tmp_path: Path) -> None:
    if not os.environ.get(variable):
        pytest.skip(f"{variable} does not name an interpreter, see tests/clients/README.md")
    command = [sys.executable, str(CHECK), "--reader", reader, "--data", str(shared_data), "--work", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no disagreement" in done.stdout
