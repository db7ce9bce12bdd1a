"""How much memory is left (the system's or the container's, whichever is less), and how much a call takes."""

from pathlib import Path

import pytest
import torch

from llmquant import memory


@pytest.mark.parametrize(
    ("available", "limit", "used", "left"),
    [
        (8_000, "max", "100", 8_192_000),
        (8_000, "5000000", "1000000", 4_000_000),
        (8_000, "50000000", "1000000", 8_192_000),
        (None, "5000000", "1000000", 4_000_000),
        (None, "max", "1", None),
        (8_000, None, None, 8_192_000),
    ],
)
def test_the_least_of_what_is_known(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    available: int | None,
    limit: str | None,
    used: str | None,
    left: int | None,
) -> None:
    files = {"meminfo": None if available is None else f"MemTotal: 9000 kB\nMemAvailable:   {available} kB\n"}
    for name, text in (files | {"limit": limit, "used": used}).items():
        if text is not None:
            (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUPS", ((tmp_path / "limit", tmp_path / "used"),))
    assert memory.available_bytes() == left


def test_free_memory_is_known_here() -> None:
    free = memory.free_bytes(torch.device("cpu"))
    if not Path("/proc/meminfo").is_file():
        pytest.skip("only Linux tells")
    assert free is not None
    assert free > 2**20


def test_peak_memory_of_a_call() -> None:
    peak = memory.peak_rss_of(lambda: bytes(bytearray(b"x" * (64 << 20)))[:3])
    assert peak.result == b"xxx"
    if peak.rise_bytes is None:
        pytest.skip(peak.note)
    assert (64 << 20) <= peak.rise_bytes < (256 << 20)
