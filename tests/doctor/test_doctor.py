"""The doctor: facts of this machine, the speeds that follow, and advice for machines that lack something."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from llmquant.cli import main
from llmquant.doctor import bandwidth, diagnosis, facts
from llmquant.doctor.advice import Advice, advise
from llmquant.doctor.bandwidth import Bandwidth
from llmquant.doctor.diagnosis import Diagnosis, diagnose, expected
from llmquant.doctor.facts import Gpus, Kernels, Memory, Threads
from llmquant.doctor.view import print_diagnosis
from llmquant.kernels import native

KERNELS = Kernels(
    library="libllmquant_cpu.so", interface=1, in_use="avx512", available=("scalar", "avx2", "avx512"),
    isa_override=None, kernels_override=None, problem=None,
)  # fmt: skip
THREADS = Threads(torch=4, logical=8, physical=4, quota=None)
MEMORY = Memory(total=16 << 30, available=10 << 30, huge_pages="madvise")
NO_GPU = Gpus(names=(), bytes=(), driver=False, cuda=None)
QUIET = Bandwidth({"1": 10.0, "4": 30.0}, "C++ kernels", 0.0)
VERSIONS = {"torch": "2.13.0", "triton": "not installed"}


def _advice(*changed: object) -> tuple[Advice, ...]:
    """What is said of a sound machine with some parts replaced."""
    parts: dict[type, Any] = {type(part): part for part in (KERNELS, THREADS, MEMORY, NO_GPU, QUIET, *changed)}
    return advise(parts[Kernels], parts[Threads], parts[Memory], parts[Gpus], parts[Bandwidth], VERSIONS)


def test_a_sound_machine_needs_no_advice() -> None:
    assert _advice() == ()


@pytest.mark.parametrize(
    ("part", "problem", "remedy"),
    [
        (replace(KERNELS, library=None, in_use="torch", available=()), "without its C++ kernels", "--force-reinstall"),
        (replace(KERNELS, in_use="avx2", isa_override="avx2"), "this machine runs avx512", "unset LLMQUANT_CPU_ISA"),
        (replace(KERNELS, in_use="scalar", available=("scalar",)), "plain C++", "AVX2"),
        (replace(KERNELS, kernels_override="reference"), "switches the fast kernels off", "unset LLMQUANT_CPU_KERNELS"),
        (replace(THREADS, torch=8), "there are 4 cores", "OMP_NUM_THREADS=4"),
        (replace(THREADS, quota=1.5), "grants 1.5 processors", "OMP_NUM_THREADS=1"),
        (replace(THREADS, torch=1), "1 of 4 cores", "set_num_threads(4)"),
        (replace(MEMORY, huge_pages="never"), "huge pages", "echo madvise"),
        (replace(QUIET, others=0.4), "40% of the processors", "when the machine is quiet"),
        (replace(NO_GPU, driver=True), "torch 2.13.0 is a CPU build", "nvidia-smi"),
        (replace(NO_GPU, names=("H100",), bytes=(80 << 30,), cuda="12.8"), "no triton", "llmquant[gpu]"),
    ],
)
def test_each_shortcoming_is_named_with_its_remedy(part: object, problem: str, remedy: str) -> None:
    (found,) = _advice(part)
    assert found.level == "warning"
    assert problem in found.problem
    assert remedy in found.remedy


@pytest.mark.parametrize(("isa", "remedy"), [("avx9", "unset LLMQUANT_CPU_ISA"), (None, "--force-reinstall")])
def test_what_makes_the_kernels_fail_is_an_error(isa: str | None, remedy: str) -> None:
    said = "LLMQUANT_CPU_ISA is 'avx9'" if isa else "interface 0, this llmquant wants 1"
    (found,) = _advice(replace(KERNELS, in_use=None, problem=said, isa_override=isa))
    assert (found.level, found.problem) == ("error", said)
    assert remedy in found.remedy


def test_expected_speed_is_bandwidth_over_bytes() -> None:
    row = expected(8e9, "int4-g128", 20.0, 4_000_000_000)
    assert row.bytes == 8e9 * 4.125 / 8
    assert row.tokens_per_second == pytest.approx(20e9 / row.bytes)
    assert row.fits is False
    assert expected(1e9, "bf16", 20.0, None).bytes == 2e9
    assert expected(1e9, "int8", 20.0, 2_000_000_000).fits


def test_a_wrong_instruction_set_is_a_problem_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMQUANT_CPU_ISA", "avx9")
    native.isa.cache_clear()
    try:
        found = facts.kernels()
    finally:
        native.isa.cache_clear()
    assert found.in_use is None
    assert found.isa_override == "avx9"
    assert found.problem is not None
    assert "avx9" in found.problem


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
def test_quota_of_a_container(tmp_path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], quota) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text + "\n", encoding="ascii")
    monkeypatch.setattr(facts, "_QUOTA_V2", tmp_path / "v2")
    monkeypatch.setattr(facts, "_QUOTA_V1", (tmp_path / "quota", tmp_path / "period"))
    assert facts.threads().quota == quota


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "_SECONDS", 0.01)
    monkeypatch.setattr(bandwidth, "_BYTES", 1 << 20)


def test_bandwidth_by_torch_leaves_its_threads_alone(quick: None) -> None:
    before = torch.get_num_threads()
    found = bandwidth.measure_bandwidth(2, compiled=False)
    assert torch.get_num_threads() == before
    assert set(found.gbs) == {"1", "2"}
    assert 0.01 < found.best < 10_000
    assert found.others is None or 0 <= found.others <= 1


def test_diagnosis_of_this_machine(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLMQUANT_CPU_ISA", raising=False)
    found = diagnose()
    assert found.kernels.in_use == native.isa()
    assert found.kernels.available == native.supported()
    assert found.threads.torch == torch.get_num_threads()
    assert {row.format for row in found.expected} == {"bf16", "int8", "int4-g128"}
    shown = Console(width=120, record=True, file=io.StringIO())
    print_diagnosis(shown, found)
    assert native.isa() in shown.export_text()
    assert json.loads(json.dumps(found.to_dict()))["threads"]["torch"] == found.threads.torch


def _diagnosis(**changes: object) -> Diagnosis:
    facts: dict[str, Any] = {
        "cpu": "A processor", "system": "Linux x86_64", "versions": VERSIONS, "kernels": KERNELS, "threads": THREADS,
        "memory": MEMORY, "gpus": NO_GPU, "bandwidth": QUIET, "advice": (),
        "expected": (*(expected(8e9, name, 30.0, MEMORY.available) for name in diagnosis.FORMATS),),
    }  # fmt: skip
    return Diagnosis(**{**facts, **changes})


def test_command_prints_text_or_json(monkeypatch: pytest.MonkeyPatch, tmp_path, capsys) -> None:
    broken = _diagnosis(advice=(Advice("error", "it is [broken]", "mend it"),))
    for found, status in ((_diagnosis(), 0), (broken, 1)):
        monkeypatch.setattr("llmquant.doctor.diagnose", lambda found=found: found)
        assert main(["doctor"]) == status
        shown = capsys.readouterr().out
        for word in ("avx512", "30.0 GB/s", "on 4 threads", "madvise", "needs 16 GB", "7.27"):
            assert word in shown
        assert ("mend it" in shown and "[broken]" in shown) == found.broken
        assert main(["doctor", "--json"]) == status
        assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(found.to_dict()))
    assert main(["doctor", "--json", str(tmp_path / "d.json")]) == 1
    assert json.loads((tmp_path / "d.json").read_text())["threads"]["quota"] is None
    assert "avx512" in capsys.readouterr().out
    assert main(["doctor", "--json", str(tmp_path / "absent" / "d.json")]) == 1
    assert "absent" in capsys.readouterr().err


def test_gpus_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"GPU [{number}]")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=80_000_000_000))
    found = facts.gpus()
    assert (found.names, found.bytes) == (("GPU [0]", "GPU [1]"), (80_000_000_000,) * 2)
    console = Console(width=200, record=True, file=io.StringIO())
    print_diagnosis(console, _diagnosis(gpus=found))
    assert "GPU [0], 80 GB; GPU [1], 80 GB" in console.export_text()
