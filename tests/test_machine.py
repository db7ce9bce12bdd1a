"""What the system tells of the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmquant import machine


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"v2": "150000 100000"}, 1.5),
        ({"v2": "max 100000"}, None),
        ({"quota": "-1", "period": "100000"}, None),
        ({"quota": "200000", "period": "100000"}, 2.0),
        ({}, None),
    ],
)
def test_quota_of_a_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], quota: float | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text + "\n", encoding="ascii")
    monkeypatch.setattr(machine, "_QUOTA_V2", tmp_path / "v2")
    monkeypatch.setattr(machine, "_QUOTA_V1", (tmp_path / "quota", tmp_path / "period"))
    assert machine.threads().quota == quota
