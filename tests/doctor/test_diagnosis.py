"""The doctor: facts of this machine, the speeds that follow, and advice for machines that lack something."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from llmquant.cli.doctor import print_diagnosis
from llmquant.cli.main import main
from llmquant.doctor import bandwidth, diagnosis, facts
from llmquant.doctor.advice import Advice, advise
from llmquant.doctor.bandwidth import Bandwidth
from llmquant.doctor.diagnosis import Diagnosis, diagnose, expected
from llmquant.doctor.facts import Gpu, Gpus, Kernels
from llmquant.kernels.cpu import native
from llmquant.kernels.gpu import runtime
from llmquant.kernels.gpu.choose import table
from llmquant.kernels.gpu.choose.config import Config
from llmquant.machine import NOT_INSTALLED, Threads
from llmquant.memory import Memory

KERNELS = Kernels(
    library="libllmquant_cpu.so", interface=1, in_use="avx512", available=("scalar", "avx2", "avx512"),
    isa_override=None, kernels_override=None, problem=None,
)  # fmt: skip
THREADS = Threads(torch=4, logical=8, physical=4, quota=None)
MEMORY = Memory(total=16 << 30, available=10 << 30, huge_pages="madvise")
NO_GPU = Gpus(devices=(), driver=False, cuda=None, override=None, problem=None)
GPU = Gpu(name="H100", bytes=80 << 30, arch="sm90", off=None, table="shipped")


def one_gpu(override: str | None = None, **changes: Any) -> Gpus:
    return replace(NO_GPU, devices=(replace(GPU, **changes),), driver=True, cuda="12.8", override=override)


QUIET = Bandwidth({"1": 10.0, "4": 30.0}, "C++ kernels", 0.0)
VERSIONS = {"torch": "2.13.0", "triton": "3.9.0"}


def _advice(*changed: object, versions: dict[str, str] = VERSIONS) -> tuple[Advice, ...]:
    """What is said of a sound machine with some parts replaced."""
    parts: dict[type, Any] = {type(part): part for part in (KERNELS, THREADS, MEMORY, NO_GPU, QUIET, *changed)}
    return advise(parts[Kernels], parts[Threads], parts[Memory], parts[Gpus], parts[Bandwidth], versions)


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
        (one_gpu(table=None), "nothing was measured for GPUs like yours (sm90)", "llmquant bench --tune"),
        (one_gpu(off="the kernels need compute capability 8.0; P100 has less"), "P100 has less", "newer GPU"),
        (one_gpu("reference", off="reference"), "switches the GPU kernels off", "unset LLMQUANT_GPU_KERNELS"),
        (replace(NO_GPU, override="interpret"), "in Triton's interpreter", "unset LLMQUANT_GPU_KERNELS"),
    ],
)
def test_each_shortcoming_is_named_with_its_remedy(part: object, problem: str, remedy: str) -> None:
    (found,) = _advice(part)
    assert found.level == "warning"
    assert problem in found.problem
    assert remedy in found.remedy


def test_a_gpu_needs_triton_and_nothing_else() -> None:
    assert _advice(one_gpu()) == ()
    (found,) = _advice(
        one_gpu(off="triton is not installed", table=None), versions={**VERSIONS, "triton": NOT_INSTALLED}
    )
    assert ("no triton" in found.problem, found.remedy) == (True, "pip install 'llmquant[gpu]'")


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("LLMQUANT_GPU_KERNELS is 'fast'", "correct or unset LLMQUANT_GPU_KERNELS"),
        ("LLMQUANT_GPU_TABLE is t.json, where there is no file", "correct or unset LLMQUANT_GPU_TABLE"),
        ("sm90.json: version is missing", "correct or delete that file"),
    ],
)
def test_what_makes_the_gpu_kernels_fail_is_an_error(said: str, remedy: str) -> None:
    (found,) = _advice(replace(one_gpu(off=said, table=None), problem=said))
    assert found == Advice("error", said, remedy)


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
    assert json.loads(json.dumps(asdict(found)))["threads"]["torch"] == found.threads.torch


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
        assert main(["doctor", "--json", "-"]) == status
        written = capsys.readouterr()
        assert json.loads(written.out) == json.loads(json.dumps(asdict(found)))
        assert "avx512" in written.err
    assert main(["doctor", "--json", str(tmp_path / "d.json")]) == 1
    assert json.loads((tmp_path / "d.json").read_text())["threads"]["quota"] is None
    assert "avx512" in capsys.readouterr().out
    assert main(["doctor", "--json", str(tmp_path / "absent" / "d.json")]) == 1
    assert "absent" in capsys.readouterr().err


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Two Hopper GPUs, as torch describes them, and a home without tables."""
    for name in (runtime.VARIABLE, table.VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    properties = SimpleNamespace(total_memory=80_000_000_000, multi_processor_count=132, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number=0: f"GPU [{number}]")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(runtime, "find_spec", lambda _: True)
    runtime._arch.cache_clear()
    yield
    runtime._arch.cache_clear()


def _shown(found: Gpus) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    print_diagnosis(console, _diagnosis(gpus=found))
    return console.export_text()


def test_gpus_are_listed_with_their_kernels(two_gpus: None, tmp_path: Path) -> None:
    entry = table.Entry("w4a16", (1, 1), (4096, 4096), (4096, 4096), 128, Config(16, 64))
    table.write(table.user_file("sm90", 132), table.Table("sm90", 132, "GPU [0]", entries=(entry,)))
    found = facts.gpus()
    assert found.devices == tuple(
        Gpu(name=f"GPU [{number}]", bytes=80_000_000_000, arch="sm90", off=None, table="own") for number in range(2)
    )
    assert found.problem is None
    assert "GPU [0], 80 GB; GPU [1], 80 GB" in _shown(found)
    assert "Triton for sm90, tuned on this machine  (LLMQUANT_GPU_KERNELS is not set)" in _shown(found)
    assert "by estimate, no table" in _shown(one_gpu(table=None))
    assert "off, triton [is] missing" in _shown(one_gpu(off="triton [is] missing"))


@pytest.mark.parametrize("wrong", ["variable", "table"])
def test_mistakes_around_gpu_kernels_are_problems(two_gpus: None, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if wrong == "variable":
        monkeypatch.setenv(runtime.VARIABLE, "quick")
    else:
        mine = table.user_file("sm90", 132)
        mine.parent.mkdir(parents=True)
        mine.write_text("{", encoding="utf-8")
    found = facts.gpus()
    assert found.problem is not None
    assert ("quick" if wrong == "variable" else "is no JSON") in found.problem
    assert [gpu.name for gpu in found.devices] == ["GPU [0]", "GPU [1]"]
    assert "not usable, see below" in _shown(found)


def test_reference_on_gpus(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(runtime.VARIABLE, "reference")
    found = facts.gpus()
    assert {gpu.off for gpu in found.devices} == {"LLMQUANT_GPU_KERNELS=reference"}
    assert found.override == "reference"
