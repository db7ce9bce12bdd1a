"""What stands beside a number, and the file that it is written to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmquant.kernels.bench.common.facts import facts, write_json


def test_a_number_has_its_machine_beside_it() -> None:
    found = facts("cpu", "abc")
    assert found["commit"] == "abc"
    assert {"cpu", "isa", "cores", "threads", "cache_bytes", "load"} <= set(found["machine"])
    assert found["versions"]["torch"] != "not installed"
    assert len((facts("cpu")["commit"] or "0" * 40).removesuffix("-dirty")) == 40


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
