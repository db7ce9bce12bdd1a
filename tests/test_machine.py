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


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("processor: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16\n", True),
        ("Features\t: fp asimd bf16\n", True),
        ("flags\t\t: fpu avx2 avx512f bf16c\n", False),
        ("model name: none\n", None),
        (None, None),
    ],
)
def test_instructions_for_bfloat16(tmp_path: Path, monkeypatch, said: str | None, found: bool | None) -> None:
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
    if said is not None:
        (tmp_path / "cpuinfo").write_text(said)
    assert machine.multiplies_bfloat16() is found
